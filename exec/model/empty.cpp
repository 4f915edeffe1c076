#include "dualpipe/exec/model/empty.h"

#include <ATen/ops/zeros.h>

#include "dualpipe/exec/model/models.h"

namespace dualpipe::detail::model {
namespace {

class NoData final : public Data {
 public:
  at::Tensor input(std::int64_t /*step*/, std::int64_t /*micro_batch*/) override { return {}; }
  at::Tensor target(std::int64_t /*step*/, std::int64_t /*micro_batch*/) override { return {}; }
};

}  // namespace

EmptyStage::EmptyStage(const at::Tensor& message, bool is_first, bool is_last)
    : outputs_{is_last ? at::zeros({}, message.device()) : message} {
  if (!is_first) input_gradients_ = {message};
}

std::unique_ptr<Stage> make_empty(const ModelShape& shape, int stage, const Feed& /*feed*/, Device& /*device*/) {
  return std::make_unique<EmptyStage>(at::zeros({1}), is_first(stage), is_last(shape, stage));
}

std::unique_ptr<Data> no_data(const ModelShape& /*shape*/, std::uint64_t /*seed*/) {
  return std::make_unique<NoData>();
}

}  // namespace dualpipe::detail::model
