// V-Half and V-Min (Pipeline Parallelism with Controllable Memory, arXiv:2405.15362, sections 3 and 4): a half and a
// third of 1F1B's activations. A rank r holds two stages of a V, r and 2P-1-r, and what it holds is set by a building
// block: when the four passes of one micro-batch run, in slots of one unit, the next micro-batch 6 slots behind. The
// block's life span, over all stages of a rank, divided by 6 is the number of activations that are alive.
//
//            F of stage r   F of 2P-1-r   I of 2P-1-r   I of r
//   V-Half   2r             3P-2-r        3P-1+e+2r     6P-2+e-r    e = 3 if P is even, else 0
//   V-Min    r              2P-1-r        2P+e+r        4P+e-1-r    e = 2 if 3 divides P, else 0
//
// The slots of a rank never collide, and W runs in those that the block leaves free. What is left to do is to squeeze
// the two ends of the schedule, where the neighbours of a block are missing; the steady state stays as it is. The rules
// are those of the authors' public scheduler (https://github.com/sail-sg/zero-bubble-pipeline-parallelism):
//
// 1. W goes into the next free slot. The peak is that of the rank that holds most.
// 2. Before the first I of stage 0 ends the warm-up, and after its last F has begun the cool-down, each pass moves to
//    the first free slot after its input and after the pass of its kind before it, unless that makes a rank hold more
//    than the peak. Then all passes run as early as they can, in the order of their slots.
// 3. The W are taken out again. The cool-down moves once more, where now every slot that is free counts as a W while
//    any is pending. They go back into free slots, and again all passes run as early as they can.
// 4. Out and back in again: of the second stage before those of the first. The order of the slots is the schedule.
//
// Costs play no part in it: all passes take one unit. In the steady state no rank idles where 2|F-I| <= W (V-Half), or
// W >= 2max(F,I) - min(F,I) (V-Min); else each micro-batch takes 4max(F,I)+W, or 6max(F,I), instead of a rank's work,
// 2(F+I+W).
//
// Drawing: v-half, 3 ranks, 3 micro-batches; F = 1, B = 2, W = 1
//
//   rank 0: 0F0 0F1 0F2 .   .   5F0 5I0 5W0 5F1 5I1 5W1 .   0I0 0W0 .   5F2 5I2 0I1 5W2 0W1 .   0I2 0W2
//   rank 1: .   1F0 1F1 .   4F0 .   4F1 4I0 4W0 1F2 4I1 1I0 4W1 1W0 4F2 .   1I1 4I2 4W2 1W1 1I2 1W2 .
//   rank 2: .   .   2F0 3F0 2F1 3F1 .   .   3I0 3W0 2I0 2W0 2F2 3F2 3I1 2I1 3W1 2W1 3I2 2I2 3W2 2W2 .
//
// Drawing: v-min, 3 ranks, 3 micro-batches; F = 1, B = 2, W = 1
//
//   rank 0: 0F0 0F1 0F2 .   .   5F0 5I0 5W0 5F1 5I1 5W1 0I0 0W0 .   .   .   .   5F2 0I1 5I2 5W2 0W1 .   .   0I2 0W2
//   rank 1: .   1F0 1F1 .   4F0 .   4F1 4I0 4W0 .   1I0 1W0 4I1 1F2 4W1 .   4F2 1I1 1W1 .   4I2 4W2 .   1I2 1W2 .
//   rank 2: .   .   2F0 3F0 2F1 3F1 .   .   3I0 2I0 3W0 2W0 .   3I1 2F2 3F2 2I1 3W1 2W1 .   .   3I2 2I2 3W2 2W2 .
//
// Shapes: any.
// Bubble where F = I = W: (6ceil(P/2)-7)F of V-Half, if P >= 3 and M >= P+2; of V-Min (4P-5)F, or (4P-7)F where 3
// divides P, if P >= 2 and M > P. Peak activations, in micro-batches of a rank's two stages: floor((P+2)/2) on every
// rank, and floor((P+4)/3), half a one less on the first rank if P mod 3 = 2.
#include <algorithm>
#include <array>
#include <cassert>
#include <cstdint>
#include <utility>
#include <vector>

#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

using Slot = std::int64_t;

// What runs in a slot. The four passes come in the order in which a micro-batch goes through them on its rank: 1 is the
// rank's stage in the first half of the V, 2 the one in the second.
enum class Cell : std::uint8_t { f1, f2, i2, i1, w, w1, w2, free };
constexpr std::size_t kinds_of_passes = 4;

constexpr bool is_forward(Cell cell) { return cell == Cell::f1 || cell == Cell::f2; }
constexpr bool is_input_gradient(Cell cell) { return cell == Cell::i2 || cell == Cell::i1; }
// From the first rank to the last; else from the last to the first.
constexpr bool goes_up(Cell cell) { return cell == Cell::f1 || cell == Cell::i2; }

using Row = std::vector<Cell>;  // of a rank, by slot
using Block = std::array<Slot, kinds_of_passes>;

constexpr Slot period = 6;

// Both in slots. What a rank holds after a slot if a free one is a W while there is one to run.
struct Held {
  std::int32_t activations = 0;  // forwards whose W has not run, of both stages
  std::int32_t pending = 0;      // W that could run

  friend bool operator==(const Held&, const Held&) = default;

  void pass(Cell cell, bool free_is_weight_gradient) {
    if (is_forward(cell)) ++activations;
    if (is_input_gradient(cell)) ++pending;
    const bool is_weight_gradient = cell == Cell::w || (cell == Cell::free && free_is_weight_gradient && pending > 0);
    if (!is_weight_gradient) return;
    --activations;
    --pending;
  }
};

class BlockSlots {
 public:
  BlockSlots(int ranks, Slot micro_batches, Block (*block)(Slot rank, Slot ranks))
      : micro_batches_(micro_batches),
        rows_(static_cast<std::size_t>(ranks)),
        starts_(kinds_of_passes * rows_.size() * static_cast<std::size_t>(micro_batches)) {
    for (std::size_t rank = 0; rank < rows_.size(); ++rank) {
      const Block of_rank = block(static_cast<Slot>(rank), ranks);
      Row& row = rows_[rank];
      row.assign(static_cast<std::size_t>(*std::ranges::max_element(of_rank) + period * (micro_batches - 1) + 1),
                 Cell::free);
      for (std::size_t pass = 0; pass < kinds_of_passes; ++pass) {
        for (Slot i = 0; i < micro_batches; ++i) {
          Cell& cell = row[static_cast<std::size_t>(of_rank[pass] + period * i)];
          assert(cell == Cell::free);
          cell = static_cast<Cell>(pass);
        }
      }
    }
  }

  void order() {
    add_weight_gradients();
    squeeze_ends(false);
    run_early();
    remove_weight_gradients();
    squeeze_ends(true);
    add_weight_gradients();
    run_early();
    remove_weight_gradients();
    add_weight_gradients_by_stage();
  }

  [[nodiscard]] const std::vector<Row>& rows() const { return rows_; }

 private:
  // Which part of the schedule the walk through the slots has come to.
  enum class Phase : std::uint8_t { warm_up, steady, cool_down };

  // A pass at its place.
  struct At {
    std::size_t rank;
    std::size_t slot;
    Cell cell;
    Slot micro_batch;  // of a W: how many there are before it on its rank
  };

  [[nodiscard]] std::int32_t& start(Cell pass, std::size_t rank, Slot micro_batch) {
    return starts_[(static_cast<std::size_t>(pass) * rows_.size() + rank) * static_cast<std::size_t>(micro_batches_) +
                   static_cast<std::size_t>(micro_batch)];
  }

  // `visit(At)` for all passes by slot, and by rank where the slot is the same.
  template <typename Visit>
  void for_each(Visit visit) {
    std::vector<std::array<Slot, kinds_of_passes + 1>> seen(rows_.size());
    std::size_t length = 0;
    for (const Row& row : rows_) length = std::max(length, row.size());
    for (std::size_t slot = 0; slot < length; ++slot) {
      for (std::size_t rank = 0; rank < rows_.size(); ++rank) {
        if (slot >= rows_[rank].size() || rows_[rank][slot] == Cell::free) continue;
        const Cell cell = rows_[rank][slot];
        visit(At{rank, slot, cell, seen[rank][static_cast<std::size_t>(cell)]++});
      }
    }
  }

  // The slot of the latest of what a pass needs: its input, and the pass before it of the same micro-batch. -1:
  // nothing.
  [[nodiscard]] std::int32_t input_of(const At& at) {
    std::int32_t latest = -1;
    if (goes_up(at.cell) && at.rank > 0) latest = start(at.cell, at.rank - 1, at.micro_batch);
    if (!goes_up(at.cell) && at.rank + 1 < rows_.size()) latest = start(at.cell, at.rank + 1, at.micro_batch);
    if (at.cell == Cell::f1) return latest;
    const Cell before = static_cast<Cell>(static_cast<std::size_t>(at.cell) - 1);
    return std::max(latest, start(before, at.rank, at.micro_batch));
  }

  void add_weight_gradients() {
    for (Row& row : rows_) {
      std::int32_t pending = 0;
      for (Cell& cell : row) {
        pending += is_input_gradient(cell) ? 1 : 0;
        if (cell != Cell::free || pending == 0) continue;
        cell = Cell::w;
        --pending;
      }
      row.insert(row.end(), static_cast<std::size_t>(pending), Cell::w);
    }
  }

  void add_weight_gradients_by_stage() {
    for (Row& row : rows_) {
      std::size_t pending_1 = 0;
      std::size_t pending_2 = 0;
      for (Cell& cell : row) {
        pending_1 += cell == Cell::i1 ? 1 : 0;
        pending_2 += cell == Cell::i2 ? 1 : 0;
        if (cell != Cell::free || pending_1 + pending_2 == 0) continue;
        cell = pending_2 > 0 ? Cell::w2 : Cell::w1;
        --(pending_2 > 0 ? pending_2 : pending_1);
      }
      row.insert(row.end(), pending_2, Cell::w2);
      row.insert(row.end(), pending_1, Cell::w1);
    }
  }

  void remove_weight_gradients() {
    for (Row& row : rows_) std::ranges::replace(row, Cell::w, Cell::free);
  }

  // Every pass as soon as its rank and its input are there, in the order of the slots.
  void run_early() {
    std::vector<Row> early(rows_.size());
    for_each([&](const At& at) {
      Row& row = early[at.rank];
      if (at.cell != Cell::w) {
        const auto earliest = static_cast<std::size_t>(input_of(at) + 1);
        if (earliest > row.size()) row.resize(earliest, Cell::free);
        start(at.cell, at.rank, at.micro_batch) = static_cast<std::int32_t>(row.size());
      }
      row.push_back(at.cell);
    });
    rows_ = std::move(early);
  }

  // Rules 2 and 3. `implied`: there are no W, and every free slot counts as one; then only the cool-down is squeezed.
  void squeeze_ends(bool implied) {
    std::vector<std::vector<Held>> held(rows_.size());
    std::int32_t peak = 0;
    for (std::size_t rank = 0; rank < rows_.size(); ++rank) {
      Held now;
      for (const Cell cell : rows_[rank]) {
        now.pass(cell, implied);
        held[rank].push_back(now);
        peak = std::max(peak, now.activations);
      }
    }
    std::vector<std::array<std::int32_t, kinds_of_passes + 1>> last(rows_.size(), {-1, -1, -1, -1, -1});
    Phase phase = Phase::warm_up;
    for_each([&](const At& at) {
      std::size_t slot = at.slot;
      const Phase before = phase;
      if (phase == Phase::warm_up && at.rank == 0 && at.cell == Cell::i1) phase = Phase::steady;
      if (phase == Phase::steady && at.cell == Cell::f1 && at.micro_batch + 1 == micro_batches_) {
        phase = Phase::cool_down;
      }
      const bool moves = before == phase && (phase == Phase::cool_down || (phase == Phase::warm_up && !implied));
      std::int32_t& previous = last[at.rank][static_cast<std::size_t>(at.cell)];
      if (moves) {
        const std::int32_t input = at.cell == Cell::w ? input_gradient_of(at, held[at.rank]) : input_of(at);
        slot = implied ? slot_with_implied(at, std::max(input, previous) + 1, held[at.rank], peak)
                       : slot_with_placed(at, std::max(input, previous) + 1, held[at.rank], peak);
      }
      previous = static_cast<std::int32_t>(slot);
      if (at.cell != Cell::w) start(at.cell, at.rank, at.micro_batch) = previous;
    });
  }

  std::size_t move(const At& at, std::size_t slot) {
    rows_[at.rank][at.slot] = Cell::free;
    rows_[at.rank][slot] = at.cell;
    return slot;
  }

  // The slot of the I that has as many before it on its rank as this W has W.
  [[nodiscard]] std::int32_t input_gradient_of(const At& at, const std::vector<Held>& held) const {
    std::int32_t back = held[at.slot].pending + 1;  // its own is still among them, as those are that later W await
    std::size_t slot = at.slot;
    while (back > 0) back -= is_input_gradient(rows_[at.rank][--slot]) ? 1 : 0;
    return static_cast<std::int32_t>(slot);
  }

  // Where a pass moves to while all W have slots of their own: only a forward that is earlier makes its rank hold more.
  std::size_t slot_with_placed(const At& at, std::int32_t earliest, std::vector<Held>& held, std::int32_t peak) {
    const Row& row = rows_[at.rank];
    std::size_t first = at.slot;
    while (first > static_cast<std::size_t>(earliest) && (!is_forward(at.cell) || held[first - 1].activations < peak)) {
      --first;
    }
    while (first < at.slot && row[first] != Cell::free) ++first;
    for (std::size_t slot = first; slot < at.slot; ++slot) {
      if (is_forward(at.cell)) ++held[slot].activations;
      if (is_input_gradient(at.cell)) ++held[slot].pending;
      if (at.cell != Cell::w) continue;
      --held[slot].activations;
      --held[slot].pending;
    }
    return move(at, first);
  }

  // The same while every free slot counts as a W: what the rank holds changes until it is as it would be without.
  std::size_t slot_with_implied(const At& at, std::int32_t earliest, std::vector<Held>& held, std::int32_t peak) {
    const Row& row = rows_[at.rank];
    // `visit(slot, held)` from the new slot on, as long as it says so.
    const auto walk = [&](std::size_t to, const auto& visit) {
      Held now = to == 0 ? Held{} : held[to - 1];
      for (std::size_t slot = to; slot < row.size(); ++slot) {
        now.pass(slot == to ? at.cell : slot == at.slot ? Cell::free : row[slot], true);
        if (slot > at.slot && now == held[slot]) return;
        if (!visit(slot, now)) return;
      }
    };
    for (auto to = static_cast<std::size_t>(earliest); to < at.slot; ++to) {
      if (row[to] != Cell::free) continue;
      bool fits = true;
      walk(to, [&](std::size_t, const Held& now) { return fits = now.activations <= peak; });
      if (!fits) continue;
      walk(to, [&](std::size_t slot, const Held& now) {
        held[slot] = now;
        return true;
      });
      return move(at, to);
    }
    return at.slot;
  }

  Slot micro_batches_;
  std::vector<Row> rows_;
  std::vector<std::int32_t> starts_;  // by pass, rank and micro-batch: its slot
};

Block v_half_block(Slot rank, Slot ranks) {
  const Slot gap = ranks % 2 == 0 ? 3 : 0;
  return {2 * rank, 3 * ranks - 2 - rank, 3 * ranks - 1 + gap + 2 * rank, 6 * ranks - 2 + gap - rank};
}

Block v_min_block(Slot rank, Slot ranks) {
  const Slot gap = ranks % 3 == 0 ? 2 : 0;
  return {rank, 2 * ranks - 1 - rank, 2 * ranks + gap + rank, 4 * ranks + gap - 1 - rank};
}

Op op_of(Cell cell, int first, int second, std::array<std::uint32_t, 7>& seen) {
  constexpr std::array kinds{Kind::forward,         Kind::forward,         Kind::input_gradient, Kind::input_gradient,
                             Kind::weight_gradient, Kind::weight_gradient, Kind::weight_gradient};
  const auto index = static_cast<std::size_t>(cell);
  const bool is_first = cell == Cell::f1 || cell == Cell::i1 || cell == Cell::w1;
  return {seen[index]++, static_cast<std::uint16_t>(is_first ? first : second), kinds[index], false};
}

void controllable_order(const Shape& shape, Block (*block)(Slot rank, Slot ranks), ScheduleBuilder& builder) {
  BlockSlots slots(shape.ranks, shape.micro_batches, block);
  slots.order();
  for (int rank = 0; rank < shape.ranks; ++rank) {
    builder.go_to(rank);
    std::array<std::uint32_t, 7> seen{};
    for (const Cell cell : slots.rows()[static_cast<std::size_t>(rank)]) {
      if (cell != Cell::free) builder.add(op_of(cell, rank, 2 * shape.ranks - 1 - rank, seen));
    }
  }
}

void v_half_order(const Request& request, ScheduleBuilder& builder) {
  controllable_order(request.shape, v_half_block, builder);
}
void v_min_order(const Request& request, ScheduleBuilder& builder) {
  controllable_order(request.shape, v_min_block, builder);
}

BubbleCondition equal_passes(const SymbolValues& s) {
  using enum Symbol;
  return {s.f == s.i && s.i == s.w, "F = I = W", {forward, input_gradient, weight_gradient}};
}

BubbleFormula v_half_bubble(const SymbolValues& s) {
  return {"(6ceil(P/2)-7)F",
          6 * ((s.p + 1) / 2) - 7,
          s.f,
          {splits_evenly(s),
           equal_passes(s),
           {s.p >= 3, "P >= 3", {Symbol::ranks}},
           micro_batches_at_least(s, "M >= P+2", s.p + 2)}};
}

BubbleFormula v_min_bubble(const SymbolValues& s) {
  const bool divides = s.p % 3 == 0;
  return {divides ? "(4P-7)F" : "(4P-5)F",
          4 * s.p - (divides ? 7 : 5),
          s.f,
          {splits_evenly(s),
           equal_passes(s),
           {s.p >= 2, "P >= 2", {Symbol::ranks}},
           micro_batches_at_least(s, "M > P", s.p + 1)}};
}

}  // namespace

Family v_half() {
  return {.name = "v-half",
          .title = "V-Half: half of 1F1B's activations, in a V",
          .paper = "arXiv:2405.15362",
          .rule = "any shape",
          .splits_backward = true,
          .placement = [](const Shape& shape) { return v_shape(shape.ranks); },
          .order = v_half_order,
          .bubble = v_half_bubble};
}

Family v_min() {
  return {.name = "v-min",
          .title = "V-Min: a third of 1F1B's activations, in a V",
          .paper = "arXiv:2405.15362",
          .rule = "any shape",
          .splits_backward = true,
          .placement = [](const Shape& shape) { return v_shape(shape.ranks); },
          .order = v_min_order,
          .bubble = v_min_bubble};
}

}  // namespace dualpipe::detail::generate
