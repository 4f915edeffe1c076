// What the processes of a World tell each other, whatever carries it.
#include "dualpipe/exec/transport/world.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/pack.h"
#include "dualpipe/exec/transport/tensor_spec.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/exec/transport/wire_message.h"
#include "dualpipe/sim/schedule/placement.h"
#include "tests/exec/direct_world.h"

namespace dualpipe::test {

using detail::transport::header_of;
using detail::transport::message_of_header;
using detail::transport::Packer;
using detail::transport::TensorSpec;
using detail::transport::WireMessage;

namespace {

namespace data = boost::unit_test::data;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

struct Processes {
  explicit Processes(int count, std::chrono::nanoseconds timeout = 20s) : network(count) {
    for (int process = 0; process < count; ++process) {
      worlds.push_back(std::make_unique<DirectWorld>(process, network, timeout));
    }
  }

  // Runs this in each process, and returns what each threw, "": nothing.
  std::vector<std::string> run(const std::function<void(World& world)>& body) {
    std::vector<std::string> errors(worlds.size());
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < worlds.size(); ++i) {
      threads.emplace_back([&, i] {
        try {
          body(*worlds[i]);
        } catch (const std::exception& error) {
          errors[i] = error.what();
        }
      });
    }
    threads.clear();
    return errors;
  }

  DirectNetwork network;
  std::vector<std::unique_ptr<DirectWorld>> worlds;
};

std::vector<std::string> nothing_from(int processes) {
  return std::vector<std::string>(static_cast<std::size_t>(processes));
}

Op op(Kind kind, int stage, std::uint32_t micro_batch = 0) {
  return {micro_batch, static_cast<std::uint16_t>(stage), kind, false};
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_world)

// --- all_gather

BOOST_DATA_TEST_CASE(an_all_gather_brings_all_parts_in_p_log_p_messages, data::make({1, 2, 3, 4, 5, 8, 13, 32, 64}),
                     count) {
  Processes processes(count);
  constexpr int rounds = 3;
  const auto errors = processes.run([&](World& world) {
    for (int round = 0; round < rounds; ++round) {
      const auto all = world.all_gather("a round", fmt::format("{} of {}", round, world.process()));
      if (std::ssize(all) != count) throw std::runtime_error("not all parts");
      for (int each = 0; each < count; ++each) {
        const std::string& part = all[static_cast<std::size_t>(each)];
        if (part != fmt::format("{} of {}", round, each)) throw std::runtime_error("in place of another: " + part);
      }
    }
  });
  BOOST_TEST(errors == nothing_from(count), boost::test_tools::per_element());
  const auto log = static_cast<int>(std::bit_width(static_cast<unsigned>(count - 1)));
  BOOST_TEST(processes.network.sent(WireMessage::Kind::gather) == rounds * count * log);
}

// Whichever it is, all others name it, and no other.
BOOST_DATA_TEST_CASE(whoever_does_not_come_to_an_all_gather_is_named, data::make({2, 5, 8}) * data::xrange(3), count,
                     turn) {
  Processes processes(count, 50ms);
  const std::vector<int> absent =
      turn == 2 && count > 2 ? std::vector<int>{1, 3} : std::vector<int>{turn % 2 * (count - 1)};
  const auto errors = processes.run([&](World& world) {
    if (std::ranges::find(absent, world.process()) == absent.end()) (void)world.all_gather("the feast", "");
  });
  std::vector<std::string> names;
  for (const int each : absent) names.push_back(fmt::format("process {}", each));
  const std::string expected = fmt::format("{} did not come to the feast within 0.05 s", fmt::join(names, ", "));
  for (int process = 0; process < count; ++process) {
    const bool came = std::ranges::find(absent, process) == absent.end();
    BOOST_TEST(errors[static_cast<std::size_t>(process)] == (came ? expected : ""));
  }
}

BOOST_DATA_TEST_CASE(processes_at_different_places_are_named_in_each, data::make({2, 5, 8}), count) {
  Processes processes(count);
  const auto errors =
      processes.run([&](World& world) { (void)world.all_gather(world.process() == count - 1 ? "there" : "here", ""); });
  for (const std::string& each : errors) {
    BOOST_TEST(each.find(fmt::format("process {} at there; were they started", count - 1)) != std::string::npos, each);
    BOOST_TEST(each.find(" is at here, and ") != std::string::npos, each);
  }
}

BOOST_AUTO_TEST_CASE(who_waits_in_an_all_gather_hears_an_abort) {
  Processes processes(5);
  const auto begin = Clock::now();
  const auto errors = processes.run([&](World& world) {
    const auto transports = world.transports(straight(5, 1), {20s, 0ns});
    if (world.process() == 3) {
      std::this_thread::sleep_for(20ms);
      return transports[3]->abort("rank 3 failed");
    }
    (void)world.all_gather("the feast", "");
  });
  for (std::size_t process = 0; process < 5; ++process)
    BOOST_TEST(errors[process] == (process == 3 ? "" : "rank 3 failed"));
  BOOST_TEST((Clock::now() - begin < 10s));
}

// --- what another process may send

// Two processes are in their first run, of straight(2, 1), and what process 1 sends cannot be taken in: both hear it.
void check_refused(int from, const std::vector<WireMessage>& messages, const std::string& reason) {
  Processes processes(2);
  const auto begin = Clock::now();
  const auto errors = processes.run([&](World& world) {
    const auto transports = world.transports(straight(2, 1), {20s, 0ns});
    if (world.process() == 0) return (void)transports[0]->wait(op(Kind::receive_backward, 0));
    for (const WireMessage& each : messages) processes.network.receivers[0]->deliver(from, each);
    (void)transports[1]->wait(op(Kind::receive_forward, 1));
  });
  const std::string expected = fmt::format("process 0 cannot take in what process {} sent: {}", from, reason);
  for (const std::string& each : errors) BOOST_TEST(each == expected);
  BOOST_TEST((Clock::now() - begin < 10s));
}

WireMessage message(Op receive, int rank) {
  return {.kind = WireMessage::Kind::message, .receive = receive, .rank = rank, .run = 1, .tensors = {at::empty({1})}};
}

BOOST_AUTO_TEST_CASE(a_message_that_no_rank_sends_ends_the_run) {
  const WireMessage plain = message(op(Kind::receive_backward, 0), 0);
  const auto of_run = [&](int run) {
    WireMessage changed = plain;
    changed.run = run;
    return changed;
  };
  check_refused(1, {of_run(0)}, "a message of run 0; this is run 1");
  check_refused(1, {of_run(2)}, "a message of run 2; this is run 1");
  check_refused(9, {plain}, "there are 2 processes");
  check_refused(1, {message(op(Kind::forward, 0), 0)},
                "a message for micro-batch 0 of stage 0 and op kind 0, which no rank runs");
  check_refused(1, {message(op(static_cast<Kind>(77), 0), 0)},
                "a message for micro-batch 0 of stage 0 and op kind 77, which no rank runs");
  check_refused(1, {message(op(Kind::receive_forward, 7), 0)},
                "a message for micro-batch 0 of stage 7 and op kind 5, which no rank runs");
  check_refused(1, {message(op(Kind::receive_forward, 0), 0)},  // the first of its chain
                "a message for micro-batch 0 of stage 0 and op kind 5, which no rank runs");
  check_refused(1, {message(op(Kind::receive_backward, 0, 1U << 24U), 0)},
                "a message for micro-batch 16777216 of stage 0 and op kind 7, which no rank runs");
  check_refused(1, {message(op(Kind::receive_backward, 0), 5)}, "a message for 0RECV_B0 on rank 5; it is on rank 0");
  check_refused(1, {message(op(Kind::receive_forward, 1), 1)}, "what rank 0 sends to rank 1, which are not theirs");
  WireMessage changed = plain;
  changed.sent = Clock::time_point::max();
  check_refused(1, {changed}, "a time of 9223372036854775807 ns, which no clock of a running machine shows");
}

// What rank 1 brings to the sum over all ranks, unless it says something else.
WireMessage part(const std::vector<int>& stages = {0, 1}, bool is_sum = true, int index = 1, int rank = 1) {
  return {.kind = WireMessage::Kind::part, .rank = rank, .index = index, .run = 1, .group = {is_sum, stages}};
}

BOOST_AUTO_TEST_CASE(a_part_of_a_sum_that_no_rank_sends_ends_the_run) {
  check_refused(1, {part({0, 9}, false)}, "sums over stages 0, 9, which are no group");
  check_refused(1, {part({-1, 1}, false)}, "sums over stages -1, 1, which are no group");
  check_refused(1, {part({1, 0}, false)}, "sums over stages 1, 0, which are no group");
  check_refused(1, {part({0}, false)}, "sums over stages 0, which are no group");
  check_refused(1, {part({}, false)}, "sums over stages , which are no group");
  check_refused(1, {part({0, 0, 1})}, "sums over stages 0, 0, 1, which are no group");
  const auto among = [](int index, int rank) { return part({0, 1}, true, index, rank); };
  check_refused(1, {among(7, 1)}, "sums over stages 0, 1, and among these number 7 of rank 1, which it is not");
  check_refused(1, {among(-1, 1)}, "sums over stages 0, 1, and among these number -1 of rank 1, which it is not");
  check_refused(1, {among(0, 1)}, "sums over stages 0, 1, and among these number 0 of rank 1, which it is not");
  check_refused(1, {among(0, 0)}, "what rank 0 sends to rank 0, which are not theirs");
  check_refused(1, {part(), part()}, "what stage 1 (rank 1) brings to the sum over stages 0, 1, twice");
  WireMessage sums = part();
  sums.kind = WireMessage::Kind::sums;
  check_refused(1, {sums}, "what rank 0 sends to rank 1, which are not theirs");
}

BOOST_AUTO_TEST_CASE(a_sum_of_something_else_is_noticed) {
  Processes processes(2);
  const auto errors = processes.run([&](World& world) {
    const auto transports = world.transports(straight(2, 1), {20s, 0ns});
    if (world.process() == 0) return;
    const WireMessage sums{
        .kind = WireMessage::Kind::sums, .rank = 1, .run = 1, .group = {true, {0, 1}}, .tensors = {at::zeros({2})}};
    processes.network.receivers[1]->deliver(0, sums);
    (void)transports[1]->sum(1);
  });
  BOOST_TEST(errors[1] == "rank 0 made Float[2] of Double[1]");
}

// Before there are tensors, their receiver has to know that there can be.
BOOST_AUTO_TEST_CASE(a_header_that_no_process_sends_makes_no_tensors) {
  const auto refusal = [](const std::string& header) -> std::string {
    try {
      (void)message_of_header(header);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  };
  WireMessage plain = part();
  plain.note = "a note";
  const std::string without = header_of(plain);
  const std::string up_to_count = without.substr(0, without.size() - sizeof(std::size_t));
  const auto of = [&](const std::vector<TensorSpec>& specs, std::size_t count) {
    Packer packer;
    packer.put(count);
    for (const TensorSpec& each : specs) {
      packer.put(each.type);
      packer.put(each.sizes);
    }
    return up_to_count + packer.take();
  };
  const auto of_all = [&](const std::vector<TensorSpec>& specs) { return of(specs, specs.size()); };
  BOOST_TEST(refusal("") == "another process sent less than was expected");
  for (std::size_t bytes = 0; bytes < without.size(); ++bytes) BOOST_TEST(refusal(without.substr(0, bytes)) != "");
  BOOST_TEST(refusal(without + "x") == "another process sent more than was expected");
  std::string no_bool = without;  // whether it is of a sum
  no_bool[header_of({}).size() - sizeof(bool) - 3 * sizeof(std::size_t)] = '\x02';
  BOOST_TEST(refusal(no_bool) == "another process sent something else than was expected");
  BOOST_TEST(refusal(of_all({{{1}, static_cast<at::ScalarType>(120)}})) == "a tensor of type 120, which there is not");
  BOOST_TEST(refusal(of_all({{{1}, static_cast<at::ScalarType>(-1)}})) == "a tensor of type -1, which there is not");
  BOOST_TEST(refusal(of_all({{{1}, at::ScalarType::Undefined}})).find("a tensor of type ") == 0U);
  BOOST_TEST(refusal(of_all({{{3, -1}, at::kFloat}})) == "a tensor Float[3,-1]");
  BOOST_TEST(refusal(of_all({{{0, -1}, at::kFloat}})) == "a tensor Float[0,-1]");
  BOOST_TEST(refusal(of_all({{{1LL << 40U, 1LL << 40U}, at::kFloat}})) ==
             "a tensor Float[1099511627776,1099511627776]");
  BOOST_TEST(refusal(of_all({{{2}, at::kFloat}, {{1LL << 50U}, at::kByte}})) ==
             "tensors Float[2] Byte[1125899906842624], more than this host has memory");
  BOOST_TEST(refusal(of({}, std::size_t{1} << 60U)) == "another process sent less than was expected");
  BOOST_TEST(refusal(of({{{2}, at::kFloat}}, 2)) == "another process sent less than was expected");
  BOOST_TEST(refusal(of({{{2}, at::kFloat}}, 0)) == "another process sent more than was expected");
  BOOST_TEST(refusal(of_all({{{2, 3}, at::kFloat}, {}, {{0, 1LL << 40U}, at::kLong}})) == "");
  const WireMessage made = message_of_header(of_all({{{2, 3}, at::kDouble}, {}}));
  BOOST_TEST((made.kind == plain.kind && made.group == plain.group && made.note == plain.note));
  BOOST_TEST((made.tensors.size() == 2U && made.tensors[0].sizes() == at::IntArrayRef({2, 3})));
  BOOST_TEST((made.tensors[0].scalar_type() == at::kDouble && !made.tensors[1].defined()));
}

BOOST_AUTO_TEST_CASE(what_processes_do_not_send_each_other_ends_the_run) {
  check_refused(1, {{.kind = static_cast<WireMessage::Kind>(15)}}, "a message of kind 15, which there is not");
  check_refused(1, {{.kind = WireMessage::Kind::farewell}}, "a farewell, which process 0 alone sends");
  check_refused(1, {{.kind = WireMessage::Kind::pong}}, "the time, which process 0 alone sends");
  check_refused(1, {{.kind = WireMessage::Kind::ending, .note = "x"}},
                "another process sent something else than was expected");
  check_refused(1, {{.kind = WireMessage::Kind::ending, .note = std::string(100, '\1')}},
                "another process sent less than was expected");
  Packer packer;
  packer.put(std::string("the feast"));
  packer.put(std::string("bread"));
  const std::string note = packer.take();
  const auto parts = [](const std::string& bytes, int run, int index) {
    return WireMessage{.kind = WireMessage::Kind::gather, .index = index, .run = run, .note = bytes};
  };
  check_refused(0, {parts(note, 1, 1)}, "parts of an all_gather, which it passes on to others");
  check_refused(1, {parts("", 1, 1)}, "another process sent less than was expected");
  check_refused(1, {parts(note + "x", 1, 1)}, "another process sent more than was expected");
  check_refused(1, {parts(note, 1, 1), parts(note, 1, 1)}, "parts of all_gather 1 of run 1, twice");
  const auto ahead = [](int index, int run) {
    return fmt::format("parts of all_gather {} of run {}, when 1 of run 1 have begun", index, run);
  };
  check_refused(1, {parts(note, 1, 2)}, ahead(2, 1));
  check_refused(1, {parts(note, 1, -1)}, ahead(-1, 1));
  check_refused(1, {parts(note, -1, 0)}, ahead(0, -1));
  check_refused(1, {parts(note, 2, 1)}, ahead(1, 2));
  check_refused(1, {parts(note, 3, 0)}, ahead(0, 3));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
