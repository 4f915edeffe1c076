#include "dualpipe/exec/model/device_data.h"

#include <fmt/format.h>

#include <string_view>
#include <utility>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::model {

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
  return copied(inputs_, "input", step, micro_batch);
}

at::Tensor DeviceData::target(std::int64_t step, std::int64_t micro_batch) {
  return copied(targets_, "target", step, micro_batch);
}

at::Tensor DeviceData::copied(const Copies& copies, std::string_view what, std::int64_t step,
                              std::int64_t micro_batch) const {
  const auto found = copies.find(micro_batch);
  if (step == step_ && found != copies.end()) return found->second;
  throw InputError(
      fmt::format("the {} of micro-batch {} of step {} is not on the device: DeviceData::begin_step() copies "
                  "what a step needs before the step begins",
                  what, micro_batch, step));
}

}  // namespace dualpipe::detail::model
