// A process and a GPU for each rank, over NCCL, and over a process group that coalesces: the processes are threads, and
// the host stands for GPUs and NCCL. On GPUs tests/gpu/run.sh does the former.
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <utility>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/train/reference.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/nccl_api.h"
#include "dualpipe/exec/transport/process_group.h"
#include "tests/exec/training.h"
#include "tests/exec/worlds.h"
#include "tests/gpu/hardware.h"

namespace dualpipe::test {
namespace {

namespace data = boost::unit_test::data;
using namespace std::chrono_literals;

// Does as c10d::ProcessGroupNCCL: what is coalesced becomes a group on a stream of its own, which starts when the
// stream that the caller uses has come to it; wait() makes the stream that is used then wait for its end.
class CoalescingBackend final : public c10d::Backend {
 public:
  CoalescingBackend(int rank, int ranks, const std::string& unique_id)
      : c10d::Backend(rank, ranks), stream_(guard_.getStreamFromGlobalPool(device_, false)) {
    communicator_ = nccl_->init(unique_id, rank, ranks, /*ctas_max=*/4);
  }
  ~CoalescingBackend() override { nccl_->abort(communicator_); }

  const std::string getBackendName() const override { return "nccl"; }
  bool supportsCoalescing() const override { return true; }
  void startCoalescing() override { transfers_.clear(); }
  c10::intrusive_ptr<c10d::Work> send(std::vector<at::Tensor>& tensors, int peer, int /*tag*/) override {
    transfers_.push_back({tensors.at(0), peer, true});
    return nullptr;
  }
  c10::intrusive_ptr<c10d::Work> recv(std::vector<at::Tensor>& tensors, int peer, int /*tag*/) override {
    transfers_.push_back({tensors.at(0), peer, false});
    return nullptr;
  }

  c10::intrusive_ptr<c10d::Work> endCoalescing() override {
    await();  // the communicator, at first
    c10::Event before(at::kCUDA);
    before.record(guard_.getStream(device_));
    const c10::Stream used = guard_.exchangeStream(stream_);
    before.block(stream_);
    nccl_->group_start();
    for (const auto& [tensor, peer, is_send] : transfers_) {
      if (is_send) {
        nccl_->send(communicator_, tensor.const_data_ptr(), tensor.nbytes(), peer);
      } else {
        nccl_->receive(communicator_, tensor.mutable_data_ptr(), tensor.nbytes(), peer);
      }
    }
    nccl_->group_end();
    await();
    auto work = c10::make_intrusive<Work>();
    work->end.record(stream_);
    (void)guard_.exchangeStream(used);
    return work;
  }

 private:
  struct Work final : c10d::Work {
    bool wait(std::chrono::milliseconds /*timeout*/) override {
      const c10::impl::VirtualGuardImpl guard(at::kCUDA);
      end.block(guard.getStream(guard.getDevice()));
      return true;
    }
    c10::Event end{at::kCUDA};
  };
  struct Transfer {
    at::Tensor tensor;
    int peer;
    bool is_send;
  };

  void await() {
    while (nccl_->state(communicator_) == Nccl::State::in_progress) std::this_thread::yield();
  }

  c10::impl::VirtualGuardImpl guard_{at::kCUDA};
  c10::Device device_ = guard_.getDevice();
  c10::Stream stream_;
  std::shared_ptr<Nccl> nccl_ = cuda_nccl();
  Nccl::Communicator communicator_ = nullptr;
  std::vector<Transfer> transfers_;
};

using Join = std::function<std::unique_ptr<World>(int process)>;
using Processes = std::function<std::vector<std::string>(const std::function<void(World&)>& run)>;

void check_trains(const std::string& name, const std::string& model, int ranks, const Processes& in_processes) {
  BOOST_REQUIRE(gpu_is_double());
  const Program program = program_of(name, ranks);
  TrainOptions options = tiny(program, model);
  options.shape.precision = Precision::float32;
  options.steps = 1;
  options.transport.timeout = 60s;
  std::mutex mutex;
  std::vector<CheckReport> reports;
  const auto run = [&](World& world) {
    const auto hardware = cuda_hardware({});
    TrainOptions mine = options;
    mine.hardware = hardware.get();
    const CheckReport report = checked(world, program, mine);
    const std::lock_guard lock(mutex);
    reports.push_back(report);
  };
  const auto errors = in_processes(run);
  BOOST_TEST(errors == std::vector<std::string>(errors.size()), boost::test_tools::per_element());
  BOOST_TEST(reports.size() == errors.size());
  for (const CheckReport& report : reports) {
    BOOST_TEST(report.failure == "");
    if (report.same_order) BOOST_TEST(report.gradients.bitwise_equal);
  }
}

void check_over_nccl(const std::string& name, const std::string& model, int ranks) {
  check_trains(name, model, ranks, [&](const std::function<void(World&)>& run) {
    return in_worlds(ranks, cuda_nccl(), {.timeout = 60s}, run);
  });
}

void check_over_group(const std::string& name, int ranks) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const std::string unique_id = cuda_nccl()->unique_id();
  const Join join = [&](int process) {
    const auto hardware = cuda_hardware({});
    const auto device = hardware->device(0, 1, 1);  // of this thread
    const auto group = c10::make_intrusive<c10d::ProcessGroup>(store, process, ranks);
    group->setBackend(
        c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL,
        c10::intrusive_ptr<c10d::Backend>(c10::make_intrusive<CoalescingBackend>(process, ranks, unique_id)));
    group->setDefaultBackend(c10d::ProcessGroup::BackendType::NCCL);
    group->setGroupName("pipeline");
    return process_group(group, {.timeout = 60s});
  };
  check_trains(name, "mlp", ranks,
               [&](const std::function<void(World&)>& run) { return in_processes(ranks, join, run); });
}

BOOST_AUTO_TEST_SUITE(cuda_double_ranks)

BOOST_DATA_TEST_CASE(two_train_like_the_model_by_itself, data::make(family_names()) * data::make({"mlp", "gpt", "moe"}),
                     name, model) {
  check_over_nccl(name, model, 2);
}

BOOST_DATA_TEST_CASE(four_too, data::make(family_names()), name) { check_over_nccl(name, "mlp", 4); }

BOOST_DATA_TEST_CASE(over_a_process_group_too, data::make(family_names()) * data::make({2, 4}), name, ranks) {
  check_over_group(name, ranks);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
