// The records of a training's ranks: those of all processes brought together, and those of the last steps kept. Private
// to exec/train.
#pragma once

#include <cstddef>
#include <vector>

#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/pack.h"
#include "dualpipe/exec/transport/world.h"

namespace dualpipe::detail::train {

// `clock_offset` is added to all times.
void pack(detail::transport::Packer& packer, const RankRecord& record, Time clock_offset);
// The record of a rank of this program; it is empty where the rank was not begun. Throws std::runtime_error where the
// bytes are not those of such a record.
[[nodiscard]] RankRecord unpack_record(detail::transport::Unpacker& unpacker, const Program& program, int rank);

// Fills in the records of the ranks of other processes, all of which have run this program. Collective. Throws
// TransportError.
void gather_records(World& world, const Program& program, RankRecords& records);

// Afterwards every process knows what each knew of its own ranks and stages. Collective. Throws TransportError.
void gather_results(World& world, const Program& program, TrainResult& result);

// A step that failed: its number, the program that it ran, and what was done of it.
struct FailedStep {
  int step = 0;
  const Program* program = nullptr;
  RankRecords records;
};
// After a failure, gives process 0 what all processes know of the step that was reached last. `own`: what this process
// knows; `apart`: the other program that a step may have run. A process whose answer does not come, or cannot be read,
// counts as having done nothing. In the other processes it returns `own`.
[[nodiscard]] FailedStep hand_over_records(World& world, const Program& program, const Program& apart, FailedStep own);

// Keeps the last of the records that it is given, in a list of its owner's.
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
  // Those that were added as the `index`-th. They must be among the ones that are still kept.
  [[nodiscard]] const RankRecords& at(std::size_t index) const { return kept_[index % kept_max]; }
  [[nodiscard]] std::size_t first_kept() const { return count_ - kept_.size(); }

 private:
  static constexpr std::size_t kept_max = 101;  // with what every op did: a long run must not fill the memory

  std::vector<RankRecords>& kept_;
  std::size_t count_ = 0;  // of all that were added
};

}  // namespace dualpipe::detail::train
