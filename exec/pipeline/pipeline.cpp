#include "dualpipe/exec/pipeline/pipeline.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <string_view>
#include <utility>

#include "dualpipe/exec/replay/rank_part.h"
#include "dualpipe/exec/stage/segment.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

using detail::replay::check_rank;
using detail::replay::loss_of;
using detail::stage::Segment;

namespace {

// Of one step.
class StepEnds final : public ChainEnds {
 public:
  StepEnds(const Schedule& schedule, const StepInput& input) : schedule_(schedule), input_(input) {
    const std::size_t places = schedule.total_micro_batches();
    check_size("inputs", input.inputs.size(), places);
    check_size("targets", input.targets.size(), places);
    if (c10::GradMode::is_enabled() && input.return_outputs && !input.criterion) {
      throw InputError("the step is to train, and has no loss: give it a criterion, or turn gradients off");
    }
    result_.losses.resize(places);
    if (input.return_outputs) result_.outputs.resize(places);
    if (input.criterion) graphs_.resize(places);
  }

  [[nodiscard]] Tensors inputs(Op forward) override {
    return input_.inputs.empty() ? Tensors() : input_.inputs[place_of(schedule_, forward)];
  }

  [[nodiscard]] at::Tensor loss(Op forward, Tensors outputs) override {
    const std::size_t place = place_of(schedule_, forward);
    at::Tensor& loss = result_.losses[place];
    if (input_.return_outputs) result_.outputs[place] = outputs;
    if (input_.criterion) {
      loss = loss_of(forward, criterion_loss(forward, outputs));
    } else if (!input_.return_outputs) {
      loss = loss_of(forward, std::move(outputs));
    }
    return loss;
  }

  [[nodiscard]] Tensors gradients(Op backward) override {
    if (!input_.criterion) return {};
    Segment graph = std::move(graphs_[place_of(schedule_, backward)]);
    return graph.backward(graph.loss_gradients(input_.loss_scale), Segment::Unreached::undefined);
  }

  [[nodiscard]] StepResult take() { return std::move(result_); }

 private:
  static void check_size(std::string_view what, std::size_t given, std::size_t places) {
    if (given == 0 || given == places) return;
    throw InputError(
        fmt::format("the {} of {} micro-batches are given, and the program has {}, over all chains; give "
                    "a list for each, empty where another rank has it",
                    what, given, places));
  }

  // In a graph of its own, between the outputs and the loss.
  [[nodiscard]] Tensors criterion_loss(Op forward, const Tensors& outputs) {
    const std::size_t place = place_of(schedule_, forward);
    const Tensors targets = input_.targets.empty() ? Tensors() : input_.targets[place];
    Tensors loss =
        graphs_[place].forward(outputs, [&](const Tensors& own) { return Tensors{input_.criterion(own, targets)}; });
    if (loss[0].defined() && loss[0].numel() == 1) return loss;
    throw InputError(fmt::format("the criterion has to return the loss of a micro-batch, one number; it returned {}",
                                 loss[0].defined() ? fmt::format("{}", loss[0].numel()) : "an undefined tensor"));
  }

  const Schedule& schedule_;
  const StepInput& input_;
  StepResult result_;
  std::vector<Segment> graphs_;  // of the criterion, from an F to its B or I
};

}  // namespace

std::size_t place_of(const Schedule& schedule, Op op) {
  return static_cast<std::size_t>(schedule.placement.chain_of(op.stage)) * schedule.micro_batches + op.micro_batch;
}

Pipeline::Pipeline(const Program& program, int rank, std::span<Stage* const> stages, Transport& transport,
                   RankRecord& record, ReplayOptions options)
    : program_(program),
      rank_(rank),
      stages_(stages),
      transport_(transport),
      record_(record),
      options_(std::move(options)) {
  check_rank(program, rank);
}

StepResult Pipeline::step(const StepInput& input) {
  ReplayOptions options = options_;
  options.forward_only = options_.forward_only || !c10::GradMode::is_enabled();
  try {
    StepEnds ends(program_.schedule, input);
    options.ends = &ends;
    replay(program_, rank_, stages_, transport_, record_, options);
    return ends.take();
  } catch (const InputError& error) {
    transport_.abort(fmt::format("rank {} failed before its step: {}", rank_, error.what()));
    throw;
  }
}

}  // namespace dualpipe
