// No arithmetic: each op takes its time from `shape.costs`, to the precision of the host's clock. What the machinery
// around the stages costs can then be told from what they cost themselves. (A rank that sleeps for a message is woken
// late, some 20 to 50 us a time and, where others want the cores, by their time slices: dualpipe-run-bench tells that
// from what replay takes.)
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <chrono>
#include <thread>

#include "dualpipe/exec/model/empty.h"
#include "dualpipe/exec/model/models.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::model {
namespace {

using Clock = std::chrono::steady_clock;

// Sleeps to shortly before the end, as the kernel wakes a thread up late (by its timer slack, 50 us), and turns in a
// loop for what is left. It yields there, as ranks may share a core.
void take(Time duration) {
  constexpr auto wake_up = std::chrono::microseconds(100);
  const Clock::time_point end = Clock::now() + std::chrono::nanoseconds(duration);
  std::this_thread::sleep_until(end - wake_up);
  while (Clock::now() < end) std::this_thread::yield();
}

class TimedStage final : public EmptyStage {
 public:
  TimedStage(const StageCosts& costs, std::vector<LateOp> late, bool is_first, bool is_last)
      : EmptyStage(at::zeros({1}), is_first, is_last), costs_(costs), late_(std::move(late)) {}

  Tensors forward(std::uint32_t micro_batch, Tensors /*inputs*/) override {
    run(Kind::forward, micro_batch);
    return outputs();
  }
  Tensors backward(std::uint32_t micro_batch, Tensors /*gradients*/) override {
    run(Kind::backward, micro_batch);
    return input_gradients();
  }
  Tensors backward_input(std::uint32_t micro_batch, Tensors /*gradients*/) override {
    run(Kind::input_gradient, micro_batch);
    return input_gradients();
  }
  void backward_weight(std::uint32_t micro_batch) override { run(Kind::weight_gradient, micro_batch); }

  Overlapped overlapped_forward_backward(std::uint32_t forward_micro_batch, Tensors inputs, Stage& back,
                                         std::uint32_t backward_micro_batch, Tensors gradients,
                                         const PairStreams& streams) override {
    const auto* const timed_back = dynamic_cast<const TimedStage*>(&back);
    if (!costs_.overlapped || timed_back == nullptr) {
      return Stage::overlapped_forward_backward(forward_micro_batch, std::move(inputs), back, backward_micro_batch,
                                                std::move(gradients), streams);
    }
    take(*costs_.overlapped + late(Kind::forward, forward_micro_batch) +
         timed_back->late(Kind::backward, backward_micro_batch));
    return {outputs(), timed_back->input_gradients()};
  }

 private:
  void run(Kind kind, std::uint32_t micro_batch) const { take(costs_.duration(kind) + late(kind, micro_batch)); }
  [[nodiscard]] Time late(Kind kind, std::uint32_t micro_batch) const {
    Time by = 0;
    for (const LateOp& each : late_) {
      if (each.op.kind == kind && each.op.micro_batch == micro_batch) by += each.by;
    }
    return by;
  }

  StageCosts costs_;
  std::vector<LateOp> late_;
};

}  // namespace

std::unique_ptr<Stage> make_timed(const ModelShape& shape, int stage, const Feed& /*feed*/, Device& /*device*/) {
  const std::size_t given = shape.costs.stages.size();
  if (given != 1 && given != shape.layers.size()) {
    throw InputError(
        fmt::format("timed: costs are given for {} stages, but a chain has {}; give one for all, or one "
                    "for each",
                    given, shape.layers.size()));
  }
  if (!shape.costs.speed.empty() || shape.costs.jitter != 0) {
    throw InputError(
        "timed: a stage takes the same time on every rank; leave out the speeds and the jitter, or put "
        "them into the costs of each stage");
  }
  return std::make_unique<TimedStage>(shape.costs.of(stage), shape.late, is_first(stage), is_last(shape, stage));
}

}  // namespace dualpipe::detail::model
