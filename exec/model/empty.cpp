// Nothing at all: what is left of a run is what it costs to run a Program.
#include <ATen/ops/zeros.h>

#include "dualpipe/exec/model/models.h"

namespace dualpipe::detail::model {
namespace {

class EmptyStage final : public Stage {
 public:
  EmptyStage(bool is_first, bool is_last) : output_(at::zeros(is_last ? at::IntArrayRef{} : at::IntArrayRef{1})) {
    if (!is_first) input_gradient_ = at::zeros({1});
  }

  at::Tensor forward(std::uint32_t /*micro_batch*/, at::Tensor /*input*/) override { return output_; }
  at::Tensor backward(std::uint32_t /*micro_batch*/, at::Tensor /*gradient*/) override { return input_gradient_; }
  at::Tensor backward_input(std::uint32_t /*micro_batch*/, at::Tensor /*gradient*/) override { return input_gradient_; }
  void backward_weight(std::uint32_t /*micro_batch*/) override {}
  std::vector<NamedTensor> named_parameters() override { return {}; }

 private:
  at::Tensor output_;
  at::Tensor input_gradient_;  // undefined in a first stage
};

class NoData final : public Data {
 public:
  at::Tensor input(std::int64_t /*step*/, std::int64_t /*micro_batch*/) override { return {}; }
  at::Tensor target(std::int64_t /*step*/, std::int64_t /*micro_batch*/) override { return {}; }
};

}  // namespace

std::unique_ptr<Stage> make_empty(const ModelShape& shape, int stage, const Feed& /*feed*/, Device& /*device*/) {
  return std::make_unique<EmptyStage>(is_first(stage), is_last(shape, stage));
}

std::unique_ptr<Data> no_data(const ModelShape& /*shape*/, std::uint64_t /*seed*/) {
  return std::make_unique<NoData>();
}

}  // namespace dualpipe::detail::model
