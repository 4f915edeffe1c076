// NCCL itself, on one GPU: a rank that sends to itself. (Several GPUs: tests/gpu/run.sh nccl.)
#include <ATen/ATen.h>

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/transport/nccl_api.h"
#include "tests/gpu/hardware.h"

namespace dualpipe::test {
namespace {

using namespace std::chrono_literals;

constexpr Stream messages{Stream::Kind::message, 0};
constexpr std::int64_t count = 1 << 20;

at::TensorOptions on_gpu() { return at::TensorOptions(at::kFloat).device(at::kCUDA); }

// A communicator of one rank. Its calls return before they are done.
class Alone {
 public:
  Alone() : nccl_(cuda_nccl()), communicator_(nccl_->init(nccl_->unique_id(), 0, 1, /*ctas_max=*/4)) { await(); }
  ~Alone() { BOOST_TEST(communicator_ == nullptr); }
  Alone(const Alone&) = delete;
  Alone& operator=(const Alone&) = delete;

  void send_to_itself(const at::Tensor& from, const at::Tensor& to) {
    nccl_->group_start();
    nccl_->send(communicator_, from.const_data_ptr(), from.nbytes(), 0);
    nccl_->receive(communicator_, to.mutable_data_ptr(), to.nbytes(), 0);
    nccl_->group_end();
    await();
  }
  void close() {
    nccl_->finalize(communicator_);
    await();
    nccl_->destroy(std::exchange(communicator_, nullptr));
  }
  void abort() { nccl_->abort(std::exchange(communicator_, nullptr)); }

 private:
  void await() {
    const auto deadline = std::chrono::steady_clock::now() + 60s;
    while (nccl_->state(communicator_) == Nccl::State::in_progress) {
      BOOST_REQUIRE(std::chrono::steady_clock::now() < deadline);
      std::this_thread::yield();
    }
  }

  std::shared_ptr<Nccl> nccl_;
  Nccl::Communicator communicator_;
};

BOOST_AUTO_TEST_SUITE(gpu_nccl)

BOOST_AUTO_TEST_CASE(a_rank_sends_to_itself) {
  const auto device = gpu().device(0, 1, 1);
  device->begin_step();
  Alone alone;
  device->use({});
  const at::Tensor sent = at::arange(count, on_gpu());
  const at::Tensor received = at::zeros({count}, on_gpu());
  const Event made = device->record_event();
  device->use(messages);
  device->wait(made);
  const Event start = device->record_event();
  alone.send_to_itself(sent, received);
  const Event end = device->record_event();
  device->use({});
  device->wait(end);
  const at::Tensor next = received + 1;  // on the compute stream, behind the message
  device->finish();
  BOOST_TEST(device->is_done(end));
  BOOST_TEST(device->time_of(start) <= device->time_of(end));
  BOOST_TEST(received.equal(sent));
  BOOST_TEST(next.equal(sent + 1));
  alone.close();
}

BOOST_AUTO_TEST_CASE(two_communicators_side_by_side) {
  const auto device = gpu().device(0, 1, 1);
  device->begin_step();
  Alone activations;
  Alone gradients;
  const at::Tensor sent = at::ones({count}, on_gpu());
  const at::Tensor first = at::zeros({count}, on_gpu());
  const at::Tensor second = at::zeros({count}, on_gpu());
  device->finish();
  device->use(messages);
  activations.send_to_itself(sent, first);
  device->use({Stream::Kind::message, 1});
  gradients.send_to_itself(sent, second);
  device->finish();
  BOOST_TEST(first.equal(sent));
  BOOST_TEST(second.equal(sent));
  activations.close();
  gradients.close();
}

BOOST_AUTO_TEST_CASE(an_aborted_communicator_leaves_the_gpu_usable) {
  const auto device = gpu().device(0, 1, 1);
  device->begin_step();
  Alone alone;
  alone.abort();
  const at::Tensor two = at::ones({count}, on_gpu()) + 1;
  device->finish();
  BOOST_TEST(two.sum().item<double>() == 2.0 * count);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
