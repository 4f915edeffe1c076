// The same training without a pipeline, and how a pipeline compares with it.
//
// The whole model is on one device, of the kind that the ranks have. One thread takes the micro-batches in order, each
// forward and backward through all stages, and recomputes nothing. Where two chains have copies of the weights, each
// copy takes the micro-batches of its chain, and the gradients of the copies are added in the order of the chains;
// those of the copies of a tied parameter are added in the order of the stages. So every sum is in the order of the
// micro-batches. A pipeline whose stages run their backwards in that order, too, must give the same bits.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/exec/train/train.h"

namespace dualpipe {

class Reference {
 public:
  // Goes on from options.resume, if that is given. The methods may be called by any thread, one at a time; the device
  // has finished what they did when they return.
  Reference(const Schedule& schedule, const TrainOptions& options);
  ~Reference();

  // All forwards and backwards of a step. Returns its loss.
  double compute_gradients(int step);
  // Clips, and lets the optimizer do its step.
  void update();
  // Goes on from the parameters of another, which may compute in another type.
  void copy_parameters(const Reference& other);

  [[nodiscard]] std::span<Stage* const> stages() const;  // by number in the placement

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// How far the gradients of a stage are from the reference's.
struct GradientDifference {
  double largest = 0;      // of any element
  double cosine = 0;       // 1 - 2ab / (aa + bb) over all parameters of the stage: 1 - cosine where both are as long
  double relative_l2 = 0;  // |a - b| / |b|, likewise
  bool bitwise_equal = true;

  // Of the gradients of two lists of parameters of the same shapes; `b`: the reference's.
  [[nodiscard]] static GradientDifference between(std::span<const at::Tensor> a, std::span<const at::Tensor> b);
  void add(const GradientDifference& other);  // the worse of the two
};

// How far a training may be from its reference. A limit of 0 is none.
struct Tolerance {
  bool losses_bitwise = false;     // of each step before which all gradients were equal
  bool gradients_bitwise = false;  // likewise, and the gradients of the micro-batches are added in order
  double loss = 0;                 // else: relative
  double cosine = 0;               // 1 - cosine of the gradients of a stage is below it
  double relative_l2 = 0;          // of the same; not above it
  double rounding = 0;             // relative L2 from the gradients that float32 gives for the same parameters

  //              on the host                                       on a GPU
  //    float64   bitwise where in order, else 1 - cosine < 1e-13   1 - cosine < 1e-13
  //    float32   1 - cosine < 1e-6                                 relative L2 <= 1e-5
  //   bfloat16   bitwise where in order, else relative L2 <= 1e-2  relative L2 <= 1e-2
  //              and relative L2 from float32 <= 1e-2              and the same
  //
  // The last one is for a layer. What each layer rounds adds up as independent errors do, so that a model is allowed
  // sqrt(layers) times as much. (Measured, 64 wide: 0.7 to 1.0 % for two layers of gpt, 0.9 to 1.1 % for eight,
  // 0.6 to 0.8 % and 1.6 to 2.3 % for mlp's; 8 wide, where few numbers decide, up to four times that.)
  // In moe rounding also sends tokens to other experts where two are all but equal, and theirs are then other gradients
  // altogether: ten times as much is allowed.
  [[nodiscard]] static Tolerance of(const ModelShape& shape, bool on_host);

  friend bool operator==(const Tolerance&, const Tolerance&) = default;
};

struct CheckReport {
  Precision precision = Precision::float32;
  Tolerance tolerance;
  int steps = 0;
  double max_loss_difference = 0;
  bool losses_bitwise_equal = true;
  GradientDifference gradients;               // the worst of all stages and steps
  std::vector<GradientDifference> per_stage;  // the worst of all steps
  // Only in bfloat16: from gradients that float32 gives for the same parameters.
  std::optional<GradientDifference> from_float32;
  std::vector<GradientDifference> per_stage_from_float32;
  bool same_order = false;  // all stages add the gradients of their micro-batches in order
  std::string failure;      // the first place outside of the tolerance; empty: none

  [[nodiscard]] bool passed() const { return failure.empty(); }
};

[[nodiscard]] std::string to_text(const CheckReport& report);

// Follows a training from outside: runs the reference beside it, step by step, and checks that both agree within the
// tolerance. In bfloat16 a second reference, in float32, begins each step with the parameters of the first one: it
// shows what rounding alone does.
class Check {
 public:
  // Every process of the World makes one. Each compares its own stages, and all know the outcome.
  Check(World& world, const Schedule& schedule, const TrainOptions& options);

  // To be called from a TrainObserver, in every process.
  void on_gradients(int step, std::span<Stage* const> stages);
  void on_step(const StepReport& step);

  [[nodiscard]] const CheckReport& report() const { return report_; }

 private:
  // By stage, of those of all processes.
  [[nodiscard]] std::vector<GradientDifference> differences(std::span<Stage* const> stages,
                                                            const Reference& reference) const;
  void exchange(std::vector<GradientDifference>& differences) const;
  void fail(const std::string& what);
  void check_gradients(int step, int stage, const GradientDifference& difference);
  void check_rounding(int step, std::span<Stage* const> stages);

  World& world_;
  const Placement& placement_;
  Reference reference_;
  std::optional<TrainOptions> options_of_float32_;
  std::optional<Reference> float32_;  // in bfloat16
  double reference_loss_ = 0;
  bool gradients_were_equal_ = true;  // in all steps before
  CheckReport report_;
};

}  // namespace dualpipe
