// The cuts that are found, against all that there are.
#include "dualpipe/sim/costs/partition.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "tests/support.h"

namespace dualpipe::detail::costs {
namespace {

using Counts = std::vector<int>;
using test::Random;

// Calls `visit(counts)` with each way to put `whole` things into so many runs, none of them empty.
void visit_ways(int whole, int runs, Counts& counts, const std::function<void(const Counts&)>& visit) {
  if (runs == 0) {
    if (whole == 0) visit(counts);
    return;
  }
  for (int first = 1; first <= whole; ++first) {
    counts.push_back(first);
    visit_ways(whole - first, runs - 1, counts, visit);
    counts.pop_back();
  }
}

// The load of the rank that has most, straight from the placement: of a chain whose stages have these loads.
Time most_loaded(const Placement& placement, const std::vector<Time>& stages) {
  std::vector<Time> ranks(static_cast<std::size_t>(placement.ranks));
  for (int stage = 0; stage < placement.stages(); ++stage) {
    const auto s = static_cast<std::size_t>(stage);
    ranks[placement.rank_of[s]] += stages[s % stages.size()];
  }
  return *std::ranges::max_element(ranks);
}

Time load_of_cut(const Placement& placement, const std::vector<Time>& parts, const Counts& counts) {
  std::vector<Time> stages;
  auto part = parts.begin();
  for (const int count : counts) {
    stages.push_back(std::accumulate(part, part + count, Time{0}));
    part += count;
  }
  return most_loaded(placement, stages);
}

Time load_of_division(const Placement& placement, const std::vector<LoadTimes>& parts, const Counts& counts) {
  std::vector<Time> stages;
  for (std::size_t part = 0; part < parts.size(); ++part) {
    for (int i = 0; i < counts[part]; ++i) {
      Time& load = stages.emplace_back(0);
      for (const Time time : parts[part]) load += share_of(time, i, counts[part]);
    }
  }
  return most_loaded(placement, stages);
}

Time least_over_all(int whole, int runs, const std::function<Time(const Counts&)>& load) {
  Time least = std::numeric_limits<Time>::max();
  Counts counts;
  visit_ways(whole, runs, counts, [&](const Counts& each) { least = std::min(least, load(each)); });
  return least;
}

int chain_length(const Placement& placement) { return placement.chain_begin[1]; }

// A wave of so many Vs.
Placement wave(int ranks, int vs) {
  std::vector<int> rank_of;
  for (int i = 0; i < vs; ++i) {
    for (int rank = 0; rank < ranks; ++rank) rank_of.push_back(rank);
    for (int rank = ranks; rank-- > 0;) rank_of.push_back(rank);
  }
  return one_chain(rank_of);
}

// What the catalog has, and a wave, a Dual pipe with a rank in its middle, two chains of one direction, and ranks that
// hold what no schedule puts there.
std::vector<Placement> placements(int stages_max) {
  std::vector<Placement> all;
  for (int ranks = 1; ranks <= stages_max; ++ranks) {
    for (int chunks = 1; ranks * chunks <= stages_max; ++chunks) all.push_back(straight(ranks, chunks));
    if (2 * ranks <= stages_max) all.push_back(v_shape(ranks));
    all.push_back(two_way(ranks));
    Placement one_way = two_way(ranks);
    for (int rank = 0; rank < ranks; ++rank) {
      one_way.rank_of[static_cast<std::size_t>(ranks + rank)] = static_cast<std::uint16_t>(rank);
    }
    all.push_back(one_way);
  }
  if (stages_max >= 4) all.push_back(wave(1, 2));
  if (stages_max >= 5) {
    for (const std::vector<int>& rank_of : {std::vector{0, 1, 0, 2, 1}, {0, 0, 1, 1, 0}, {2, 0, 1, 1, 2}}) {
      all.push_back(one_chain(rank_of));
    }
  }
  if (stages_max >= 8) all.push_back(wave(2, 2));
  return all;
}

// Small ones, for ties; large ones, so that there is none; zeros; and one that outweighs all others.
Time draw(Random& random, int kind) {
  switch (kind) {
    case 0:
      return random.between(0, 2);
    case 1:
      return random.between(0, time_max / 100);
    case 2:
      return 7;
    case 3:
      return 0;
    default:
      return random.one_in(4) ? random.between(0, 10'000) : random.between(0, 100);
  }
}
constexpr int kinds = 5;

std::string text_of(const Placement& placement, const std::vector<Time>& loads) {
  std::string text = "ranks";
  for (const int rank : placement.rank_of) text += " " + std::to_string(rank);
  text += ", loads";
  for (const Time load : loads) text += " " + std::to_string(load);
  return text;
}

// Checks one cut; returns the load of its most loaded rank.
Time checked_cut(const Placement& placement, const std::vector<Time>& loads) {
  const int stages = chain_length(placement);
  const Counts counts = parts_of_stages(loads, stages_of_ranks(placement), stages);
  BOOST_REQUIRE(counts.size() == static_cast<std::size_t>(stages));
  BOOST_REQUIRE(std::accumulate(counts.begin(), counts.end(), 0) == static_cast<int>(loads.size()));
  BOOST_REQUIRE(*std::ranges::min_element(counts) >= 1);
  BOOST_REQUIRE((counts == parts_of_stages(loads, stages_of_ranks(placement), stages)));
  return load_of_cut(placement, loads, counts);
}

BOOST_AUTO_TEST_SUITE(costs_partition)

BOOST_AUTO_TEST_CASE(no_cut_of_a_small_model_is_better) {
  Random random(1);
  for (const Placement& placement : placements(5)) {
    const int stages = chain_length(placement);
    for (int parts = stages; parts <= 7; ++parts) {
      for (int i = 0; i < 30; ++i) {
        std::vector<Time> loads;
        for (int part = 0; part < parts; ++part) loads.push_back(draw(random, i % kinds));
        const Time least =
            least_over_all(parts, stages, [&](const Counts& each) { return load_of_cut(placement, loads, each); });
        BOOST_TEST_INFO(text_of(placement, loads));
        BOOST_REQUIRE(checked_cut(placement, loads) == least);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(no_cut_of_a_larger_model_is_better) {
  Random random(2);
  for (const Placement& placement : placements(8)) {
    const int stages = chain_length(placement);
    for (int i = 0; i < kinds; ++i) {
      std::vector<Time> loads;
      for (int part = 0; part < stages + 6; ++part) loads.push_back(draw(random, i));
      const Time least =
          least_over_all(stages + 6, stages, [&](const Counts& each) { return load_of_cut(placement, loads, each); });
      BOOST_TEST_INFO(text_of(placement, loads));
      BOOST_REQUIRE(checked_cut(placement, loads) == least);
    }
  }
}

BOOST_AUTO_TEST_CASE(no_division_of_a_small_model_is_better) {
  Random random(3);
  for (const Placement& placement : placements(8)) {
    const int stages = chain_length(placement);
    for (int parts = 1; parts < stages && parts <= 5; ++parts) {
      for (int i = 0; i < 3 * kinds; ++i) {
        std::vector<LoadTimes> times;
        for (int part = 0; part < parts; ++part) {
          times.push_back({draw(random, i % kinds), draw(random, i % kinds), draw(random, i % kinds)});
        }
        const Counts counts = stages_of_parts(times, stages_of_ranks(placement), stages);
        BOOST_REQUIRE(counts.size() == static_cast<std::size_t>(parts));
        BOOST_REQUIRE(std::accumulate(counts.begin(), counts.end(), 0) == stages);
        BOOST_REQUIRE(*std::ranges::min_element(counts) >= 1);
        const Time least =
            least_over_all(stages, parts, [&](const Counts& each) { return load_of_division(placement, times, each); });
        BOOST_REQUIRE(load_of_division(placement, times, counts) == least);
      }
    }
  }
}

// Equal layers, the usual case, are cut as evenly as they can be.
BOOST_AUTO_TEST_CASE(equal_parts_are_cut_evenly) {
  for (const Placement& placement : {straight(8, 1), v_shape(4), two_way(8), straight(4, 2), wave(2, 2)}) {
    const std::vector<Time> loads(32, 1'000'000);
    BOOST_TEST((parts_of_stages(loads, stages_of_ranks(placement), 8) == Counts(8, 4)));
    BOOST_TEST((parts_of_stages(std::vector<Time>(32), stages_of_ranks(placement), 8) == Counts(8, 4)));
    const std::vector<LoadTimes> times(4, {1'000'000});
    BOOST_TEST((stages_of_parts(times, stages_of_ranks(placement), 8) == Counts(4, 2)));
    BOOST_TEST((stages_of_parts(std::vector<LoadTimes>(4, {0}), stages_of_ranks(placement), 8) == Counts(4, 2)));
  }
}

// The search ends, also where it gives up.
BOOST_AUTO_TEST_CASE(models_of_any_size_are_cut_in_time) {
  Random random(4);
  const auto begin = std::chrono::steady_clock::now();
  for (const Placement& placement :
       {straight(16, 1), v_shape(8), two_way(16), straight(8, 2), straight(4, 4), wave(4, 2), straight(1, 1)}) {
    for (const int parts : {16, 33, 100, 200}) {
      for (int kind = 0; kind < kinds; ++kind) {
        std::vector<Time> loads;
        for (int part = 0; part < parts; ++part) loads.push_back(draw(random, kind) + (kind == 2 ? part % 2 : 0));
        const Time all = std::accumulate(loads.begin(), loads.end(), Time{0});
        const Time largest = *std::ranges::max_element(loads);
        // A rank has at most its share and, for each of its stages, a part more.
        BOOST_TEST(checked_cut(placement, loads) <= all / placement.ranks * placement.chains() + 4 * largest + 1);
      }
    }
  }
  BOOST_TEST((std::chrono::steady_clock::now() - begin < std::chrono::minutes(2)));
}

BOOST_AUTO_TEST_CASE(shares_add_up) {
  for (const std::int64_t amount : {std::int64_t{0}, std::int64_t{1}, std::int64_t{7}, std::int64_t{8}, bytes_max}) {
    for (const int count : {1, 2, 3, 7, 8, 65'535}) {
      std::int64_t sum = 0;
      for (int i = 0; i < count; ++i) {
        const std::int64_t share = share_of(amount, i, count);
        BOOST_REQUIRE((share == amount / count || share == amount / count + 1));
        sum += share;
      }
      BOOST_TEST(sum == amount);
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::detail::costs
