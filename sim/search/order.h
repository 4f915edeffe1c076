// An order of all ops of a problem as flat numbers, and what of it never changes. Private to sim.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dualpipe/sim/schedule/schedule.h"
#include "dualpipe/sim/search/problem.h"

namespace dualpipe::detail::search {

enum class Pass : std::uint8_t { forward, input_gradient, weight_gradient };

// (stage * 3 + pass) * M + micro-batch.
using OpId = std::uint32_t;

// An op of a rank's word, and whether it runs as one unit with the entry behind it: I with its W is a full backward, F
// with the I of a full backward is a pair.
using Entry = std::uint32_t;
inline constexpr Entry joined = Entry{1} << 31U;
[[nodiscard]] constexpr OpId op_of(Entry entry) { return entry & ~joined; }
[[nodiscard]] constexpr bool is_joined(Entry entry) { return (entry & joined) != 0; }

// The words of all ranks, rank after rank. Every rank always has the same ops, so they begin where `Ops` says.
using Order = std::vector<Entry>;

struct OpInfo {
  OpId before;                // the op on another rank whose result it needs; `Ops::none`: nothing
  std::uint16_t before_rank;  // of that
  std::uint16_t stage;
  Time duration;  // alone
  Time travels;   // its result, until the next stage may start
};

class Ops {
 public:
  explicit Ops(const Problem& problem);

  [[nodiscard]] std::size_t count() const { return none_; }
  // An op that has always ended.
  [[nodiscard]] OpId none() const { return static_cast<OpId>(none_); }
  [[nodiscard]] OpId id(int stage, Pass pass, std::int64_t micro_batch) const {
    return static_cast<OpId>((stage * 3 + static_cast<int>(pass)) * micro_batches_ + micro_batch);
  }
  [[nodiscard]] int stage(OpId op) const { return static_cast<int>(op / (3 * micro_batches_)); }
  [[nodiscard]] Pass pass(OpId op) const { return static_cast<Pass>(op / micro_batches_ % 3); }
  [[nodiscard]] std::int64_t micro_batch(OpId op) const { return op % micro_batches_; }
  [[nodiscard]] const OpInfo& of(OpId op) const { return info_[op]; }
  [[nodiscard]] std::size_t begin(int rank) const { return begin_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] std::size_t end(int rank) const { return begin_[static_cast<std::size_t>(rank) + 1]; }
  [[nodiscard]] Bytes effect(OpId op) const { return effect_[op / static_cast<OpId>(micro_batches_)]; }

 private:
  std::int64_t micro_batches_;
  std::size_t none_;
  std::vector<OpInfo> info_;  // by op, and of none
  std::vector<std::size_t> begin_;
  std::vector<Bytes> effect_;  // on what the rank holds: by stage and pass
};

// The schedule that an order is: joined entries become B and pairs, and the Ws of a stage come in the order of its Is,
// so that gradients are summed in the order of the micro-batches. `name`: its.
[[nodiscard]] Schedule schedule_of(const Order& order, const Ops& ops, const Problem& problem, std::string name);
// Full backwards become I and W one after the other, or joined, where they have a gain of it. Micro-batches of a
// stage's pass come in order, as those of a stage are alike. The schedule is valid and of the problem's placement.
[[nodiscard]] Order order_of(const Schedule& schedule, const Ops& ops, const Problem& problem);

// Whether no rank ever holds more than it has room for.
[[nodiscard]] bool holds_no_more(const Order& order, const Ops& ops, const Problem& problem);

}  // namespace dualpipe::detail::search
