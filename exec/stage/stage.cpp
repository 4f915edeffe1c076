#include "dualpipe/exec/stage/stage.h"

#include <algorithm>

namespace dualpipe {

std::vector<at::Tensor> Stage::parameters() {
  std::vector<at::Tensor> all;
  for (NamedTensor& parameter : named_parameters()) all.push_back(std::move(parameter.tensor));
  return all;
}

Overlapped Stage::overlapped_forward_backward(std::uint32_t forward_micro_batch, Tensors inputs, Stage& back,
                                              std::uint32_t backward_micro_batch, Tensors gradients,
                                              const PairStreams& streams) {
  streams.device.use(streams.forward);
  Tensors outputs = forward(forward_micro_batch, std::move(inputs));
  streams.device.use(streams.backward);
  return {std::move(outputs), back.backward(backward_micro_batch, std::move(gradients))};
}

std::vector<at::Tensor> untied_parameters(Stage& stage) {
  std::vector<at::Tensor> parameters = stage.parameters();
  const std::vector<at::Tensor> tied = stage.tied_parameters();
  std::erase_if(parameters, [&](const at::Tensor& parameter) {
    return std::ranges::any_of(tied, [&](const at::Tensor& other) { return other.is_same(parameter); });
  });
  return parameters;
}

}  // namespace dualpipe
