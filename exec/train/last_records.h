// What was recorded of the last steps of a training. Private to exec/train.
#pragma once

#include <cstddef>
#include <vector>

#include "dualpipe/exec/train/train.h"

namespace dualpipe::detail::train {

// The last of the records that it is given, in a list.
class LastRecords {
 public:
  explicit LastRecords(std::vector<RankRecords>& kept) : kept_(kept) {}

  void add(const RankRecords& records) {
    if (kept_.size() < kept_max) {
      kept_.push_back(records);
    } else {
      kept_[count_ % kept_max] = records;
    }
    ++count_;
  }
  void clear() {
    kept_.clear();
    count_ = 0;
  }
  // Those that were added as the `index`-th, which must be kept still.
  [[nodiscard]] const RankRecords& at(std::size_t index) const { return kept_[index % kept_max]; }
  [[nodiscard]] std::size_t first_kept() const { return count_ - kept_.size(); }

 private:
  static constexpr std::size_t kept_max = 101;  // with what every op did: a long run must not fill the memory

  std::vector<RankRecords>& kept_;
  std::size_t count_ = 0;  // of all that were added
};

}  // namespace dualpipe::detail::train
