// A stage that is a sequence of parts, which take turns on two kinds of streams: they compute, or they exchange what
// other shards of the stage need of it. In an F&B pair the parts of the two micro-batches are interleaved, so that one
// computes while the other exchanges. For the layers of a mixture of experts, of four parts each (B's are marked by ',
// and dW are its weight gradients):
//
//     F                            attention, dispatch, experts, combine
//     B                            combine', experts' dW, dispatch', attention' dW
//
//     compute, stream of F         ▐attention▌             ▐ experts  ▌                 …
//     compute, stream of B   …                ▐experts'▐dW▌            ▐attention'▐dW▌
//     exchange                     ▐combine' ▌▐ dispatch  ▌▐dispatch' ▌▐   combine   ▌
//
// That is the order of DeepSeek-V3 (arXiv:2412.19437, section 3.2.1, figure 4) and of Megatron-Core's overlapped
// forward and backward: an exchange begins as soon as what it sends is there, and weight gradients, for which nobody
// waits, are computed while the gradient of the input travels. The streams of F and B are two, and may share the cores.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/stage/deferred.h"
#include "dualpipe/exec/stage/held.h"
#include "dualpipe/exec/stage/recompute.h"
#include "dualpipe/exec/stage/segment.h"
#include "dualpipe/exec/stage/stage.h"

namespace dualpipe::detail::stage {

// It keeps what an AutogradStage of the same layers keeps, and what an exchange brings. Each tensor is freed when the
// last part that needs it has been put on its stream.
//
// A forward or backward by itself computes on the stream that is in use when it is called, and that stream is in use
// again when it returns; forward and backward of a micro-batch have the same stream. A tensor that goes from one stream
// to another is adopted there (Device::adopt()), at an event after the work that made it.
class PartedStage : public Stage {
 public:
  [[nodiscard]] Tensors forward(std::uint32_t micro_batch, Tensors inputs) final;
  [[nodiscard]] Tensors backward(std::uint32_t micro_batch, Tensors gradients) final;
  [[nodiscard]] Tensors backward_input(std::uint32_t micro_batch, Tensors gradients) final;
  void backward_weight(std::uint32_t micro_batch) final;
  // Parts are noted by their names. The weight gradients of a part are a part of their own, "experts dW"; those of a
  // whole W are one part, "dW". A part that is recomputed is "experts again".
  void note_parts(PartLog* log) final { log_ = log; }
  [[nodiscard]] Bytes working_bytes() const final { return working_bytes_; }

  // Interleaves the parts if `back` is a PartedStage, too, and interleaving is on. Else F runs first, and then B.
  [[nodiscard]] Overlapped overlapped_forward_backward(std::uint32_t forward_micro_batch, Tensors inputs, Stage& back,
                                                       std::uint32_t backward_micro_batch, Tensors gradients,
                                                       const PairStreams& streams) final;

 protected:
  struct Options {
    double loss_scale = 1;  // the gradient of the last stage's output, the loss
    Recompute recompute =
        Recompute::none;  // `full` is done here: exchanges, too, run again; `attention` is up to the model
    bool interleave = true;
  };
  PartedStage(Device& device, const Options& options) : device_(device), options_(options) {}

  // Parts are added in the order of the forward. The first part gets the stage's inputs, and every other one the
  // results of the part before it; the results of the last part are the stage's outputs, or the loss. A function may be
  // called twice for a micro-batch, if that is recomputed, and must then do the same again.
  using Function = std::function<Tensors(std::uint32_t micro_batch, const Tensors& inputs)>;
  struct Work {
    std::string name;
    Function function;
  };
  // `meanwhile` is what the part can compute while the exchange before it is still under way: it gets all tensors but
  // the first, which is the one that is exchanged, and returns as many. `work` then gets all. In the backward,
  // `meanwhile` runs while the gradient of the exchanged tensor is under way.
  void add_compute(Work work, Work meanwhile = {});
  // Exchanges the first tensor, and passes the others on to the next part. It must stand between two parts that
  // compute.
  void add_exchange(std::string name);

  // For the layers.
  [[nodiscard]] WeightGradients& weight_gradients() { return weight_gradients_; }
  [[nodiscard]] Bytes& held_by_layers() { return working_bytes_; }

 private:
  class Pass;
  struct Part {
    Stream::Kind stream = Stream::Kind::compute;
    Work work;       // of an exchange its name alone
    Work meanwhile;  // may be empty
  };
  struct PartSegments {
    Segment meanwhile;
    Segment segment;
  };
  // Of a micro-batch, between its passes.
  struct Kept {
    Tensors inputs;                      // if it recomputes
    std::vector<PartSegments> segments;  // by part
    std::vector<WeightGradient> weight_gradients;
  };
  [[nodiscard]] bool recomputes() const { return options_.recompute == Recompute::full; }
  // Runs what is a part, on the stream that is used. The events around it are made only where somebody wants to know.
  template <typename Run>
  void noted(bool is_forward, Stream::Kind stream, const std::string& name, std::string_view suffix, Run run);

  Device& device_;
  Options options_;
  std::vector<Part> parts_;
  WeightGradients weight_gradients_;
  Bytes working_bytes_ = 0;
  Held<Kept> held_;
  PartLog* log_ = nullptr;
};

}  // namespace dualpipe::detail::stage
