// The transport over NCCL, with a double of NCCL: what it calls, and that pipelines run on it, and end on it.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <functional>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/message_router.h"
#include "dualpipe/exec/transport/nccl_backend.h"
#include "dualpipe/exec/transport/ordered_transport.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/rewrite.h"
#include "tests/exec/absence.h"
#include "tests/exec/nccl_double.h"
#include "tests/exec/parity.h"
#include "tests/exec/training.h"
#include "tests/exec/worlds.h"
#include "tests/support.h"

namespace dualpipe::test {

using detail::transport::AbortFlag;
using detail::transport::MessageRouter;
using detail::transport::NcclBackend;
using detail::transport::OrderedTransport;

namespace {

namespace data = boost::unit_test::data;
using namespace std::chrono_literals;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Outcome over_nccl(const std::shared_ptr<NcclDouble>& nccl, const Program& program, TrainOptions options) {
  StreamHardware hardware;
  options.hardware = &hardware;
  return trained(program, options, [&](const std::function<void(World&)>& run) {
    return in_worlds(program.schedule.ranks(), nccl, {.timeout = 10s}, run);
  });
}

void check_used_well(const NcclDouble& nccl) {
  for (const std::string& each : nccl.misuse()) BOOST_TEST_ERROR(each);
}

using Lines = std::vector<std::string>;

Lines beginning_with(const Lines& lines, const std::string& text) {
  Lines found;
  std::ranges::copy_if(lines, std::back_inserter(found),
                       [&](const std::string& each) { return each.starts_with(text); });
  return found;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_nccl)

// --- what is called

// A message is [1, 8] doubles: 64 bytes. Communicator 0 is that of the activations, 1 that of the gradients.
//
//   rank 0:  0F0 [S] 0F1 [S R] 0B0 [R] 0B1
//   rank 1:  [R] 1F0 [R] 1B0 [S] 1F1 1B1 [S]
BOOST_AUTO_TEST_CASE(a_slot_is_a_group_for_each_direction) {
  const Program program = program_of("1f1b", 2, 2);
  TrainOptions options = two_clipped_steps(program, "mlp");
  options.clip = 0;
  options.steps = 1;
  const auto nccl = std::make_shared<NcclDouble>();
  const Outcome got = over_nccl(nccl, program, options);
  BOOST_TEST(got.errors == Lines(2), boost::test_tools::per_element());
  check_used_well(*nccl);
  const Lines of_0{"init 0",          "init 1",          "0: send 1 to 1",       "1: receive 1 from 1",
                   "0: send 64 to 1", "0: send 64 to 1", "1: receive 64 from 1", "1: receive 64 from 1",
                   "finalize 0",      "destroy 0",       "finalize 1",           "destroy 1"};
  Lines of_1;
  for (std::string each : of_0) {
    const bool is_send = contains(each, "send");
    if (const auto at = each.find(is_send ? "send" : "receive"); at != std::string::npos) {
      const std::string bytes = contains(each, " 64 ") ? "64" : "1";
      each = each.substr(0, at) + (is_send ? "receive " + bytes + " from 0" : "send " + bytes + " to 0");
    }
    of_1.push_back(each);
  }
  BOOST_TEST(nccl->calls(0) == of_0, boost::test_tools::per_element());
  BOOST_TEST(nccl->calls(1) == of_1, boost::test_tools::per_element());
}

// Every batch of the Program, in its order, as the group or groups that it says; in the second step, when all know what
// they receive.
BOOST_DATA_TEST_CASE(groups_are_the_batches_of_the_program, data::make({"1f1b", "dualpipe", "dualpipev", "zb1p"}),
                     name) {
  const Program program = program_of(name, 4);
  TrainOptions options = two_clipped_steps(program, "mlp");
  options.clip = 0;
  const auto nccl = std::make_shared<NcclDouble>();
  BOOST_TEST(over_nccl(nccl, program, options).errors == Lines(4), boost::test_tools::per_element());
  check_used_well(*nccl);
  const Placement& placement = program.schedule.placement;
  for (int rank = 0; rank < 4; ++rank) {
    for (const bool forward : {true, false}) {
      Lines expected;
      std::vector<std::string> batch;
      for (std::size_t position = 0; position <= program.schedule.rank(rank).size(); ++position) {
        for (const Op each : program.slot(rank, position)) {
          const bool is_forward = each.kind == Kind::send_forward || each.kind == Kind::receive_forward;
          if ((is_send(each.kind) || is_receive(each.kind)) && is_forward == forward) {
            const int peer = placement.rank_of[peer_of(each, placement).stage];
            batch.push_back(is_send(each.kind) ? fmt::format("send 64 to {}", peer)
                                               : fmt::format("receive 64 from {}", peer));
          }
          if (each.with_next || batch.empty()) continue;
          expected.push_back(fmt::format("{}: {}", forward ? 0 : 1, fmt::join(std::exchange(batch, {}), ", ")));
        }
      }
      Lines got = beginning_with(nccl->calls(rank), forward ? "0: " : "1: ");
      std::erase_if(got, [](const std::string& each) { return !contains(each, " 64 "); });
      BOOST_REQUIRE(got.size() >= 2 * expected.size());
      got.erase(got.begin(), got.end() - std::ssize(expected));
      BOOST_TEST(got == expected, boost::test_tools::per_element());
    }
  }
}

BOOST_AUTO_TEST_CASE(a_message_has_any_number_of_tensors) {
  for (const Messages& messages : many_messages()) {
    const auto nccl = std::make_shared<NcclDouble>();
    StreamHardware hardware;
    const auto errors =
        in_worlds(2, nccl, {.timeout = 10s}, [&](World& world) { exchange_messages(world, messages, &hardware); });
    BOOST_TEST(errors == Lines(2), boost::test_tools::per_element());
    check_used_well(*nccl);
    if (messages.there.size() != 3 || messages.there[2].scalar_type() != at::kBool) continue;
    // All of a message are one group.
    BOOST_TEST(beginning_with(nccl->calls(0), "0: send 96 to 1, send 48 to 1, send 3 to 1").size() == 2U);
  }
}

// Its receiver makes room for a message before it comes.
BOOST_AUTO_TEST_CASE(a_boundary_keeps_the_shape_of_its_first_message) {
  const auto nccl = std::make_shared<NcclDouble>();
  const Program program = program_of("gpipe", 2, 4);
  const auto send_error = [](Transport& transport, std::uint32_t micro_batch, const at::Tensor& tensor) -> std::string {
    try {
      transport.send({micro_batch, 0, Kind::send_forward, false}, {tensor}, {});
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  };
  const auto errors = in_worlds(2, nccl, {.timeout = 10s}, [&](World& world) {
    StreamDevice device;
    device.use({});
    const auto transports = world.transports(straight(2, 1), {.timeout = 10s});
    Transport& transport = *transports[static_cast<std::size_t>(world.process())];
    transport.begin(program, device);
    if (world.process() != 0) return;
    const at::Tensor first = at::zeros({2, 3});
    BOOST_TEST(send_error(transport, 0, first) == "");
    BOOST_TEST(send_error(transport, 1, first) == "");
    BOOST_TEST(send_error(transport, 2, at::zeros({3, 2})) ==
               "stage 0 (rank 0) sends Float[3,2] in 0SEND_F2 to stage 1 (rank 1), but sent Float[2,3] in 0SEND_F0");
    BOOST_TEST(send_error(transport, 3, first.to(at::kDouble)) ==
               "stage 0 (rank 0) sends Double[2,3] in 0SEND_F3 to stage 1 (rank 1), but sent Float[2,3] in 0SEND_F0");
  });
  BOOST_TEST(errors == Lines(2), boost::test_tools::per_element());
}

// --- the same bits as over threads

BOOST_DATA_TEST_CASE(trains_like_threads, data::make(family_names()) * data::make({2, 4}), name, ranks) {
  const Program program = program_of(name, ranks);
  for (const std::string model : {"mlp", "gpt"}) {
    if (model == "gpt" && ranks == 2) continue;
    TrainOptions options = two_clipped_steps(program, model);
    options.shape.tied = model == "gpt";
    const auto nccl = std::make_shared<NcclDouble>();
    const Outcome got = over_nccl(nccl, program, options);
    const Outcome expected = trained_over_threads(program, options);
    BOOST_TEST(got.errors == Lines(static_cast<std::size_t>(ranks)), boost::test_tools::per_element());
    BOOST_TEST(got.losses == expected.losses);
    BOOST_TEST(!expected.gradients.empty());
    BOOST_TEST(are_equal(got.gradients, expected.gradients));
    check_used_well(*nccl);
  }
}

BOOST_AUTO_TEST_CASE(evaluates_and_runs_passes_apart) {
  const Program program = program_of("dualpipe", 4);
  TrainOptions options = two_clipped_steps(program, "mlp");
  options.warmup = 4;
  options.measure_passes = true;
  const auto nccl = std::make_shared<NcclDouble>();
  const Outcome got = over_nccl(nccl, program, options);
  BOOST_TEST(got.errors == Lines(4), boost::test_tools::per_element());
  BOOST_TEST(got.losses == trained_over_threads(program, options).losses);
  const Program forwards = lower(forwards_of(program.schedule));
  options.forward_only = true;
  const auto nccl_of_evaluation = std::make_shared<NcclDouble>();
  const Outcome evaluated = over_nccl(nccl_of_evaluation, forwards, options);
  BOOST_TEST(evaluated.errors == Lines(4), boost::test_tools::per_element());
  BOOST_TEST(evaluated.losses == trained_over_threads(forwards, options).losses);
  check_used_well(*nccl_of_evaluation);
  check_used_well(*nccl);
}

// --- failures

// All end, soon, with the same cause; every communicator is aborted once.
BOOST_AUTO_TEST_CASE(a_rank_that_throws_ends_all) {
  const Program program = program_of("dualpipev", 4);
  TrainOptions options = two_clipped_steps(program, "mlp");
  options.before_op = [](int rank, Op op) {
    if (rank == 2 && op.micro_batch == 3) throw std::runtime_error("out of paper");
  };
  const auto nccl = std::make_shared<NcclDouble>();
  const auto begin = std::chrono::steady_clock::now();
  const Outcome got = over_nccl(nccl, program, options);
  BOOST_TEST((std::chrono::steady_clock::now() - begin < options.transport.timeout));
  for (const std::string& each : got.errors) {
    BOOST_TEST(each.starts_with("rank 2 failed in "), each);
    BOOST_TEST(contains(each, "out of paper"), each);
  }
  for (int rank = 0; rank < 4; ++rank) {
    const Lines calls = nccl->calls(rank);
    BOOST_TEST(std::ranges::count(calls, "abort 0") == 1);
    BOOST_TEST(std::ranges::count(calls, "abort 1") == 1);
    BOOST_TEST(calls.size() > 6U);
    BOOST_TEST(beginning_with(calls, "finalize").empty());
    BOOST_TEST(contains(calls.back(), "abort"), calls.back());
  }
  check_used_well(*nccl);
}

// Its neighbours' groups do not end: their streams hang, and with them their threads, until the communicators are
// aborted.
BOOST_DATA_TEST_CASE(a_rank_that_stops_is_waited_for_no_longer_than_the_timeout, data::make({0, 1, 3}), bad) {
  const Program program = program_of("1f1b", 4);
  TrainOptions options = two_clipped_steps(program, "mlp");
  options.transport.timeout = 400ms;
  Absence absence(3);
  options.before_op = [&](int rank, Op op) {
    if (rank == bad && op.kind == Kind::backward && op.micro_batch == 2) absence.begin();
  };
  const auto nccl = std::make_shared<NcclDouble>();
  StreamHardware hardware;
  options.hardware = &hardware;
  const Lines errors = in_worlds(4, nccl, {.timeout = 10s}, [&](World& world) {
    try {
      (void)train(world, program, options);
    } catch (...) {
      if (world.process() != bad) absence.one_has_ended();
      throw;
    }
  });
  BOOST_TEST(!absence.was_too_short());
  for (std::size_t rank = 0; rank < 4; ++rank) {
    // Of whoever was the first to wait so long, perhaps for one who waits, too; and several may be first.
    BOOST_TEST(contains(errors[rank], "waited 0.4 s for rank "), errors[rank]);
    const Lines calls = nccl->calls(static_cast<int>(rank));
    BOOST_TEST(std::ranges::count(calls, "abort 0") == 1);
    BOOST_TEST(std::ranges::count(calls, "abort 1") == 1);
  }
  check_used_well(*nccl);
}

// NCCL's start, too, waits no longer than the timeout for a rank that does not come to it.
BOOST_AUTO_TEST_CASE(a_rank_that_does_not_connect_is_waited_for_no_longer_than_the_timeout) {
  const Placement placement = straight(2, 1);
  const TransportOptions options{.timeout = 300ms};
  const auto abort_flag = std::make_shared<AbortFlag>();
  const auto router = std::make_shared<MessageRouter>(placement, options, abort_flag, false, nullptr);
  const auto nccl = std::make_shared<NcclDouble>();
  const NcclBackend::UniqueIds ids{nccl->unique_id(), nccl->unique_id()};
  OrderedTransport transport(std::make_unique<NcclBackend>(nccl, ids, 0, 2), placement, 0, options, router, abort_flag);
  StreamDevice device;
  device.use({});
  BOOST_CHECK_EXCEPTION(transport.begin(program_of("1f1b", 2), device), TimeoutError, [](const auto& error) {
    return contains(error.what(), "rank 0 waited 0.3 s for NCCL to make a communicator of all ranks");
  });
}

// Where it is asked in a step's beginning, it does something else at first.
class SlowDevice final : public StreamDevice {
 public:
  std::function<void()> meanwhile;
  [[nodiscard]] at::Device where() const override {
    if (meanwhile) meanwhile();
    return StreamDevice::where();
  }
};

// Its communicators are gone then, but it does not take that for a first step. Nothing but the transport's own mutex
// orders the two threads here, so that a sanitizer sees what is read without it.
BOOST_AUTO_TEST_CASE(an_abort_while_a_step_begins_ends_it) {
  const Program program = program_of("1f1b", 2);
  const Placement& placement = program.schedule.placement;
  const TransportOptions options{.timeout = 10s};
  const auto abort_flag = std::make_shared<AbortFlag>();
  const auto router = std::make_shared<MessageRouter>(placement, options, abort_flag, false, nullptr);
  const auto nccl = std::make_shared<NcclDouble>();
  const NcclBackend::UniqueIds ids{nccl->unique_id(), nccl->unique_id()};
  OrderedTransport transport(std::make_unique<NcclBackend>(nccl, ids, 0, 2), placement, 0, options, router, abort_flag);
  SlowDevice device;
  device.use({});
  {
    const std::jthread other([&] {
      OrderedTransport of_other(std::make_unique<NcclBackend>(nccl, ids, 1, 2), placement, 1, options, router,
                                abort_flag);
      StreamDevice others_device;
      others_device.use({});
      of_other.begin(program, others_device);
    });
    transport.begin(program, device);
  }
  std::atomic<bool> is_aborted = false;
  std::jthread aborting;
  device.meanwhile = [&] {
    aborting = std::jthread([&] {
      transport.abort("enough");
      is_aborted.store(true, std::memory_order_relaxed);
    });
    while (!is_aborted.load(std::memory_order_relaxed)) std::this_thread::sleep_for(1ms);
  };
  BOOST_CHECK_NO_THROW(transport.begin(program, device));
  BOOST_CHECK_EXCEPTION(transport.confirm(), TransportError,
                        [](const auto& error) { return contains(error.what(), "enough"); });
  check_used_well(*nccl);
}

BOOST_AUTO_TEST_CASE(an_error_of_nccl_ends_all) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = two_clipped_steps(program, "mlp");
  const auto nccl = std::make_shared<NcclDouble>();
  options.before_op = [&](int rank, Op op) {
    if (rank == 1 && op.micro_batch == 2 && op.kind == Kind::forward) nccl->fail(1, "NCCL: the cable is out");
  };
  for (const std::string& each : over_nccl(nccl, program, options).errors) {
    BOOST_TEST(contains(each, "rank 1"), each);
    BOOST_TEST(contains(each, "the cable is out"), each);
  }
}

BOOST_AUTO_TEST_CASE(what_nccl_cannot_do_is_refused) {
  const Program program = program_of("1f1b", 4);
  TrainOptions options = two_clipped_steps(program, "mlp");
  const auto nccl = std::make_shared<NcclDouble>();
  for (const std::string& each : in_worlds(2, nccl, {}, [&](World& world) { (void)train(world, program, options); })) {
    BOOST_TEST(contains(each, "4 ranks need 4 processes, and the launcher has started 2"), each);
  }
  const Program two = program_of("1f1b", 2);
  options = two_clipped_steps(two, "mlp");
  options.transport.link_delay = 1ms;
  for (const std::string& each : in_worlds(2, nccl, {}, [&](World& world) { (void)train(world, two, options); })) {
    BOOST_TEST(contains(each, "--link-delay"), each);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
