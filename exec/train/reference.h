// The same training without a pipeline, and how a pipeline compares with it.
//
// One thread takes the micro-batches in order, each forward and backward through the whole model, and recomputes
// nothing. Where two chains have copies of their own of the weights, each copy takes its chain's micro-batches, and
// their gradients are added in the order of the chains; those of the copies of a tied parameter in the order of the
// stages. So all sums have one order, that of the micro-batches; a pipeline whose stages run their backwards in that
// order, too, must give the same bits.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "exec/stage/stage.h"
#include "exec/train/train.h"

namespace dualpipe {

class Reference {
 public:
  // Begins where options.resume ends, if that is given.
  Reference(const Schedule& schedule, const TrainOptions& options);
  ~Reference();

  // All forwards and backwards of a step. Returns its loss.
  double compute_gradients(int step);
  // Clips, and lets the optimizer do its step.
  void update();

  [[nodiscard]] std::span<Stage* const> stages() const;  // by number in the placement

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// How far the gradients of a stage are from the reference's.
struct GradientDifference {
  double largest = 0;  // of any element
  double cosine = 0;   // 1 - 2ab / (aa + bb) over all parameters of the stage: 1 - cosine where both are as long
  bool bitwise_equal = true;

  // Of two lists of parameters of the same shapes.
  [[nodiscard]] static GradientDifference between(std::span<const at::Tensor> a, std::span<const at::Tensor> b);
  void add(const GradientDifference& other);  // the worse of the two
};

struct CheckReport {
  int steps = 0;
  double max_loss_difference = 0;
  bool losses_bitwise_equal = true;
  GradientDifference gradients;               // the worst of all stages and steps
  std::vector<GradientDifference> per_stage;  // the worst of all steps
  bool same_order = false;                    // all stages add the gradients of their micro-batches in order
  std::string failure;                        // the first place outside of the tolerance; empty: none

  [[nodiscard]] bool passed() const { return failure.empty(); }
};

[[nodiscard]] std::string to_text(const CheckReport& report);

// Follows a training from outside, and runs the reference step by step beside it. The tolerance: losses are equal bit
// by bit as long as the gradients before them were; so are gradients where the order of additions is the same, else
// 1 - cosine is below 1e-13 in float64, 1e-6 in float32.
class Check {
 public:
  // Every process of the World has one: each compares its own stages, and all know the outcome.
  Check(World& world, const Schedule& schedule, const TrainOptions& options);

  // To be called from a TrainObserver, in every process.
  void on_gradients(int step, std::span<Stage* const> stages);
  void on_step(const StepReport& step);

  [[nodiscard]] const CheckReport& report() const { return report_; }

 private:
  void compare(std::span<Stage* const> stages, std::vector<GradientDifference>& differences) const;
  void exchange(std::vector<GradientDifference>& differences) const;
  void fail(const std::string& what);
  void check_gradients(int step, int stage, const GradientDifference& difference);

  World& world_;
  const Placement& placement_;
  bool float64_;
  Reference reference_;
  double reference_loss_ = 0;
  bool gradients_were_equal_ = true;  // in all steps before
  CheckReport report_;
};

}  // namespace dualpipe
