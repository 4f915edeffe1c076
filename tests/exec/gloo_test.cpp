// Ranks that LibTorch's gloo connects: that it is as its double (group_double.h) and the transport take it to be.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <csignal>
#include <exception>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <utility>
#include <vector>

#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/process_group.h"
#include "tests/exec/parity.h"
#include "tests/exec/training.h"
#include "tests/exec/worlds.h"
#include "tests/scratch.h"

namespace dualpipe::test {
namespace {

namespace data = boost::unit_test::data;
using namespace std::chrono_literals;
using Lines = std::vector<std::string>;
using Group = c10::intrusive_ptr<c10d::ProcessGroup>;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Collective.
Group gloo_group(const c10::intrusive_ptr<c10d::Store>& store, int rank, int ranks) {
  auto group = c10::make_intrusive<c10d::ProcessGroup>(store, rank, ranks);
  const c10::intrusive_ptr<c10d::Store> keys = c10::make_intrusive<c10d::PrefixStore>("gloo", store);
  const c10::intrusive_ptr<c10d::Backend> gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(
      keys, rank, ranks, c10d::ProcessGroupGloo::Options::create_default(1min));
  group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, gloo);
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
  group->setGroupName("pipeline");
  return group;
}

// By rank, all of which are threads of this process.
class Groups {
 public:
  explicit Groups(int ranks) : groups_(static_cast<std::size_t>(ranks)) {
    const auto store = c10::make_intrusive<c10d::HashStore>();
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < ranks; ++rank) {
      threads.emplace_back([&, rank] { groups_[static_cast<std::size_t>(rank)] = gloo_group(store, rank, ranks); });
    }
  }

  [[nodiscard]] const Group& of(std::size_t rank) const { return groups_[rank]; }
  [[nodiscard]] Lines run(const std::function<void(World&)>& run) const {
    const auto join = [&](int process) {
      return process_group(of(static_cast<std::size_t>(process)), {.timeout = 10s});
    };
    return in_processes(static_cast<int>(groups_.size()), join, run);
  }

 private:
  std::vector<Group> groups_;
};

void check_trains(const Groups& groups, const Program& program, const TrainOptions& options) {
  const Outcome got =
      trained(program, options, [&](const std::function<void(World&)>& run) { return groups.run(run); });
  const Outcome expected = trained_over_threads(program, options);
  BOOST_TEST(got.errors == Lines(got.errors.size()), boost::test_tools::per_element());
  BOOST_TEST(got.losses == expected.losses);
  BOOST_TEST(are_equal(got.gradients, expected.gradients));
}

BOOST_AUTO_TEST_SUITE(exec_gloo)

// Before any test here has a thread: rank 1 is killed in a backward. Returns what the others say, by rank.
Lines killed_in_the_midst(const Program& program) {
  constexpr int ranks = 3;
  const Scratch scratch;
  const auto result = [&](int rank) { return scratch / fmt::format("result{}", rank); };
  const auto run = [&](int rank) {
    const auto world =
        process_group(gloo_group(c10::make_intrusive<c10d::FileStore>(scratch / "store", ranks), rank, ranks));
    TrainOptions options = two_clipped_steps(program, "mlp");
    options.before_op = [&](int of, Op op) {
      if (of == 1 && op.kind == Kind::backward && op.micro_batch == 2) ::raise(SIGKILL);
    };
    (void)train(*world, program, options);
  };
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    children.push_back(::fork());
    if (children.back() != 0) continue;
    try {
      run(rank);
    } catch (const std::exception& error) {
      std::ofstream(result(rank)) << error.what();
    }
    ::_exit(0);
  }
  Lines texts;
  for (int rank = 0; rank < ranks; ++rank) {
    ::waitpid(children[static_cast<std::size_t>(rank)], nullptr, 0);
    std::stringstream text;
    text << std::ifstream(result(rank)).rdbuf();
    texts.push_back(text.str());
  }
  return texts;
}

BOOST_AUTO_TEST_CASE(a_killed_process_is_named) {
  const auto begin = std::chrono::steady_clock::now();
  const Lines texts = killed_in_the_midst(program_of("1f1b", 3));
  BOOST_TEST((std::chrono::steady_clock::now() - begin < 8s));
  for (const std::size_t rank : {0U, 2U}) {
    BOOST_TEST(texts[rank].starts_with("rank "), texts[rank]);
    BOOST_TEST(contains(texts[rank], " rank 1 failed: "), texts[rank]);
  }
  BOOST_TEST(texts[1] == "");
}

BOOST_AUTO_TEST_CASE(a_work_is_as_the_transport_takes_it_to_be) {
  const Groups groups(2);
  std::vector<at::Tensor> sent{at::ones({8})};
  std::vector<at::Tensor> received{at::zeros({8})};
  const auto receive = groups.of(1)->recv(received, 0, 5);
  const auto send = groups.of(0)->send(sent, 1, 5);
  const auto deadline = std::chrono::steady_clock::now() + 5s;
  while (received[0][0].item<float>() == 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(1ms);
  }
  BOOST_TEST(!receive->isCompleted());
  BOOST_TEST(!send->isCompleted());
  BOOST_TEST(receive->wait(std::chrono::hours(24 * 365 * 100)));
  BOOST_TEST(send->wait(std::chrono::hours(24 * 365 * 100)));
  BOOST_TEST(receive->isCompleted());

  const auto never = groups.of(1)->recv(received, 0, 6);
  {
    const std::jthread aborting([&] {
      std::this_thread::sleep_for(50ms);
      never->abort();
    });
    BOOST_TEST(!never->wait(std::chrono::hours(24 * 365 * 100)));
  }
  const auto again = groups.of(1)->recv(received, 0, 7);
  BOOST_TEST(groups.of(0)->send(sent, 1, 7)->wait(10s));
  BOOST_TEST(again->wait(10s));  // the abort has left the connection as it was

  BOOST_CHECK_THROW(groups.of(1)->recv(received, 0, 8)->wait(50ms), std::runtime_error);
  BOOST_CHECK_THROW(
      {
        (void)groups.of(0)->send(sent, 1, 9)->wait(5s);
        groups.of(1)->recv(received, 0, 9)->wait(5s);
      },
      std::runtime_error);  // a wait that expired has not
}

BOOST_DATA_TEST_CASE(trains_like_threads, data::make({"1f1b", "zb1p", "dualpipe", "dualpipev", "interleaved"}), name) {
  const Program program = program_of(name, 4);
  check_trains(Groups(4), program, two_clipped_steps(program, "mlp"));
}

// More than a socket takes at once.
BOOST_AUTO_TEST_CASE(large_messages) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = two_clipped_steps(program, "mlp");
  options.shape.hidden = 256;
  options.shape.batch = 512;
  check_trains(Groups(2), program, options);
}

BOOST_AUTO_TEST_CASE(a_message_has_any_number_of_tensors) {
  BOOST_TEST(Groups(2).run([](World& world) {
    for (const Messages& each : many_messages()) exchange_messages(world, each);
  }) == Lines(2),
             boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(a_group_can_be_used_again_after_a_rank_that_stopped_or_threw) {
  const Groups groups(4);
  const Program program = program_of("1f1b", 4);
  const TrainOptions options = two_clipped_steps(program, "mlp");
  TrainOptions failing = options;
  failing.transport.timeout = 400ms;
  failing.before_op = [](int rank, Op op) {
    if (rank == 1 && op.kind == Kind::backward && op.micro_batch == 2) std::this_thread::sleep_for(1500ms);
  };
  const auto run = [&](World& world) { (void)train(world, program, failing); };
  for (const std::string& each : groups.run(run)) BOOST_TEST(contains(each, "waited 0.4 s for rank "), each);
  failing.before_op = [](int rank, Op op) {
    if (rank == 2 && op.micro_batch == 3) throw std::runtime_error("out of paper");
  };
  failing.transport.timeout = 10s;
  for (const std::string& each : groups.run(run)) BOOST_TEST(contains(each, "out of paper"), each);
  check_trains(groups, program, options);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
