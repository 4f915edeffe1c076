// Samples that are on the device before a step begins, so that no op of the step copies one, or waits for one.
//
// They do not count as memory of the rank, neither in its measured peak nor in the predicted one.
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

  // `count` micro-batches of a step, from `first` on.
  struct Range {
    std::int64_t first = 0;
    std::int64_t count = 0;
  };
  // Copies these samples, on the stream that is used, and frees those of the step before.
  void begin_step(std::int64_t step, const std::vector<Range>& inputs, const std::vector<Range>& targets);

  // Both throw InputError for another step than the one that has begun, or a micro-batch that is not in its ranges.
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
