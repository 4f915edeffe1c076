// Samples on a device, there before a step begins: no op of the step copies any, or waits for one.
//
// They are no part of what a rank is said to hold: not of its measured peak, nor of the predicted one.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string_view>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/model/model.h"

namespace dualpipe::detail::model {

class DeviceData final : public Data {
 public:
  // The device must outlive it.
  DeviceData(std::shared_ptr<Data> source, const Device& device) : source_(std::move(source)), where_(device.where()) {}

  // Which of a step: `count` micro-batches from `first` on.
  struct Range {
    std::int64_t first = 0;
    std::int64_t count = 0;
  };
  // Copies these, and lets go of those of the step before. Put on the lane that is used.
  void begin_step(std::int64_t step, const std::vector<Range>& inputs, const std::vector<Range>& targets);

  // Of the step that has begun, and in its ranges; else they throw InputError.
  [[nodiscard]] at::Tensor input(std::int64_t step, std::int64_t micro_batch) override;
  [[nodiscard]] at::Tensor target(std::int64_t step, std::int64_t micro_batch) override;
  [[nodiscard]] std::string description() override { return source_->description(); }

 private:
  using Copies = std::map<std::int64_t, at::Tensor>;  // by micro-batch

  [[nodiscard]] at::Tensor copied(const Copies& copies, std::string_view what, std::int64_t step,
                                  std::int64_t micro_batch) const;

  std::shared_ptr<Data> source_;
  at::Device where_;
  std::int64_t step_ = -1;
  Copies inputs_;
  Copies targets_;
};

}  // namespace dualpipe::detail::model
