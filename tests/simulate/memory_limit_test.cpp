// What ranks need, in bytes and in micro-batches, and what is said of a limit that is too low.
#include "dualpipe/sim/simulate/memory_limit.h"

#include <boost/test/unit_test.hpp>
#include <string>
#include <vector>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

constexpr auto bytes = MemoryLimit::Unit::bytes;
constexpr auto micro_batches = MemoryLimit::Unit::micro_batches;

std::vector<std::string> needed(const Program& program, const Costs& costs, MemoryLimit::Unit unit) {
  std::vector<std::string> texts;
  for (const MemoryLimit& rank : memory_needed(program, costs, unit)) texts.push_back(to_text(rank));
  return texts;
}

BOOST_AUTO_TEST_SUITE(simulate_memory_limit)

BOOST_AUTO_TEST_CASE(in_bytes_all_counts) {
  const Program program = lower(generate("zb1p", {4, 8}));
  Random random(1);
  for (int i = 0; i < 20; ++i) {
    const Costs costs = random_costs(random, program.schedule.placement, CommunicationModel::links);
    const auto memory = memory_of_ranks(program, costs);
    const auto ranks = memory_needed(program, costs, bytes);
    BOOST_TEST_REQUIRE(ranks.size() == memory.size());
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) BOOST_TEST(ranks[rank].amount == memory[rank].peak);
  }
}

BOOST_AUTO_TEST_CASE(in_micro_batches_activations_count) {
  const Program program = lower(generate("1f1b", {4, 8}));
  Costs costs = uniform(1, 1, 1);
  const std::vector<std::string> live{"4 micro-batches", "3 micro-batches", "2 micro-batches", "1 micro-batch"};
  BOOST_TEST(needed(program, costs, micro_batches) == live);
  // However large they are, whatever else is held, and also where stages differ.
  costs.stages.resize(4, costs.stages[0]);
  for (std::size_t stage = 0; stage < 4; ++stage) {
    costs.stages[stage].activation = static_cast<Bytes>(7 + stage);
    costs.stages[stage].parameters = 1000;
    costs.stages[stage].message = 5;
    costs.stages[stage].forward_workspace = 100;
  }
  BOOST_TEST(needed(program, costs, micro_batches) == live);
}

// The two stages of a V are halves of a micro-batch, whichever of them has more bytes.
BOOST_AUTO_TEST_CASE(stages_of_a_rank_are_equal_shares) {
  const Program program = lower(schedule_of(v_shape(1), {"0F0 0F1 1F0 1I0 1W0 0I0 1F1 0W0 1I1 0I1 1W1 0W1"}));
  Costs costs = uniform(1, 1, 1);
  costs.stages.resize(2, costs.stages[0]);
  costs.stages[0].activation = costs.stages[0].weight_stash = 100;
  costs.stages[1].activation = costs.stages[1].weight_stash = 9;
  BOOST_TEST(needed(program, costs, micro_batches) == std::vector<std::string>{"1.5 micro-batches"});
}

// A third of each activation stays until its W.
BOOST_AUTO_TEST_CASE(what_is_left_for_w_counts_in_proportion) {
  const Program program = lower(schedule_of(straight(1, 1), {"0F0 0I0 0F1 0I1 0F2 0I2 0W0 0W1 0W2"}));
  Costs costs = uniform(1, 1, 1);
  costs.stages[0].activation = 300;
  costs.stages[0].weight_stash = 100;
  BOOST_TEST(needed(program, costs, micro_batches) == std::vector<std::string>{"1.666667 micro-batches"});
  costs.stages[0].activation = costs.stages[0].weight_stash = 0;  // not known: all of it
  BOOST_TEST(needed(program, costs, micro_batches) == std::vector<std::string>{"3 micro-batches"});
}

BOOST_AUTO_TEST_CASE(names_the_rank_and_the_least) {
  const Program program = lower(generate("1f1b", {4, 8}));
  Costs costs = uniform(1, 1, 1);
  costs.stages.resize(4, costs.stages[0]);
  costs.stages[1].activation = 1000;
  const auto check = [&](const MemoryLimit& limit) { check_memory_limit(program, costs, limit); };
  BOOST_CHECK_NO_THROW(check(Bytes{3000}));
  BOOST_CHECK_NO_THROW(check(MemoryLimit::micro_batches(4)));
  BOOST_CHECK_EXCEPTION(check(Bytes{2999}), MemoryLimitError, [](const MemoryLimitError& error) {
    BOOST_TEST((error.least() == MemoryLimit(Bytes{3000})));
    return std::string(error.what()) ==
           "1f1b: rank 1 needs 3000 bytes, more than the memory limit of 2999 bytes; the least limit that works is "
           "3000 bytes";
  });
  BOOST_CHECK_EXCEPTION(check({3'999'999, micro_batches}), MemoryLimitError, [](const MemoryLimitError& error) {
    return std::string(error.what()) ==
           "1f1b: rank 0 needs 4 micro-batches, more than the memory limit of 3.999999 micro-batches; the least limit "
           "that works is 4 micro-batches";
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
