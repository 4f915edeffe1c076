// Builds a Schedule or a Program op by op, within bounds: a hostile file cannot make it grow without end. Private to
// the readers.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>
#include <variant>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::detail::schedule {

class ProgramBuilder {
 public:
  // The next op, pair or message of the rank.
  void add(const Cell& cell) {
    add(cell.first);
    if (cell.second) add(*cell.second);
  }

  // Puts the message into the batch of the message before it.
  void add_to_batch(Op message) {
    communication_.back().with_next = true;
    add(message);
  }

  // What follows is the next rank's.
  void end_rank() {
    if (ranks() >= stage_count_max) throw InputError(fmt::format("more than {} ranks", stage_count_max));
    rank_begin_.push_back(ops_.size());
    begin_slot();
  }

  [[nodiscard]] std::size_t ranks() const { return rank_begin_.size() - 1; }

  // A Program if there was any send or receive: what else there may be belongs to FSDP, and a Schedule does without.
  // The builder must not be used afterwards.
  [[nodiscard]] std::variant<Schedule, Program> take(std::string name, Placement placement,
                                                     std::uint32_t micro_batches) {
    check_size(placement, micro_batches);
    Schedule schedule{std::move(name), std::move(placement), micro_batches, std::move(ops_), std::move(rank_begin_)};
    if (!has_messages_) return schedule;
    return Program{std::move(schedule), std::move(communication_), std::move(slot_begin_)};
  }

 private:
  void add(Op op) {
    if (ops_.size() + communication_.size() >= op_count_max) {
      throw InputError(fmt::format("more than {} ops", op_count_max));
    }
    if (is_compute(op.kind)) {
      ops_.push_back(op);
      begin_slot();
    } else {
      communication_.push_back(op);
      has_messages_ = has_messages_ || is_send(op.kind) || is_receive(op.kind);
    }
  }

  void begin_slot() { slot_begin_.push_back(static_cast<std::uint32_t>(communication_.size())); }

  // Later code has tables with an entry for each micro-batch. One op with a huge number must not make them huge.
  static void check_size(const Placement& placement, std::uint32_t micro_batches) {
    const auto forwards = std::uint64_t{micro_batches} * placement.rank_of.size();
    if (forwards > op_count_max / 2) {
      throw InputError(
          fmt::format("{} micro-batches through {} stages take more than {} ops, the most that is supported",
                      micro_batches, placement.stages(), op_count_max));
    }
  }

  std::vector<Op> ops_;
  std::vector<std::size_t> rank_begin_ = {0};
  std::vector<Op> communication_;
  std::vector<std::uint32_t> slot_begin_ = {0};
  bool has_messages_ = false;
};

}  // namespace dualpipe::detail::schedule
