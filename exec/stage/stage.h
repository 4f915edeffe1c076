// What an op does: one stage of a model, one micro-batch at a time.
//
// A stage is used by one thread, that of its rank. Between F and B (or I and W) of a micro-batch it keeps what the
// backward needs, and frees it as soon as the last op that needs it has run. Tensors that come in and go out are
// detached: no autograd graph reaches from one stage to another.
//
// What goes from a stage to the next is a list of tensors, of any shapes and types: hidden states, an attention mask,
// position ids, … An entry may be undefined, where a model has none of it. The gradients that come back are a list of
// the same length. An entry of it is undefined where the tensor can have no gradient, as one that is not of floating
// point, and may be undefined where nothing depends on the tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/device/device.h"

namespace dualpipe {

// The results of an F&B pair.
struct Overlapped {
  Tensors outputs;
  Tensors input_gradients;
};

// The streams on which the two ops of an F&B pair run. One and the same where the stage is paired with itself: then
// they run one after the other, for autograd runs a backward on the stream of its forward.
struct PairStreams {
  Device& device;
  Stream forward;
  Stream backward;
};

// A part of an F, a B, an I or a W, between two events of the stream that it ran on.
struct NotedPart {
  std::string name;
  bool is_forward = false;  // of an F
  Stream::Kind stream = Stream::Kind::compute;
  Event start;
  Event end;
};
using PartLog = std::vector<NotedPart>;

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

class Stage {
 public:
  Stage() = default;
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;
  virtual ~Stage() = default;

  // F. While gradients are off (c10::NoGradGuard: evaluation) it keeps nothing. `inputs`: the previous stage's outputs;
  // of the first stage of a chain, what the step was given (exec/pipeline/pipeline.h), or none, where the stage reads
  // its own data. Returns the outputs for the next stage; of the last stage of a chain, unless the step has a
  // criterion, the loss alone, a scalar.
  [[nodiscard]] virtual Tensors forward(std::uint32_t micro_batch, Tensors inputs) = 0;

  // B. `gradients`: of the outputs; none where the stage has computed the loss. Returns those of the inputs, which
  // nobody takes from the first stage of a chain. Gradients of the parameters are added to their .grad.
  [[nodiscard]] virtual Tensors backward(std::uint32_t micro_batch, Tensors gradients) = 0;

  // I, and later W, whose effects together are B's.
  [[nodiscard]] virtual Tensors backward_input(std::uint32_t micro_batch, Tensors gradients) = 0;
  virtual void backward_weight(std::uint32_t micro_batch) = 0;

  // F&B: this stage's F together with the B of another stage of the rank. Unless a stage overrides it, F is put on its
  // stream, and then B on the other one. Both streams may begin at once; the caller waits for both.
  [[nodiscard]] virtual Overlapped overlapped_forward_backward(std::uint32_t forward_micro_batch, Tensors inputs,
                                                               Stage& back, std::uint32_t backward_micro_batch,
                                                               Tensors gradients, const PairStreams& streams);

  // From now on the stage notes in `log` the parts that its ops consist of; null: no longer. A stage whose ops are of
  // one piece notes nothing.
  virtual void note_parts(PartLog* /*log*/) {}

  // What the optimizer updates, each once. Names and their order are the model's, however it is split:
  // "blocks.3.up.weight" is the same parameter in any stage. Stages that hold copies of one parameter give it one name.
  [[nodiscard]] virtual std::vector<NamedTensor> named_parameters() = 0;
  [[nodiscard]] std::vector<at::Tensor> parameters();

  // What it holds besides its parameters for as long as it lives: copies of them in the type that its ops compute in,
  // and the gradients that add_up_gradients() adds.
  [[nodiscard]] virtual Bytes working_bytes() const { return 0; }

  // The parameters of which other stages of the chain hold a copy, such as an embedding whose weight is that of the
  // head, too. Their gradients are summed over all stages that have them (tied_stages() in model.h), so that the copies
  // stay equal.
  [[nodiscard]] virtual std::vector<at::Tensor> tied_parameters() { return {}; }

  // Called after the last backward of a step, before anybody reads the gradients. A stage that has summed some
  // gradients separately, so that they are added in the same order as where the model is split, adds them to .grad
  // here.
  virtual void add_up_gradients() {}
};

// parameters() without tied_parameters(): what REDUCE_GRAD sums over the stages with the same weights.
[[nodiscard]] std::vector<at::Tensor> untied_parameters(Stage& stage);

}  // namespace dualpipe
