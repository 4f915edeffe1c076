// One rank's part of the steps of a Program: what a training sits on, a benchmark, or whoever brings stages of their
// own.
//
//     Pipeline pipeline(program, rank, stages, transport, record);
//     const StepResult result = pipeline.step({.inputs = …, .targets = …, .criterion = …});
//
// A step runs on the thread that calls it, and what a stage or the criterion throws there is nested in the ReplayError
// that comes out. Every rank of the program has a Pipeline, and calls step() when the others do. On a GPU a rank may
// begin a step only when all have ended the one before: the events that they wait for become void.
//
// While gradients are off (c10::NoGradGuard) a step evaluates: it runs the forwards of the program alone, in its order,
// and the stages keep nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// The loss of a micro-batch, a scalar, from what its last stage made and what it should have been.
using Criterion = std::function<at::Tensor(const Tensors& outputs, const Tensors& targets)>;

// What a rank brings to a step. Tensors are on the rank's device, and made, where that is a GPU, on its first compute
// stream. All lists of a step have a place for each micro-batch of each chain: chain * micro-batches of a chain +
// micro-batch. What stands in the places of chains that begin, or end, on another rank is not looked at.
struct StepInput {
  // What goes into the first stages. Empty: they read data of their own, as those of exec/model do.
  std::vector<Tensors> inputs{};
  // For the criterion. Empty: it gets none.
  std::vector<Tensors> targets{};
  // Empty: the last stages give the loss themselves, as those of exec/model do; or, where the outputs are wanted, there
  // is no loss.
  Criterion criterion{};
  // The gradient of each loss with which its backward begins; where the last stages give the loss, they have their own.
  double loss_scale = 1;
  // Whether StepResult::outputs is wanted. The outputs are then held until the step ends.
  bool return_outputs = false;
};

// What a step has made at the ends of the chains, detached; undefined, or empty, where a chain ends on another rank.
struct StepResult {
  std::vector<at::Tensor> losses;  // scalars; undefined, too, where there is no loss
  std::vector<Tensors> outputs;    // of the last stages; no list where they are not wanted
};

class Pipeline {
 public:
  // `stages`: by stage of the placement; null for those of other ranks. `record`: what each step did, also one that
  // failed. All must outlive the pipeline. `options`: its `ends` are the pipeline's own. Throws InputError where the
  // program is not of one piece, or has no such rank.
  Pipeline(const Program& program, int rank, std::span<Stage* const> stages, Transport& transport, RankRecord& record,
           ReplayOptions options = {});

  // Runs a step. Throws like replay(); and InputError, which ends the run of all ranks, where the input is not one of
  // this program, or there is no loss although gradients are on.
  StepResult step(const StepInput& input = {});

 private:
  const Program& program_;
  int rank_;
  std::span<Stage* const> stages_;
  Transport& transport_;
  RankRecord& record_;
  ReplayOptions options_;
};

// The place of an op's micro-batch in the lists of a step.
[[nodiscard]] std::size_t place_of(const Schedule& schedule, Op op);

}  // namespace dualpipe
