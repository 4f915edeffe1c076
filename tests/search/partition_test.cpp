// The cut that is found is the best of all cuts, and what frameworks are told is that cut.
#include "dualpipe/sim/search/partition.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <functional>
#include <vector>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/report/partition_report.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"
#include "tests/thinned.h"

namespace dualpipe::test {
namespace {

// Layers, and an embedding and a head that are not like them.
ModelCosts model(Random& random, int parts) {
  ModelCosts model;
  for (int i = 0; i < parts; ++i) {
    StageCosts& part = model.parts.emplace_back();
    const bool is_layer = i > 0 && i + 1 < parts;
    part.forward = is_layer ? 1000 : random.between(100, 2500);
    part.input_gradient = is_layer ? 1100 : random.between(100, 2500);
    part.weight_gradient = is_layer ? 900 : random.between(100, 2500);
    part.backward = part.input_gradient + part.weight_gradient;
    part.activation = is_layer ? 100 : random.between(20, 300);
    part.weight_stash = part.activation / 2;
    part.parameters = is_layer ? 400 : random.between(100, 2000);
  }
  model.latency = random.between(0, 300);
  return model;
}

void for_each_cut(int stages, int parts, std::vector<int>& cut, const std::function<void()>& visit) {
  if (stages == 1) {
    cut.push_back(parts);
    visit();
    cut.pop_back();
    return;
  }
  for (int first = 1; first <= parts - stages + 1; ++first) {
    cut.push_back(first);
    for_each_cut(stages - 1, parts - first, cut, visit);
    cut.pop_back();
  }
}

// The least makespan of all cuts that keep the limit; none keeps it: 0.
Time exhausted(const Program& program, ModelCosts model, const std::optional<MemoryLimit>& limit) {
  const Placement& placement = program.schedule.placement;
  Time least = 0;
  std::vector<int> cut;
  for_each_cut(placement.stages(), static_cast<int>(model.parts.size()), cut, [&] {
    model.cut = cut;
    const Costs costs = stage_costs(model, placement);
    if (limit) {
      const auto needed = memory_needed(program, costs, limit->unit);
      if (std::ranges::max_element(needed, {}, &MemoryLimit::amount)->amount > limit->amount) return;
    }
    const Time makespan = simulate(program, costs, Record::ranks).makespan();
    if (least == 0 || makespan < least) least = makespan;
  });
  return least;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(search_partition)

BOOST_AUTO_TEST_CASE(is_the_best_of_all_cuts) {
  Random random(51);
  Thinned thinned(12);
  int tried = 0;
  int optimal = 0;
  int all = 0;
  for (int i = 0; i < 60; ++i) {
    const bool is_v = random.one_in(4);
    const Shape shape{is_v ? 2 : 4, random.between(1, 4) * 4};
    const Program program = lower(generate(is_v ? "zbv" : random.one_in(2) ? "1f1b" : "zb1p", shape));
    const ModelCosts costs = model(random, static_cast<int>(random.between(10, 13)));
    if (!thinned.next()) continue;
    const auto program_of = [&](const ModelCosts&) { return program; };
    const Partition free = partition(program_of, costs);
    BOOST_TEST_CONTEXT("case " << i) {
      const Time least = exhausted(program, costs, std::nullopt);
      BOOST_TEST(static_cast<double>(free.best.makespan) <= 1.001 * static_cast<double>(least));
      if (free.best.makespan == least) ++optimal;
      ++all;
      BOOST_TEST(free.best.makespan <= free.balanced.makespan);
    }
    const MemoryLimit limit(free.best.peak_memory * 9 / 10);
    const Time least = exhausted(program, costs, limit);
    if (least == 0) continue;
    ++tried;
    const Partition limited = partition(program_of, costs, limit);
    BOOST_TEST(limited.best.peak_memory <= limit.amount);
    BOOST_TEST(static_cast<double>(limited.best.makespan) <= 1.02 * static_cast<double>(least));
  }
  BOOST_TEST(tried > 2);
  BOOST_TEST(optimal >= all - 1);  // of 60: moves of single runs can end in a cut that two at once would better
}

BOOST_AUTO_TEST_CASE(is_written_as_frameworks_take_it) {
  BOOST_TEST(megatron_layout(straight(3, 1), {3, 2, 4}) == "Et*2|t*2|t*3L");
  BOOST_TEST(megatron_layout(straight(2, 2), {1, 2, 1, 1}) == "E|t*2|t|L");
  BOOST_CHECK_THROW((void)megatron_layout(v_shape(2), {2, 2, 2, 2}), InputError);
  BOOST_TEST(module_names({2, 1, 2}) == R"([["tok_embeddings","layers.0"],["layers.1"],["layers.2","norm","output"]])");
}

BOOST_AUTO_TEST_CASE(what_cannot_be_cut_is_refused) {
  Random random(52);
  const Program program = lower(generate("1f1b", {4, 8}));
  const auto program_of = [&](const ModelCosts&) { return program; };
  BOOST_CHECK_THROW((void)partition(program_of, model(random, 3)), InputError);
  BOOST_CHECK_THROW((void)partition(program_of, model(random, 8), MemoryLimit(10)), MemoryLimitError);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
