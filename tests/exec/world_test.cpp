// What the processes of a World tell each other, whatever carries it.
#include "dualpipe/exec/transport/world.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/sim/schedule/placement.h"
#include "tests/exec/direct_world.h"

namespace dualpipe::test {
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
  BOOST_TEST(processes.network.sent(Parcel::Kind::gather) == rounds * count * log);
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

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
