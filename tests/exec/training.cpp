#include "tests/exec/training.h"

#include <ATen/Parallel.h>

#include <boost/test/unit_test.hpp>

#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/train/calibrate.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"

namespace dualpipe::test {

// What a test computes by itself needs no second thread, of which thread sanitizers know nothing.
struct OneThread {
  OneThread() { at::set_num_threads(1); }
};
BOOST_TEST_GLOBAL_FIXTURE(OneThread);

std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const Family& family : catalog()) names.emplace_back(family.name);
  return names;
}

Program program_of(std::string_view name, int ranks, std::int64_t micro_batches) {
  if (micro_batches == 0) micro_batches = 2 * ranks;
  return lower(generate(name, {ranks, micro_batches, family(name).takes_chunks ? 2 : 1}));
}

TrainOptions tiny(const Program& program, const std::string& model, int layers) {
  const int stages = program.schedule.placement.chain_begin[1];
  TrainOptions options;
  options.shape.model = model;
  options.shape.hidden = 8;
  options.shape.heads = 2;
  options.shape.sequence = 4;
  options.shape.vocabulary = 11;
  options.shape.batch = 1;
  options.shape.layers = split_evenly(layers == 0 ? stages + 1 : layers, stages);
  options.shape.experts = 4;
  options.shape.expert_hidden = 6;
  options.shape.precision = Precision::float64;
  options.shape.seed = 5;
  options.learning_rate = 0.1;
  return options;
}

TrainOptions two_steps(const Program& program, const std::string& model) {
  TrainOptions options = tiny(program, model);
  options.steps = 2;
  return options;
}

CheckReport checked(World& world, const Program& program, const TrainOptions& options,
                    const std::function<void(std::span<Stage* const>)>& spoil) {
  Check check(world, program.schedule, options);
  TrainObserver observer;
  observer.on_gradients = [&](int step, std::span<Stage* const> stages) {
    if (spoil) spoil(stages);
    check.on_gradients(step, stages);
  };
  observer.on_step = [&](const StepReport& step) { check.on_step(step); };
  (void)train(world, program, options, observer);
  return check.report();
}

CheckReport checked(const Program& program, const TrainOptions& options,
                    const std::function<void(std::span<Stage* const>)>& spoil) {
  CheckReport report = checked(*one_process(), program, options, spoil);
  BOOST_TEST(report.steps == options.warmup + options.steps);
  return report;
}

namespace {

// The costs tell the peak of each rank.
void check_memory(const TrainResult& result, const Program& program, const ModelCosts& model) {
  const Costs costs = stage_costs(model, program.schedule.placement);
  for (std::size_t rank = 0; rank < result.peaks.size(); ++rank) {
    const RankMemory predicted = rank_memory(program, costs, static_cast<int>(rank));
    BOOST_TEST(result.peaks[rank].activations == predicted.peak_activations);
    const auto measured = static_cast<double>(result.peaks[rank].memory);
    BOOST_TEST(static_cast<double>(predicted.peak) == measured, boost::test_tools::tolerance(0.02));
  }
}

}  // namespace

void check_memory_is_predicted(const Program& program, TrainOptions options, std::span<const Program> others) {
  options.steps = 1;
  options.warmup = 3;
  options.measure_passes = true;
  const TrainResult result = train(program, options);
  const ModelCosts costs = calibrate(program, result);
  check_memory(result, program, costs);
  options.warmup = 0;
  for (const Program& other : others) {
    BOOST_TEST_CONTEXT(other.schedule.name) { check_memory(train(other, options), other, costs); }
  }
}

}  // namespace dualpipe::test
