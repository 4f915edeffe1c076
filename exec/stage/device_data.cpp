#include "dualpipe/exec/stage/device_data.h"

#include <cassert>
#include <utility>

namespace dualpipe {

void DeviceData::begin_step(std::int64_t step, const std::vector<Range>& inputs, const std::vector<Range>& targets) {
  inputs_.clear();
  targets_.clear();
  step_ = step;
  for (const auto& [first, count] : inputs) {
    for (std::int64_t i = first; i < first + count; ++i) inputs_[i] = source_->input(step, i).to(where_);
  }
  for (const auto& [first, count] : targets) {
    for (std::int64_t i = first; i < first + count; ++i) targets_[i] = source_->target(step, i).to(where_);
  }
}

at::Tensor DeviceData::input(std::int64_t step, std::int64_t micro_batch) {
  assert(step == step_ && "begin_step() has not copied it");
  static_cast<void>(step);
  return inputs_.at(micro_batch);
}

at::Tensor DeviceData::target(std::int64_t step, std::int64_t micro_batch) {
  assert(step == step_ && "begin_step() has not copied it");
  static_cast<void>(step);
  return targets_.at(micro_batch);
}

}  // namespace dualpipe
