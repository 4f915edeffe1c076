#include "dualpipe/sim/schedule/rewrite.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <functional>
#include <iterator>
#include <utility>
#include <vector>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/fingerprint.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "tests/support.h"

namespace dualpipe::test {

BOOST_AUTO_TEST_SUITE(schedule_rewrite)

BOOST_AUTO_TEST_CASE(split_passes_keep_the_order) {
  const Schedule schedule = split_passes(generate("dualpipev", {2, 4}));
  BOOST_TEST(validate(schedule).empty());
  BOOST_TEST(text_of_rank(schedule, 1) ==
             "1F0 2F0 1F1 2F1 1F2 2I0 2W0 2F2 1I0 1W0 1F3 2I1 2W1 2F3 1I1 1W1 2I2 2W2 1I2 1W2 2I3 1I3 2W3 1W3");
}

BOOST_AUTO_TEST_CASE(forwards_keep_the_order) {
  const Schedule schedule = forwards_of(generate("dualpipev", {2, 4}));
  BOOST_TEST(validate(schedule).empty());
  BOOST_TEST(text_of_rank(schedule, 0) == "0F0 0F1 0F2 3F0 3F1 0F3 3F2 3F3");
  BOOST_TEST(text_of_rank(schedule, 1) == "1F0 2F0 1F1 2F1 1F2 2F2 1F3 2F3");
}

// Of every family: what is no longer there, and what stays.
BOOST_AUTO_TEST_CASE(of_every_family) {
  for (const Case& each : small_cases(4, 8)) {
    BOOST_TEST_CONTEXT(each) {
      const Schedule whole = generate(each.family, each.shape);
      for (const Schedule& schedule : {split_passes(whole), forwards_of(whole)}) {
        BOOST_TEST(schedule.name == whole.name);
        BOOST_TEST((schedule.placement == whole.placement));
        BOOST_TEST(schedule.micro_batches == whole.micro_batches);
        BOOST_TEST(std::ranges::none_of(schedule.ops, &Op::with_next));
        BOOST_TEST(std::ranges::none_of(schedule.ops, [](Op op) { return op.kind == Kind::backward; }));
        const Program program = lower(schedule);
        BOOST_TEST(validate(program).empty());
        BOOST_TEST(!find_deadlock(program, CommunicationModel::latency).has_value());
      }
    }
  }
}

// Every op and message is found on its new rank, in its order; and numbered back again it is the program of before.
BOOST_AUTO_TEST_CASE(ranks_renumbered) {
  for (const Case& each : small_cases(4, 8)) {
    BOOST_TEST_CONTEXT(each) {
      const Program program = lower(generate(each.family, each.shape));
      const int ranks = program.schedule.ranks();
      std::vector<int> rank_of(
          static_cast<std::size_t>(ranks));  // a rotation: no rank stays, and it is not its inverse
      std::vector<int> back(rank_of.size());
      for (int rank = 0; rank < ranks; ++rank) {
        const int to = (rank + 1) % ranks;
        rank_of[static_cast<std::size_t>(rank)] = to;
        back[static_cast<std::size_t>(to)] = rank;
      }
      const Program renumbered = renumber_ranks(program, rank_of);
      BOOST_TEST(validate(renumbered).empty());
      for (int rank = 0; rank < ranks; ++rank) {
        const int to = rank_of[static_cast<std::size_t>(rank)];
        BOOST_TEST(std::ranges::equal(program.schedule.rank(rank), renumbered.schedule.rank(to)));
        for (std::size_t i = 0; i <= program.schedule.rank(rank).size(); ++i) {
          BOOST_TEST(std::ranges::equal(program.slot(rank, i), renumbered.slot(to, i)));
        }
      }
      BOOST_TEST((renumber_ranks(renumbered, back) == program));
    }
  }
}

BOOST_AUTO_TEST_CASE(without_the_sums_of_gradients) {
  for (const Case& each : small_cases(4, 8)) {
    BOOST_TEST_CONTEXT(each) {
      const Program program = lower(generate(each.family, each.shape));
      const Program without = without_reductions(program);
      BOOST_TEST(validate(without).empty());
      BOOST_TEST((without.schedule.ops == program.schedule.ops));
      std::vector<Op> expected;
      std::ranges::remove_copy(program.communication, std::back_inserter(expected), Kind::reduce_gradients, &Op::kind);
      BOOST_TEST((without.communication == expected));
    }
  }
}

// Programs are told apart by any of their parts, and not by their names.
BOOST_AUTO_TEST_CASE(fingerprints) {
  const Program program = lower(generate("dualpipe", {4, 8}));
  Program other = program;
  other.schedule.name = "another";
  BOOST_TEST(fingerprint(other) == fingerprint(program));
  const auto differs = [&](const std::function<void(Program&)>& change) {
    Program changed = program;
    change(changed);
    BOOST_TEST(fingerprint(changed) != fingerprint(program));
  };
  differs([](Program& p) { std::swap(p.schedule.ops[0], p.schedule.ops[1]); });
  differs([](Program& p) { p.schedule.ops[0].with_next = true; });
  differs([](Program& p) { std::swap(p.communication[0], p.communication[1]); });
  differs([](Program& p) { ++p.slot_begin[1]; });
  differs([](Program& p) { p = without_reductions(std::move(p)); });
  differs([](Program& p) { p = renumber_ranks(p, std::vector{1, 0, 2, 3}); });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
