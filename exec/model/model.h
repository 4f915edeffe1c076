// The models that dualpipe-run can train. Each is a file of its own that cuts itself into stages.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/stage/recompute.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/op.h"

namespace dualpipe {

enum class NormKind : std::uint8_t { layer, rms };

// Of the numbers. bfloat16 is mixed precision as people train with it: parameters, their gradients and what the
// optimizer keeps are float32; products of matrices, attention, and what goes from layer to layer and from stage to
// stage are bfloat16; norms and the loss are computed in float32.
enum class Precision : std::uint8_t { float32, float64, bfloat16 };
[[nodiscard]] std::string_view to_text(Precision precision);  // "float32", …

// What some models have, and others have not.
enum class ModelFeature : std::uint8_t { any, parameters, recomputation, tokens, experts, durations };
// All models, or those that have it.
[[nodiscard]] std::vector<std::string_view> model_names(ModelFeature feature = ModelFeature::any);
// Throws InputError where there is no such model.
[[nodiscard]] bool has(std::string_view model, ModelFeature feature);

// An op that takes longer than its like, in every step.
struct LateOp {
  Op op;
  Time by = 0;

  friend bool operator==(const LateOp&, const LateOp&) = default;
};

// The sizes of all models. Each model uses those that it has.
struct ModelShape {
  std::string model = "gpt";  // one of model_names()
  std::int64_t hidden = 64;
  std::int64_t heads = 4;
  std::int64_t sequence = 32;
  std::int64_t vocabulary = 256;
  std::int64_t batch = 2;            // samples per micro-batch
  std::int64_t experts = 8;          // moe: of each layer, beside the shared one
  std::int64_t top_k = 2;            // moe: experts that a token goes to
  std::int64_t expert_hidden = 128;  // moe: the width inside an expert
  double capacity = 1.25;   // moe: tokens that an expert takes, in shares of the tokens if all experts had as many
  bool interleave = true;   // moe: the parts of an F&B pair; else F, then B
  std::vector<int> layers;  // per stage of a chain; their number is that of the stages
  NormKind norm = NormKind::layer;
  bool tied = false;  // gpt, moe: the weight of the head is that of the token embedding
  Recompute recompute = Recompute::none;
  Precision precision = Precision::float32;
  std::uint64_t seed = 0;  // of the parameters: those of a layer do not depend on how the model is split
  double loss_scale = 1;   // the loss of a micro-batch is scaled by it before its backward: 1 / (all micro-batches)
  Costs costs;             // `timed` only: how long its ops take; one for all stages of a chain or one for each
  std::vector<LateOp> late = {};  // `timed` only: of the stage that is made

  friend bool operator==(const ModelShape&, const ModelShape&) = default;
};

// Where the first stage of a chain gets its input from, and the last one what the loss compares with. The same
// arguments give the same samples, on any rank. Those made below may be shared by the ranks of a process, as reading
// changes nothing in them.
class Data {
 public:
  virtual ~Data() = default;
  // gpt, moe: int64 [batch, sequence] of tokens, and the tokens that follow each; mlp: [batch, hidden] both.
  [[nodiscard]] virtual at::Tensor input(std::int64_t step, std::int64_t micro_batch) = 0;
  [[nodiscard]] virtual at::Tensor target(std::int64_t step, std::int64_t micro_batch) = 0;
  // Which source of samples it is: "synthetic" for those that follow from the seed, or what is in the file.
  [[nodiscard]] virtual std::string description() { return "synthetic"; }
};

// Which samples a stage works on: micro-batch i of its chain is `first_micro_batch` + i of the step.
struct Feed {
  Data* data = nullptr;  // must outlive the stage
  std::int64_t step = 0;
  std::int64_t first_micro_batch = 0;
};

// Stage `stage` of the `shape.layers.size()` of a chain. `feed`, which is read at each F, and the rank's device must
// outlive it.
// Throws InputError for a shape that cannot be split so.
[[nodiscard]] std::unique_ptr<Stage> make_stage(const ModelShape& shape, int stage, const Feed& feed,
                                                Device& device = host_device());

// The stages of a chain that have tied_parameters(), in order: none, or those that hold copies of the same ones.
[[nodiscard]] std::vector<int> tied_stages(const ModelShape& shape);

// Synthetic samples, from a seed.
[[nodiscard]] std::unique_ptr<Data> synthetic_data(const ModelShape& shape, std::uint64_t seed);
// A file of int32 tokens, mapped into memory, and read once as a whole to check it. Sample k begins at token
// k * sequence; after the last sample the first one comes again. A step takes `micro_batches`, over all chains. Throws
// InputError for a file that does not fit the shape.
[[nodiscard]] std::unique_ptr<Data> token_file(const ModelShape& shape, const std::string& path,
                                               std::int64_t micro_batches);

// `layers` of `stages` parts, as even as they can be, the first ones larger. Throws InputError for less than 0 layers,
// or no stage.
[[nodiscard]] std::vector<int> split_evenly(int layers, int stages);

}  // namespace dualpipe
