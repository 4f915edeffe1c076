// Whatever the order in which ranks get their ops, the schedule is the same.
#include "dualpipe/sim/schedule/schedule_builder.h"

#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <numeric>
#include <vector>

#include "dualpipe/sim/generate/catalog.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

// The schedule once more, its ranks' ops added in the order that `next_rank` says, which is called with how many ops
// each rank still lacks.
template <typename NextRank>
Schedule rebuilt(const Schedule& schedule, std::size_t ops_expected, NextRank next_rank) {
  ScheduleBuilder builder(schedule.placement, schedule.micro_batches, ops_expected);
  std::vector<std::size_t> left;
  for (int rank = 0; rank < schedule.ranks(); ++rank) left.push_back(schedule.rank(rank).size());
  for (std::size_t i = 0; i < schedule.ops.size(); ++i) {
    const int rank = next_rank(left);
    const auto ops = schedule.rank(rank);
    builder.go_to(rank);
    builder.add(ops[ops.size() - left[static_cast<std::size_t>(rank)]--]);
  }
  return builder.take(schedule.name);
}

BOOST_AUTO_TEST_SUITE(schedule_schedule_builder)

BOOST_AUTO_TEST_CASE(interleaved_is_as_rank_by_rank) {
  Random random(1);
  for (const Case& each : small_cases(5, 10)) {
    BOOST_TEST_CONTEXT(each) {
      const Schedule schedule = generate(each.family, each.shape);
      const auto any = [&](const std::vector<std::size_t>& left) {
        for (;;) {
          const auto rank = random.between(0, std::ssize(left) - 1);
          if (left[static_cast<std::size_t>(rank)] > 0) return static_cast<int>(rank);
        }
      };
      int turn = 0;
      const auto in_turn = [&](const std::vector<std::size_t>& left) {
        do turn = (turn + 1) % static_cast<int>(left.size());
        while (left[static_cast<std::size_t>(turn)] == 0);
        return turn;
      };
      const auto last_rank_first = [](const std::vector<std::size_t>& left) {
        auto rank = left.size() - 1;
        while (left[rank] == 0) --rank;
        return static_cast<int>(rank);
      };
      // Room for all, for too few, and for too many.
      BOOST_TEST((rebuilt(schedule, schedule.ops.size(), any) == schedule));
      BOOST_TEST((rebuilt(schedule, 0, in_turn) == schedule));
      BOOST_TEST((rebuilt(schedule, 3 * schedule.ops.size(), last_rank_first) == schedule));
    }
  }
}

// Also those before the first that has any, and after the last.
BOOST_AUTO_TEST_CASE(ranks_without_ops) {
  const auto begins = [](const std::vector<int>& ranks) {
    ScheduleBuilder builder(straight(5, 1), 9, 0);
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      builder.go_to(ranks[i]);
      builder.forward(ranks[i], static_cast<std::int64_t>(i));
    }
    return builder.take("").rank_begin;
  };
  using Begins = std::vector<std::size_t>;
  BOOST_TEST(begins({}) == (Begins{0, 0, 0, 0, 0, 0}), boost::test_tools::per_element());
  BOOST_TEST(begins({1, 1, 3}) == (Begins{0, 0, 2, 2, 3, 3}), boost::test_tools::per_element());
  BOOST_TEST(begins({3, 1, 1}) == (Begins{0, 0, 2, 2, 3, 3}), boost::test_tools::per_element());
  BOOST_TEST(begins({1, 3, 1}) == (Begins{0, 0, 2, 2, 3, 3}), boost::test_tools::per_element());
  BOOST_TEST(begins({0, 4, 0}) == (Begins{0, 2, 2, 2, 2, 3}), boost::test_tools::per_element());
}

// A pair is one unit wherever it lands.
BOOST_AUTO_TEST_CASE(pairs_stay_together) {
  ScheduleBuilder builder(v_shape(2), 2, 0);
  BOOST_TEST((builder.placement() == v_shape(2)));
  builder.go_to(1);
  builder.forward(1, 0);
  builder.go_to(0);
  builder.overlapped(0, 1, 3, 0);
  builder.go_to(1);
  builder.overlapped(1, 1, 2, 0);
  builder.go_to(0);
  builder.weight_gradient(0, 0);
  const Schedule schedule = builder.take("mine");
  BOOST_TEST(schedule.name == "mine");
  BOOST_TEST(schedule.micro_batches == 2U);
  BOOST_TEST(text_of_rank(schedule, 0) == "(0F1;3B0)OVERLAP_F_B 0W0");
  BOOST_TEST(text_of_rank(schedule, 1) == "1F0 (1F1;2B0)OVERLAP_F_B");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
