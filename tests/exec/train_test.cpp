#include "dualpipe/exec/train/train.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cmath>
#include <limits>
#include <sstream>
#include <thread>

#include "dualpipe/exec/train/reference.h"
#include "dualpipe/exec/train/report.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/rewrite.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/trace/chrome_trace.h"
#include "tests/exec/training.h"
#include "tests/support.h"
#include "tests/thinned.h"

namespace dualpipe::test {
namespace {

namespace data = boost::unit_test::data;

constexpr Time us = 1'000;

std::vector<at::Tensor> copies_of(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> copies;
  for (const at::Tensor& tensor : tensors) copies.push_back(tensor.detach().clone());
  return copies;
}

bool equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  return std::ranges::equal(a, b, [](const at::Tensor& x, const at::Tensor& y) { return x.equal(y); });
}

std::string failure_of(const Program& program, const TrainOptions& options, const TrainObserver& observer = {}) {
  try {
    (void)train(program, options, observer);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_train)

// Only looped-bfs runs its backwards in another order than that of the micro-batches.
BOOST_DATA_TEST_CASE(a_pipeline_trains_like_the_model_by_itself,
                     thinned(5, data::make(family_names()) * data::make({"mlp", "gpt", "moe"}) * data::make({2, 4})),
                     name, model, ranks) {
  const Program program = program_of(name, ranks);
  const CheckReport report = checked(program, two_steps(program, model));
  BOOST_TEST(report.failure == "");
  BOOST_TEST(report.same_order == (name != "looped-bfs"));
  if (report.same_order) BOOST_TEST(report.losses_bitwise_equal);
  if (report.same_order) BOOST_TEST(report.gradients.bitwise_equal);
  BOOST_TEST(report.max_loss_difference < 1e-13);
  BOOST_TEST(report.gradients.cosine < 1e-13);
}

BOOST_DATA_TEST_CASE(float32_stays_within_its_tolerance, data::make(family_names()), name) {
  const Program program = program_of(name, 2);
  TrainOptions options = two_steps(program, "gpt");
  options.shape.precision = Precision::float32;
  const CheckReport report = checked(program, options);
  BOOST_TEST(report.failure == "");
  BOOST_TEST(report.gradients.cosine < 1e-6);
}

// The reference keeps everything.
BOOST_DATA_TEST_CASE(recomputation_changes_no_bit, data::make(family_names()), name) {
  const Program program = program_of(name, 2);
  for (const auto& [model, recompute] : std::vector<std::pair<std::string, Recompute>>{{"mlp", Recompute::full},
                                                                                       {"gpt", Recompute::full},
                                                                                       {"gpt", Recompute::attention},
                                                                                       {"moe", Recompute::full},
                                                                                       {"moe", Recompute::attention}}) {
    TrainOptions options = two_steps(program, model);
    options.shape.recompute = recompute;
    const CheckReport report = checked(program, options);
    BOOST_TEST(report.failure == "");
    if (report.same_order) BOOST_TEST(report.gradients.bitwise_equal);
  }
}

BOOST_AUTO_TEST_CASE(recomputation_takes_less_memory) {
  const Program program = program_of("gpipe", 2);
  TrainOptions options = two_steps(program, "gpt");
  const auto peak_with = [&](Recompute recompute) {
    options.shape.recompute = recompute;
    return train(program, options).peaks[0].memory;
  };
  const Bytes all = peak_with(Recompute::none);
  const Bytes less = peak_with(Recompute::attention);
  const Bytes least = peak_with(Recompute::full);
  BOOST_TEST(less < all);
  BOOST_TEST(least < less);
}

// As float32 has them, and AdamW divides them.
BOOST_AUTO_TEST_CASE(learning_rates_that_are_none_are_refused) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = two_steps(program, "mlp");
  options.shape.precision = Precision::float32;
  options.optimizer = OptimizerKind::adamw;
  for (const double rate : {0.0, -1.0, 1e300, 2 * learning_rate_max, std::nan("")}) {
    options.learning_rate = rate;
    BOOST_TEST(failure_of(program, options).starts_with("the learning rate is "));
  }
  options.steps = 1;
  options.learning_rate = learning_rate_max;
  BOOST_TEST(failure_of(program, options) == "");
}

BOOST_AUTO_TEST_CASE(optimizer_and_clipping_are_those_of_the_reference) {
  for (const std::string name : {"dualpipe", "zb1p"}) {
    const Program program = program_of(name, 2);
    TrainOptions options = two_steps(program, "gpt");
    options.optimizer = OptimizerKind::adamw;
    options.clip = 0.01;
    options.warmup = 1;
    options.steps = 3;
    const CheckReport report = checked(program, options);
    BOOST_TEST(report.failure == "");
    BOOST_TEST(report.losses_bitwise_equal);
    BOOST_TEST(report.gradients.bitwise_equal);
  }
}

// A check that never fails is none: a gradient is changed behind its back.
BOOST_AUTO_TEST_CASE(the_check_notices_wrong_gradients) {
  for (const std::string name : {"1f1b", "looped-bfs"}) {
    for (const double factor : {1 + 1e-5, 2.0, std::numeric_limits<double>::quiet_NaN()}) {
      const Program program = program_of(name, 2);
      TrainOptions options = two_steps(program, "mlp");
      options.steps = 1;
      const auto world = one_process();
      Check check(*world, program.schedule, options);
      TrainObserver observer;
      observer.on_gradients = [&](int step, std::span<Stage* const> stages) {
        stages[1]->parameters()[0].grad().mul_(factor);
        check.on_gradients(step, stages);
      };
      BOOST_TEST_CONTEXT(name << " times " << factor) {
        (void)failure_of(program, options, observer);
        BOOST_TEST(!check.report().passed());
        BOOST_TEST(check.report().failure.find("stage 1") != std::string::npos);
        BOOST_TEST((check.report().per_stage[0].bitwise_equal || !check.report().same_order));
        BOOST_TEST(!check.report().per_stage[1].bitwise_equal);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(the_check_notices_a_wrong_loss) {
  const Program program = program_of("1f1b", 2);
  const TrainOptions options = two_steps(program, "mlp");
  const auto world = one_process();
  Check check(*world, program.schedule, options);
  TrainObserver observer;
  observer.on_gradients = [&](int step, std::span<Stage* const> stages) { check.on_gradients(step, stages); };
  observer.on_step = [&](StepReport step) {
    step.loss = std::nextafter(step.loss, 0);
    check.on_step(step);
  };
  (void)train(program, options, observer);
  BOOST_TEST(check.report().failure.find("step 0: the loss is") == 0U);
}

// Stages s and P + s hold the same layers on two ranks.
BOOST_AUTO_TEST_CASE(copies_of_weights_stay_bitwise_equal) {
  for (const OptimizerKind optimizer : {OptimizerKind::sgd, OptimizerKind::adamw}) {
    for (const double clip : {0.0, 0.01}) {
      const Program program = program_of("dualpipe", 4);
      TrainOptions options = two_steps(program, "gpt");
      options.optimizer = optimizer;
      options.clip = clip;
      options.steps = 4;
      std::vector<at::Tensor> first;
      TrainObserver observer;
      observer.on_gradients = [&](int step, std::span<Stage* const> stages) {
        for (std::size_t stage = 0; stage < 4; ++stage) {
          BOOST_TEST(equal(stages[stage]->parameters(), stages[stage + 4]->parameters()));
        }
        if (step == 0) first = copies_of(stages[1]->parameters());
        if (step == 3) BOOST_TEST(!equal(first, stages[1]->parameters()));
      };
      (void)train(program, options, observer);
    }
  }
}

// Plain SGD at a rate of 1 moves the parameters by the clipped gradient: its length, over every parameter set once, is
// the limit. (1e-6 by LibTorch's formula.)
BOOST_AUTO_TEST_CASE(clipping_is_by_the_global_norm) {
  for (const std::string name : {"1f1b", "dualpipe"}) {
    const Program program = program_of(name, 2);
    TrainOptions options = two_steps(program, "gpt");
    options.learning_rate = 1;
    options.clip = 0.125;
    std::vector<std::vector<at::Tensor>> before;
    double squares = 0;
    TrainObserver observer;
    observer.on_gradients = [&](int step, std::span<Stage* const> stages) {
      for (std::size_t stage = 0; stage < 2; ++stage) {
        const auto now = stages[stage]->parameters();
        if (step == 0) before.push_back(copies_of(now));
        for (std::size_t i = 0; step == 1 && i < now.size(); ++i) {
          squares += (now[i] - before[stage][i]).square().sum().item<double>();
        }
      }
    };
    (void)train(program, options, observer);
    BOOST_TEST(std::sqrt(squares) == 0.125, boost::test_tools::tolerance(1e-4));
  }
}

BOOST_DATA_TEST_CASE(measured_activations_are_the_simulated_ones, data::make(family_names()), name) {
  const Program program = program_of(name, 4);
  const TrainResult result = train(program, two_steps(program, "mlp"));
  Costs costs;
  costs.stages.resize(1);
  for (int rank = 0; rank < 4; ++rank) {
    BOOST_TEST(result.peaks[static_cast<std::size_t>(rank)].activations ==
               rank_memory(program, costs, rank).peak_activations);
  }
}

BOOST_AUTO_TEST_CASE(results_are_those_of_the_measured_steps) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = two_steps(program, "mlp");
  options.warmup = 2;
  options.steps = 3;
  std::vector<bool> measured;
  TrainObserver observer;
  observer.on_step = [&](const StepReport& step) {
    BOOST_TEST(step.step == static_cast<int>(measured.size()));
    BOOST_TEST(step.records.size() == 2U);
    measured.push_back(step.measured);
  };
  const TrainResult result = train(program, options, observer);
  BOOST_TEST(measured == (std::vector{false, false, true, true, true}), boost::test_tools::per_element());
  BOOST_TEST(result.losses.size() == 5U);
  BOOST_TEST(result.losses[4] < result.losses[0]);
  BOOST_TEST(result.warm_up.size() == 1U);  // the first step is like no other
  BOOST_TEST(result.measured.size() == 3U);
  auto durations = result.durations;
  std::ranges::sort(durations);
  BOOST_TEST(result.step_time == durations[1]);
  const auto median =
      static_cast<std::size_t>(std::ranges::find(result.durations, durations[1]) - result.durations.begin());
  BOOST_TEST((result.records[0].ops == result.measured[median][0].ops));
  const Timeline timeline = merge(program, result.records);
  BOOST_TEST(timeline.makespan() <= result.step_time);
  BOOST_TEST(timeline.makespan() > 0);
}

// float64, hidden 8, Linear h→4h and 4h→h without biases: 8 * 32 + 32 * 8 = 512 numbers per layer.
// The first 103 of 205 are slow; records are kept of the 101 after these.
BOOST_AUTO_TEST_CASE(the_step_time_is_the_median_of_more_steps_than_are_kept) {
  const Program program = program_of("1f1b", 1);
  TrainOptions options = two_steps(program, "empty");
  options.steps = 205;
  std::atomic<int> steps = 0;
  TrainObserver observer;
  observer.on_step = [&](const StepReport&) { ++steps; };
  options.before_op = [&](int, Op op) {
    if (op.kind == Kind::forward && op.micro_batch == 0 && steps < 103) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  };
  const TrainResult result = train(program, options, observer);
  BOOST_TEST(result.measured.size() == 101U);
  std::vector<Time> sorted = result.durations;
  std::ranges::sort(sorted);
  BOOST_TEST(result.step_time == sorted[102]);
  BOOST_TEST(result.step_time >= 2000 * us);
}

BOOST_AUTO_TEST_CASE(the_records_kept_are_those_of_the_last_steps) {
  const Program program = program_of("1f1b", 1);
  TrainOptions options = two_steps(program, "empty");
  options.warmup = 307;
  options.measure_passes = true;
  std::vector<Time> begins;
  std::vector<Time> begins_apart;
  TrainObserver observer;
  observer.on_step = [&](const StepReport& step) {
    if (step.measured) return;
    const std::vector<Span>& ops = step.records[0].ops;
    (ops.size() == program.schedule.ops.size() ? begins : begins_apart).push_back(ops[0].start);
  };
  const TrainResult result = train(program, options, observer);
  const auto check = [](const std::vector<RankRecords>& kept, const std::vector<Time>& all) {
    BOOST_TEST_REQUIRE(kept.size() == 101U);
    BOOST_TEST_REQUIRE(all.size() > 101U);
    std::vector<Time> found;
    for (const RankRecords& records : kept) found.push_back(records[0].ops[0].start);
    std::ranges::sort(found);
    BOOST_TEST(std::ranges::equal(found, std::span(all).last(101)));
  };
  check(result.warm_up, begins);
  check(result.warm_up_apart, begins_apart);
}

BOOST_AUTO_TEST_CASE(stages_tell_what_they_hold) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = two_steps(program, "mlp");
  options.optimizer = OptimizerKind::adamw;
  options.shape.layers = {2, 1};
  const TrainResult result = train(program, options);
  BOOST_TEST((result.stages[0] == StageBytes{2 * 512 * 8, 2 * 512 * 8, 4 * 512 * 8}));
  BOOST_TEST((result.stages[1] == StageBytes{512 * 8, 512 * 8, 2 * 512 * 8}));
  BOOST_TEST(result.records[0].memory[0].output == 1 * 8 * 8);
  BOOST_TEST(result.peaks[1].memory > 4 * 512 * 8);
}

BOOST_AUTO_TEST_CASE(evaluation_runs_forwards_only) {
  for (const std::string name : {"1f1b", "dualpipe", "interleaved"}) {
    const Program program = program_of(name, 2);
    const Program forwards = lower(forwards_of(program.schedule));
    BOOST_TEST(validate(forwards).empty());
    BOOST_TEST(std::ranges::all_of(forwards.schedule.ops, [](Op op) { return op.kind == Kind::forward; }));
    TrainOptions options = two_steps(program, "gpt");
    options.steps = 1;
    const double trained = train(program, options).losses[0];
    options.forward_only = true;
    BOOST_TEST(train(forwards, options).losses[0] == trained);
  }
}

BOOST_AUTO_TEST_CASE(a_stage_that_fails_ends_the_run) {
  const Program program = program_of("1f1b", 4);
  TrainOptions options = two_steps(program, "mlp");
  options.warmup = 1;
  int step_now = 0;
  options.before_op = [&](int rank, Op op) {
    if (step_now == 1 && rank == 2 && op.kind == Kind::backward && op.micro_batch == 1) {
      throw std::runtime_error("the disk is on fire");
    }
  };
  int failures = 0;
  TrainObserver observer;
  observer.on_step = [&](const StepReport& step) { step_now = step.step + 1; };
  observer.on_failure = [&](int step, const Program& ran, std::span<const RankRecord> records) {
    ++failures;
    BOOST_TEST(step == 1);
    BOOST_TEST(&ran == &program);
    // F0 F1 B0 F2 ran on rank 2, and B1 did not.
    BOOST_TEST(records[2].done == 4U);
    const PartialRun partial = reached(program, records);
    BOOST_TEST(partial.program.schedule.rank(2).size() == 4U);
    const Timeline timeline = merge(partial.program, partial.records);
    BOOST_TEST(timeline.ops.size() == partial.program.schedule.ops.size());
    Costs costs;
    costs.stages.resize(1);
    std::ostringstream trace;
    write_chrome_trace(trace, partial.program, costs, timeline);
    BOOST_TEST(trace.str().find("\"2F2\"") != std::string::npos);
    BOOST_TEST(trace.str().find("\"2B1\"") == std::string::npos);
  };
  const std::string message = failure_of(program, options, observer);
  BOOST_TEST(failures == 1);
  BOOST_TEST(message.find("rank 2") != std::string::npos);
  BOOST_TEST(message.find("2B1") != std::string::npos);
  BOOST_TEST(message.find("the disk is on fire") != std::string::npos);
}

// In a step that runs the passes by themselves; rank 1 does F0 I0 W0 F1 I1 W1 ….
BOOST_AUTO_TEST_CASE(a_failure_names_the_program_that_ran) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = two_steps(program, "mlp");
  options.warmup = 3;
  options.measure_passes = true;
  options.before_op = [&](int rank, Op op) {
    if (rank == 1 && op.kind == Kind::weight_gradient && op.micro_batch == 1) throw std::runtime_error("no more");
  };
  std::string done;
  TrainObserver observer;
  observer.on_failure = [&](int step, const Program& ran, std::span<const RankRecord> records) {
    BOOST_TEST(step == 2);
    const PartialRun partial = reached(ran, records);
    BOOST_TEST(merge(partial.program, partial.records).ops.size() == partial.program.schedule.ops.size());
    done = text_of_rank(partial.program.schedule, 1);
  };
  BOOST_TEST(failure_of(program, options, observer).find("1W1") != std::string::npos);
  BOOST_TEST(done == "1F0 1I0 1W0 1F1 1I1");
}

BOOST_AUTO_TEST_CASE(what_an_observer_throws_ends_the_run) {
  const Program program = program_of("1f1b", 2);
  TrainObserver observer;
  observer.on_step = [](const StepReport&) { throw std::runtime_error("enough"); };
  BOOST_TEST(failure_of(program, two_steps(program, "mlp"), observer) == "enough");
  observer.on_step = [](const StepReport&) { throw 7; };
  BOOST_CHECK_THROW((void)train(program, two_steps(program, "mlp"), observer), int);
}

// What it does with the gradients, as a check does, is no part of the step.
BOOST_AUTO_TEST_CASE(an_observer_of_gradients_takes_no_time_of_the_step) {
  const Program program = program_of("1f1b", 2);
  TrainObserver observer;
  observer.on_gradients = [](int, std::span<Stage* const>) { std::this_thread::sleep_for(std::chrono::seconds(2)); };
  const TrainResult result = train(program, two_steps(program, "mlp"), observer);
  BOOST_TEST(result.durations.size() == 2U);
  for (const Time duration : result.durations) {
    BOOST_TEST(duration > 0);
    BOOST_TEST(duration < 1'500'000'000);
  }
}

// LibTorch's errors bring a stack trace along.
BOOST_AUTO_TEST_CASE(parameters_that_find_no_memory_end_the_run) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = two_steps(program, "mlp");
  options.shape.hidden = 1 << 24U;
  BOOST_CHECK_EXCEPTION((void)train(program, options), ReplayError, [](const ReplayError& error) {
    const std::string text = error.what();
    return text.find("rank ") == 0 && text.find("can't allocate memory") != std::string::npos &&
           text.find('\n') == std::string::npos;
  });
}

BOOST_AUTO_TEST_CASE(a_loss_that_is_no_number_ends_the_run) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = two_steps(program, "mlp");
  options.learning_rate = learning_rate_max;
  options.steps = 10;
  const std::string message = failure_of(program, options);
  BOOST_TEST(message.find("rank 1, 1F0: the loss is") == 0U);
}

BOOST_AUTO_TEST_CASE(a_stop_ends_the_run) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = two_steps(program, "timed");
  options.shape.costs = uniform(100 * us, 100 * us, 100 * us);
  options.steps = 1'000'000;
  std::stop_source source;
  options.stop = source.get_token();
  bool failed = false;
  TrainObserver observer;
  // From within a rank's op, as from any other thread.
  options.before_op = [&](int rank, Op op) {
    if (rank == 1 && op.kind == Kind::backward && op.micro_batch == 2) source.request_stop();
  };
  observer.on_failure = [&](int, const Program&, std::span<const RankRecord>) { failed = true; };
  BOOST_TEST(failure_of(program, options, observer).find("interrupted") != std::string::npos);
  BOOST_TEST(failed);
}

BOOST_AUTO_TEST_CASE(a_model_that_does_not_fit_is_bad_input) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = two_steps(program, "gpt");
  options.shape.layers = {1, 1, 1};
  BOOST_CHECK_THROW((void)train(program, options), InputError);
  options = two_steps(program, "gpt");
  options.shape.heads = 3;
  BOOST_CHECK_THROW((void)train(program, options), InputError);
}

// Bit for bit, as I and W together do what B does.
BOOST_DATA_TEST_CASE(measuring_passes_makes_no_difference, data::make(family_names()), name) {
  const Program program = program_of(name, 2);
  TrainOptions options = two_steps(program, "gpt");
  options.warmup = 5;
  const TrainResult plain = train(program, options);
  options.measure_passes = true;
  const TrainResult measured = train(program, options);
  BOOST_TEST(measured.losses == plain.losses, boost::test_tools::per_element());
  BOOST_TEST(plain.warm_up_apart.empty());
  BOOST_TEST(plain.warm_up.size() == 4U);
  BOOST_TEST(measured.warm_up.size() == 2U);
  BOOST_TEST(measured.warm_up_apart.size() == 2U);
  BOOST_TEST(measured.warm_up_apart[0][0].ops.size() == measured.apart.schedule.rank(0).size());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
