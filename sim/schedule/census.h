// How often stages and micro-batches occur in a schedule. One that hardly occurs is one too many, and is named once;
// without that, validate() would say of all others what they do not have of it. Private to validate.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "dualpipe/sim/schedule/schedule.h"
#include "dualpipe/sim/schedule/validate.h"

namespace dualpipe::detail::schedule {

class Census {
 public:
  // Ops of stages and micro-batches that there are not are not counted.
  explicit Census(const Schedule& schedule);

  // Whether the schedule has backwards; a few of them among many forwards are no reason for all to have one.
  [[nodiscard]] bool trains() const { return trains_; }
  // Whether the stage has to run the micro-batch: neither is one too many, or occurs nowhere.
  [[nodiscard]] bool is_expected(int stage, std::uint32_t micro_batch) const {
    return stages_[static_cast<std::size_t>(stage)] == Occurs::often &&
           micro_batches_[place_of(stage, micro_batch)] == Occurs::often;
  }

  // Each stage and micro-batch that is not: Rule::stray_stage, absent_stage, stray_micro_batch, absent_micro_batches.
  [[nodiscard]] std::vector<Violation> violations() const;

 private:
  enum class Occurs : std::uint8_t { often, rarely, nowhere };

  [[nodiscard]] std::size_t place_of(int stage, std::uint32_t micro_batch) const {
    return static_cast<std::size_t>(chain_of_[static_cast<std::size_t>(stage)]) * schedule_.micro_batches + micro_batch;
  }
  [[nodiscard]] bool is_counted(Op op) const;
  void classify(const std::vector<std::uint32_t>& of_stages, const std::vector<std::uint32_t>& of_micro_batches);
  void add_strays(std::vector<Violation>& violations) const;
  void add_absent_micro_batches(std::vector<Violation>& violations) const;

  const Schedule& schedule_;
  bool trains_ = false;
  std::vector<std::uint16_t> chain_of_;  // by stage
  std::vector<Occurs> stages_;
  std::vector<Occurs> micro_batches_;  // chain after chain
};

}  // namespace dualpipe::detail::schedule
