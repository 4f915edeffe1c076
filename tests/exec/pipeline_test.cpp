// Steps that are fed from outside: several tensors between stages, a criterion, outputs that come back.
#include "dualpipe/exec/pipeline/pipeline.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <ostream>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/sim/schedule/error.h"
#include "tests/exec/chain.h"
#include "tests/exec/training.h"
#include "tests/exec/triple.h"
#include "tests/exec/worlds.h"

namespace dualpipe::test {
namespace {

using namespace std::chrono_literals;
namespace data = boost::unit_test::data;

// Calls `run` for each rank on a thread of its own; returns by rank what it threw, or nothing.
std::vector<std::exception_ptr> on_ranks(const Program& program,
                                         const std::function<void(int rank, Transport& transport)>& run) {
  const auto transports = thread_transports(program.schedule.placement, {20s, 0ns});
  std::vector<std::exception_ptr> errors(transports.size());
  std::vector<std::jthread> threads;
  for (std::size_t rank = 0; rank < transports.size(); ++rank) {
    threads.emplace_back([&, rank] {
      at::set_num_threads(1);
      try {
        run(static_cast<int>(rank), *transports[rank]);
      } catch (...) {
        errors[rank] = std::current_exception();
      }
    });
  }
  threads.clear();
  return errors;
}

std::string text_of(const std::exception_ptr& error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const std::exception& caught) {
    return caught.what();
  }
  return "";
}

// Two ranks with a stage each.
struct Two {
  explicit Two(const Program& program) : placement(program.schedule.placement) {}
  std::vector<Stage*> stages(int rank) {
    auto& stage = rank == 0 ? first : last;
    stage = std::make_unique<TripleStage>(placement, rank);
    return rank == 0 ? std::vector<Stage*>{stage.get(), nullptr} : std::vector<Stage*>{nullptr, stage.get()};
  }
  const Placement& placement;
  std::unique_ptr<TripleStage> first;
  std::unique_ptr<TripleStage> last;
};

BOOST_AUTO_TEST_SUITE(exec_pipeline)

// Hidden states, token ids and a mask, a criterion outside of the stages: losses and gradients have the bits of the
// model in one piece. The last micro-batch of a chain may have fewer rows, as where a batch does not divide evenly.
BOOST_DATA_TEST_CASE(three_tensors_between_threads,
                     data::make({"1f1b", "gpipe", "zb1p", "interleaved", "dualpipe", "dualpipev"}) *
                         data::make({1, 2, 4}) * data::make({false, true}) * data::make({3, 1}),
                     name, ranks, recomputes, last_rows) {
  if (ranks == 1 && std::string(name) == "dualpipe") return;
  const Program program = program_of(name, ranks);
  const StepInput input = triple_step(program, 3, last_rows);
  std::vector<std::string> flaws(static_cast<std::size_t>(ranks));
  const auto errors = on_ranks(program, [&](int rank, Transport& transport) {
    flaws[static_cast<std::size_t>(rank)] =
        triple_flaw(program, rank, transport, input, recomputes ? Recompute::full : Recompute::none);
  });
  for (std::size_t rank = 0; rank < flaws.size(); ++rank) {
    BOOST_TEST(text_of(errors[rank]) == "");
    BOOST_TEST(flaws[rank] == "");
  }
}

BOOST_DATA_TEST_CASE(three_tensors_between_processes, data::make({"1f1b", "zb1p", "dualpipe"}) * data::make({3, 1}),
                     name, last_rows) {
  const Program program = program_of(name, 2);
  const StepInput input = triple_step(program, 3, last_rows);
  const auto errors = in_worlds(2, nullptr, {.timeout = 20s}, [&](World& world) {
    at::set_num_threads(1);
    const auto transports = world.transports(program.schedule.placement, {20s, 0ns});
    const std::string flaw =
        triple_flaw(program, world.process(), *transports[static_cast<std::size_t>(world.process())], input);
    if (!flaw.empty()) throw std::runtime_error(flaw);
  });
  for (const std::string& error : errors) BOOST_TEST(error == "");
}

// Of a micro-batch that is through, a rank holds its loss.
BOOST_AUTO_TEST_CASE(a_step_leaves_nothing_and_says_what_it_did) {
  const Program program = program_of("1f1b", 2);
  const StepInput input = triple_step(program);
  Two two(program);
  const auto errors = on_ranks(program, [&](int rank, Transport& transport) {
    const std::vector<Stage*> stages = two.stages(rank);
    RankRecord record;
    ReplayOptions options;
    options.measure_memory = true;
    Pipeline pipeline(program, rank, stages, transport, record, options);
    static_cast<void>(pipeline.step(input));
    static_cast<void>(pipeline.step(input));
    BOOST_TEST(record.done == program.schedule.rank(rank).size());
    BOOST_TEST(record.losses.size() == (rank == 1 ? program.schedule.micro_batches : 0U));
    if (rank == 0) BOOST_TEST(record.memory[0].output == 3 * 6 * 8 + 3 * 8 + 3 * 8);  // of the three
    const Bytes losses = 8 * static_cast<Bytes>(program.schedule.micro_batches);
    BOOST_TEST(record.memory.back().after == (rank == 1 ? losses + 3 * 6 * 8 : 0));  // and a gradient, to be sent
  });
  for (const auto& error : errors) BOOST_TEST(text_of(error) == "");
}

BOOST_AUTO_TEST_CASE(evaluation_gives_outputs_back_and_needs_no_criterion) {
  const Program program = program_of("zb1p", 2);
  StepInput input = triple_step(program);
  Two trained(program);
  std::vector<Tensors> of_training;
  Tensors losses;
  input.return_outputs = true;
  const auto both = on_ranks(program, [&](int rank, Transport& transport) {
    const std::vector<Stage*> stages = trained.stages(rank);
    RankRecord record;
    StepResult result = Pipeline(program, rank, stages, transport, record).step(input);
    if (rank == 0) return;
    of_training = std::move(result.outputs);
    losses = std::move(result.losses);
  });
  for (const auto& error : both) BOOST_TEST(text_of(error) == "");
  BOOST_TEST_REQUIRE(of_training.size() == program.schedule.total_micro_batches());

  for (const bool has_criterion : {false, true}) {
    if (!has_criterion) input.criterion = nullptr;
    if (has_criterion) input = triple_step(program);
    input.return_outputs = true;
    Two evaluated(program);
    const auto errors = on_ranks(program, [&](int rank, Transport& transport) {
      const std::vector<Stage*> stages = evaluated.stages(rank);
      RankRecord record;
      const c10::NoGradGuard evaluation;
      const StepResult result = Pipeline(program, rank, stages, transport, record).step(input);
      if (rank == 0) return;
      for (std::size_t place = 0; place < of_training.size(); ++place) {
        BOOST_TEST(same_bits(only(result.outputs[place]), only(of_training[place])));
        BOOST_TEST(result.losses[place].defined() == has_criterion);
        if (has_criterion) BOOST_TEST(same_bits(result.losses[place], losses[place]));
      }
      BOOST_TEST(!stages[1]->parameters()[0].grad().defined());
      BOOST_TEST(record.ops[0].end > 0);
    });
    for (const auto& error : errors) BOOST_TEST(text_of(error) == "");
  }
}

// The models take what the step is given instead of what they would read themselves.
BOOST_DATA_TEST_CASE(a_model_of_ours_is_fed, data::make({"mlp", "gpt", "moe"}), model) {
  const Program program = program_of("1f1b", 1, 2);
  Chain chain(small(model, {2}));
  const std::vector<Stage*> stages = {chain.stages[0].get()};
  const auto transports = thread_transports(program.schedule.placement, {20s, 0ns});
  RankRecord record;
  Pipeline pipeline(program, 0, stages, *transports[0], record);
  const StepResult own = pipeline.step();
  StepInput input;
  for (std::int64_t i = 0; i < 2; ++i) input.inputs.push_back({chain.data->input(2, 10 + i)});
  const StepResult fed = pipeline.step(input);
  std::swap(input.inputs[0], input.inputs[1]);
  const StepResult swapped = pipeline.step(input);
  for (std::size_t i = 0; i < 2; ++i) {
    BOOST_TEST(same_bits(fed.losses[i], own.losses[i]));
    BOOST_TEST(!same_bits(swapped.losses[i], own.losses[i]));
    BOOST_TEST(record.losses[i] == swapped.losses[i].item<double>());
  }
}

struct OwnError {
  int code = 0;
};

// What was thrown is there, as it was, under the ReplayError of its rank; the other rank hears of that.
BOOST_AUTO_TEST_CASE(an_exception_comes_out_as_itself) {
  const Program program = program_of("1f1b", 2);
  StepInput input = triple_step(program);
  std::set<std::thread::id> called_on;
  input.criterion = [&](const Tensors&, const Tensors&) -> at::Tensor {
    called_on.insert(std::this_thread::get_id());
    throw OwnError{7};
  };
  Two two(program);
  std::thread::id last_thread;
  const auto errors = on_ranks(program, [&](int rank, Transport& transport) {
    if (rank == 1) last_thread = std::this_thread::get_id();
    const std::vector<Stage*> stages = two.stages(rank);
    RankRecord record;
    static_cast<void>(Pipeline(program, rank, stages, transport, record).step(input));
  });
  BOOST_TEST((called_on == std::set{last_thread}));
  BOOST_TEST(text_of(errors[1]) == "rank 1 failed in 1F0: an exception without a message");
  BOOST_TEST(text_of(errors[0]) == text_of(errors[1]));
  int code = 0;
  try {
    std::rethrow_exception(errors[1]);
  } catch (const ReplayError& error) {
    try {
      std::rethrow_if_nested(error);
    } catch (const OwnError& own) {
      code = own.code;
    }
  }
  BOOST_TEST(code == 7);
}

BOOST_AUTO_TEST_CASE(what_a_step_is_given_is_looked_at) {
  const Program program = program_of("1f1b", 2);
  const auto error = [&](const std::function<void(StepInput&)>& spoil) {
    StepInput input = triple_step(program);
    spoil(input);
    Two two(program);
    const auto errors = on_ranks(program, [&](int rank, Transport& transport) {
      const std::vector<Stage*> stages = two.stages(rank);
      RankRecord record;
      static_cast<void>(Pipeline(program, rank, stages, transport, record).step(input));
    });
    return text_of(errors[1]);
  };
  BOOST_TEST(error([](StepInput&) {}) == "");
  BOOST_TEST(error([](StepInput& input) {
               input.inputs.pop_back();
             }).starts_with("the inputs of 3 micro-batches are given, and the program has 4, over all chains"));
  BOOST_TEST(error([](StepInput& input) {
               input.targets.pop_back();
             }).starts_with("the targets of 3 micro-batches are given, and the program has 4"));
  BOOST_TEST(error([](StepInput& input) {
               input.criterion = nullptr;
               input.return_outputs = true;
             }) == "the step is to train, and has no loss: give it a criterion, or turn gradients off");
  BOOST_TEST(error([](StepInput& input) {
               input.criterion = [](const Tensors& outputs, const Tensors&) { return outputs[0]; };
             }) ==
             "rank 1 failed in 1F0: the criterion has to return the loss of a micro-batch, one number; it returned 18");
  BOOST_TEST(error([](StepInput& input) {
               input.criterion = [](const Tensors&, const Tensors&) { return at::Tensor(); };
             }).ends_with("it returned an undefined tensor"));
  BOOST_TEST(error([](StepInput& input) {
               input.criterion = nullptr;
             }).ends_with("has to return the loss, a scalar; it returned 18 numbers"));

  Two two(program);
  const std::vector<Stage*> stages = two.stages(0);
  RankRecord record;
  const auto transports = thread_transports(program.schedule.placement, {20s, 0ns});
  BOOST_CHECK_THROW(Pipeline(program, 2, stages, *transports[0], record), InputError);
}

// Of another number of tensors than came in.
BOOST_AUTO_TEST_CASE(gradients_are_one_for_each_output) {
  Placement placement = straight(2, 1);
  TripleStage stage(placement, 0);
  const Tensors inputs = triple_input(0);
  const Tensors outputs = stage.forward(0, inputs);
  BOOST_TEST_REQUIRE(outputs.size() == 3U);
  BOOST_TEST(outputs[1].is_alias_of(inputs[1]));  // passed on as it is
  BOOST_TEST(refusal([&] { static_cast<void>(stage.backward(0, {at::ones_like(outputs[0])})); }) ==
             "a forward made 3 tensors, and its backward got gradients of 1: there must be one for each, undefined "
             "where there is none");
  static_cast<void>(stage.forward(0, triple_input(0)));
  const Tensors gradients = stage.backward(0, {at::ones_like(outputs[0]), {}, {}});
  BOOST_TEST_REQUIRE(gradients.size() == 3U);
  BOOST_TEST(gradients[0].defined());
  BOOST_TEST(!gradients[1].defined());  // ids
  BOOST_TEST(!gradients[2].defined());  // nothing depends on it

  // Nothing depends on anything: zeros, so that the stage before can go on.
  static_cast<void>(stage.forward(0, triple_input(0)));
  const Tensors zeros = stage.backward(0, {{}, {}, {}});
  BOOST_TEST(at::equal(zeros.at(0), at::zeros({3, triple_width}, at::kDouble)));
  BOOST_TEST(!zeros.at(1).defined());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
