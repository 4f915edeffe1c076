// 1F1B-V (Pipeline Parallelism with Controllable Memory, arXiv:2405.15362; the authors' v1f1b.py). One chain that turns
// round at the last rank, as ZBV's, but backwards are whole; a rank holds two thirds of 1F1B's activations.
//
// Every micro-batch repeats one block, 6 slots after the one before. A forward takes a slot and a backward two:
//
//   F of the first stage at r, of the second at 2P-1-r
//   B of the k-th stage from the end at 2P + g + 2k + 3 floor((d+k)/3), where g = 3 if 3 divides P, else 0, and
//     d = 1, 0, 2 for P mod 3 = 0, 1, 2
//
// Then all passes, in the order of slots and ranks, are moved to the front: a backward to the first two free slots
// behind its inputs; a forward as far back as its rank holds less than the blocks do at their peak, and from there on
// to the next free slot. Only the order is kept. From some micro-batch on it repeats itself, until the cool-down.
//
// Drawing: 1f1b-v, 3 ranks, 3 micro-batches; F = 1, B = 2
//
//   rank 0: 0F0 0F1 0F2 .   .   5F0 5B0 --  5F1 5B1 --  5F2 5B2 --  .   .   0B0 --  .   .   0B1 --  .   .   0B2 --
//   rank 1: .   1F0 1F1 1F2 4F0 .   4F1 .   4B0 --  4F2 4B1 --  .   1B0 --  4B2 --  1B1 --  .   .   1B2 --  .   .
//   rank 2: .   .   2F0 3F0 2F1 3F1 2F2 3F2 .   .   3B0 --  2B0 --  3B1 --  2B1 --  3B2 --  2B2 --  .   .   .   .
//
// Shapes: any.
// Bubble, when B >= 2F and M >= 2P: 2(P-1)B + (P-k)F of one stage, k = 4, 1, 3 for P mod 3 = 0, 1, 2. P = 2, 3 and 9
// are other: 2(P-1)B, and 16B + 4F. Where B is less the steady state has gaps of its own. Peak activations, in stages:
// 2 floor(2P/3) + 2 on every rank, when M >= 2P.
#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "dualpipe/sim/generate/shared.h"

namespace dualpipe::detail::generate {
namespace {

// What a rank runs of a micro-batch.
enum class Part : std::uint8_t { first_forward, second_forward, second_backward, first_backward };
constexpr std::array parts{Part::first_forward, Part::second_forward, Part::second_backward, Part::first_backward};
constexpr std::int64_t block_period = 6;

bool is_forward(Part part) { return part == Part::first_forward || part == Part::second_forward; }
std::int64_t length_of(Part part) { return is_forward(part) ? 1 : 2; }

std::int64_t slot_in_block(std::int64_t ranks, std::int64_t rank, Part part) {
  const auto backward = [&](std::int64_t from_end) {
    constexpr std::array<std::int64_t, 3> shifts{1, 0, 2};
    const std::int64_t shift = shifts[static_cast<std::size_t>(ranks % 3)];
    return 2 * ranks + (ranks % 3 == 0 ? 3 : 0) + 2 * from_end + 3 * ((shift + from_end) / 3);
  };
  switch (part) {
    case Part::first_forward:
      return rank;
    case Part::second_forward:
      return 2 * ranks - 1 - rank;
    case Part::second_backward:
      return backward(rank);
    default:
      return backward(2 * ranks - 1 - rank);
  }
}

// The passes of one rank that have been moved, by slot. A list, because a forward may go far to the front.
class MovedPasses {
 public:
  explicit MovedPasses(std::int64_t micro_batches)
      : micro_batches_(micro_batches), nodes_(parts.size() * static_cast<std::size_t>(micro_batches) + 1) {
    nodes_[edge()] = {-1, edge(), edge()};
  }

  // The slot behind a pass that has been moved; slot 0 for the micro-batch before the first.
  [[nodiscard]] std::int64_t end_of(Part part, std::int64_t micro_batch) const {
    return micro_batch < 0 ? 0 : end_of(index_of(part, micro_batch));
  }

  // Moves a forward from `slot`, behind all others, to a free slot from `earliest` on, so that no slot holds more than
  // `peak` activations.
  void move_forward(Part part, std::int64_t micro_batch, std::int64_t slot, std::int64_t earliest, std::int64_t peak) {
    if (since_full_ >= peak) find_last_full(peak);
    earliest = std::max(earliest, full_end_);
    insert_from(part, micro_batch, earliest, slot);
    ++held_;
    since_full_ = std::max(since_full_, most_held_from(index_of(part, micro_batch)));
  }

  // Moves a backward from `slot`, behind all others, to the first two free slots from `earliest` on.
  void move_backward(Part part, std::int64_t micro_batch, std::int64_t slot, std::int64_t earliest, std::int64_t peak) {
    insert_from(part, micro_batch, earliest, slot);
    const std::uint32_t node = index_of(part, micro_batch);
    const std::int64_t change = change_of(node);
    if (held_ == peak && nodes_[node].next == edge()) {
      full_end_ = change;
      since_full_ = held_ - 1;
    } else if (held_ == peak || change < full_end_) {
      since_full_ = peak;
    }
    --held_;
  }

  // `visit(part, micro_batch)`, by slot.
  template <typename Visit>
  void for_each(Visit visit) const {
    for (std::uint32_t at = nodes_[edge()].next; at != edge(); at = nodes_[at].next) {
      visit(part_of(at), at % micro_batches_);
    }
  }

 private:
  struct Node {
    std::int32_t slot;
    std::uint32_t previous, next;
  };

  // A node that is both before the first and behind the last.
  [[nodiscard]] std::uint32_t edge() const { return static_cast<std::uint32_t>(nodes_.size() - 1); }
  [[nodiscard]] std::uint32_t index_of(Part part, std::int64_t micro_batch) const {
    return static_cast<std::uint32_t>(static_cast<std::int64_t>(part) * micro_batches_ + micro_batch);
  }
  [[nodiscard]] Part part_of(std::uint32_t node) const {
    return parts[static_cast<std::size_t>(node / micro_batches_)];
  }
  [[nodiscard]] std::int64_t end_of(std::uint32_t node) const {
    return node == edge() ? 0 : nodes_[node].slot + length_of(part_of(node));
  }

  // From which slot on it counts: a forward holds from its first, a backward frees before its second.
  [[nodiscard]] std::int64_t change_of(std::uint32_t node) const {
    return nodes_[node].slot + (is_forward(part_of(node)) ? 0 : 1);
  }
  // What is held before the pass, where `held` is with it.
  [[nodiscard]] std::int64_t held_before(std::uint32_t node, std::int64_t held) const {
    return held + (is_forward(part_of(node)) ? -1 : 1);
  }

  // The last pass in front of a slot that is not in front of the part's last one. That one may be near, or the end.
  [[nodiscard]] std::uint32_t last_before(std::int64_t slot, Part part, std::int64_t micro_batch) const {
    std::uint32_t from_front = micro_batch > 0 ? index_of(part, micro_batch - 1) : edge();
    std::uint32_t from_end = nodes_[edge()].previous;
    while (true) {
      if (from_end == edge() || nodes_[from_end].slot < slot) return from_end;
      from_end = nodes_[from_end].previous;
      const std::uint32_t next = nodes_[from_front].next;
      if (next == edge() || nodes_[next].slot >= slot) return from_front;
      from_front = next;
    }
  }

  // To the first free slots from `earliest` on; to `slot` if they are no earlier.
  void insert_from(Part part, std::int64_t micro_batch, std::int64_t earliest, std::int64_t slot) {
    std::uint32_t before = last_before(earliest, part, micro_batch);
    const std::int64_t length = length_of(part);
    earliest = std::max(earliest, end_of(before));
    for (std::uint32_t next = nodes_[before].next; next != edge() && nodes_[next].slot < earliest + length;
         next = nodes_[before].next) {
      before = next;
      earliest = std::max(earliest, end_of(before));
    }
    // A backward does not move by one slot, into its own second.
    if (earliest + length > slot) earliest = slot;
    const std::uint32_t node = index_of(part, micro_batch);
    const std::uint32_t next = nodes_[before].next;
    nodes_[node] = {static_cast<std::int32_t>(earliest), before, next};
    nodes_[before].next = node;
    nodes_[next].previous = node;
  }

  void find_last_full(std::int64_t peak) {
    full_end_ = 0;
    since_full_ = held_;
    std::int64_t held = held_;
    for (std::uint32_t at = nodes_[edge()].previous; at != edge(); at = nodes_[at].previous) {
      held = held_before(at, held);
      if (held >= peak) {
        full_end_ = change_of(at);
        return;
      }
      since_full_ = std::max(since_full_, held);
    }
  }

  // The most that is held behind a forward that has just come; only a bound where that is far in front.
  [[nodiscard]] std::int64_t most_held_from(std::uint32_t forward) const {
    constexpr int near = 16;
    std::int64_t held = held_;
    std::int64_t most = held_;
    std::uint32_t at = nodes_[edge()].previous;
    for (int i = 0; i < near; ++i) {
      if (at == forward) return most;
      held = held_before(at, held);
      most = std::max(most, held);
      at = nodes_[at].previous;
    }
    return since_full_ + 1;
  }

  std::int64_t micro_batches_;
  std::vector<Node> nodes_;
  std::int64_t held_ = 0;        // behind the last pass
  std::int64_t full_end_ = 0;    // the slot behind the last one in which the peak is held, if since_full_ is less
  std::int64_t since_full_ = 0;  // no slot from there on holds more
};

// `visit(slot, rank, part, micro_batch)` for the blocks of so many micro-batches, by slot and rank.
template <typename Visit>
void for_each_in_blocks(std::int64_t ranks, std::int64_t micro_batches, Visit visit) {
  struct Start {
    Part part;
    std::int64_t slot;
  };
  // Of each rank, the part that may start in the slots that leave this rest.
  std::vector<std::array<std::optional<Start>, block_period>> starts(static_cast<std::size_t>(ranks));
  std::int64_t last = 0;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    for (const Part part : parts) {
      const std::int64_t slot = slot_in_block(ranks, rank, part);
      starts[static_cast<std::size_t>(rank)][static_cast<std::size_t>(slot % block_period)] = Start{part, slot};
      last = std::max(last, slot);
    }
  }
  last += (micro_batches - 1) * block_period;
  for (std::int64_t slot = 0; slot <= last; ++slot) {
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      const auto& start = starts[static_cast<std::size_t>(rank)][static_cast<std::size_t>(slot % block_period)];
      if (!start || slot < start->slot) continue;
      const std::int64_t micro_batch = (slot - start->slot) / block_period;
      if (micro_batch < micro_batches) visit(slot, rank, start->part, micro_batch);
    }
  }
}

// The most that any rank holds in the blocks.
std::int64_t peak_of_blocks(std::int64_t ranks, std::int64_t micro_batches) {
  std::vector<std::int64_t> held(static_cast<std::size_t>(ranks));
  std::int64_t peak = 0;
  for_each_in_blocks(ranks, micro_batches, [&](std::int64_t, std::int64_t rank, Part part, std::int64_t) {
    auto& of_rank = held[static_cast<std::size_t>(rank)];
    of_rank += is_forward(part) ? 1 : -1;
    peak = std::max(peak, of_rank);
  });
  return peak;
}

std::vector<MovedPasses> squeezed_blocks(std::int64_t ranks, std::int64_t micro_batches) {
  std::vector<MovedPasses> moved(static_cast<std::size_t>(ranks), MovedPasses(micro_batches));
  const auto on = [&](std::int64_t rank) -> MovedPasses& { return moved[static_cast<std::size_t>(rank)]; };
  const std::int64_t peak = peak_of_blocks(ranks, micro_batches);
  const std::int64_t last = ranks - 1;
  // Where what the pass uses comes from: the same part of the neighbour, or what turns round at an end of the chain.
  const auto inputs_end = [&](std::int64_t rank, Part part, std::int64_t m) {
    switch (part) {
      case Part::first_forward:
        return rank == 0 ? 0 : on(rank - 1).end_of(part, m);
      case Part::second_forward:
        return rank == last ? on(rank).end_of(Part::first_forward, m) : on(rank + 1).end_of(part, m);
      case Part::second_backward:
        return rank == 0 ? on(rank).end_of(Part::second_forward, m) : on(rank - 1).end_of(part, m);
      default:
        return rank == last ? on(rank).end_of(Part::second_backward, m) : on(rank + 1).end_of(part, m);
    }
  };
  for_each_in_blocks(ranks, micro_batches, [&](std::int64_t slot, std::int64_t rank, Part part, std::int64_t m) {
    const std::int64_t earliest = std::max(on(rank).end_of(part, m - 1), inputs_end(rank, part, m));
    if (is_forward(part)) {
      on(rank).move_forward(part, m, slot, earliest, peak);
    } else {
      on(rank).move_backward(part, m, slot, earliest, peak);
    }
  });
  return moved;
}

void one_f_one_b_v_order(const Request& request, ScheduleBuilder& builder) {
  const std::int64_t ranks = request.shape.ranks;
  const std::int64_t micro_batches = request.shape.micro_batches;
  // The warm-up has fewer than 7P passes of a rank, the cool-down fewer than 3P. What is between repeats itself, and
  // goes on as long as there are more micro-batches.
  const std::int64_t squeezed = std::min(micro_batches, 3 * ranks);
  const std::vector<MovedPasses> moved = squeezed_blocks(ranks, squeezed);
  for (int rank = 0; rank < request.shape.ranks; ++rank) {
    builder.go_to(rank);
    struct Pass {
      Part part;
      std::int64_t micro_batch;
    };
    std::vector<Pass> order;
    moved[static_cast<std::size_t>(rank)].for_each([&](Part part, std::int64_t micro_batch) {
      order.push_back({part, micro_batch});
    });
    const auto add = [&](const Pass& pass, std::int64_t later) {
      const bool first = pass.part == Part::first_forward || pass.part == Part::first_backward;
      builder.add(is_forward(pass.part) ? Kind::forward : Kind::backward,
                  first ? rank : 2 * request.shape.ranks - 1 - rank, pass.micro_batch + later);
    };
    const std::size_t cut = order.size() / 3 * 2;
    const std::int64_t more = micro_batches - squeezed;
    for (std::size_t i = 0; i < cut; ++i) add(order[i], 0);
    for (std::int64_t later = 1; later <= more; ++later) {
      for (std::size_t i = cut - parts.size(); i < cut; ++i) add(order[i], later);
    }
    for (std::size_t i = cut; i < order.size(); ++i) add(order[i], more);
  }
}

BubbleFormula one_f_one_b_v_bubble(const SymbolValues& s) {
  constexpr std::array<std::int64_t, 3> less{4, 1, 3};
  using enum Symbol;
  return {"2(P-1)B+(P-{4,1,3}[P mod 3])F",
          1,
          2 * (s.p - 1) * s.b + (s.p - less[static_cast<std::size_t>(s.p % 3)]) * s.f,
          {{s.p != 2 && s.p != 3 && s.p != 9, "P other than 2, 3, 9", {ranks}},
           micro_batches_at_least(s, "M >= 2P", 2 * s.p),
           {s.b >= 2 * s.f, "B >= 2F", {backward, forward}}}};
}

}  // namespace

Family one_f_one_b_v() {
  return {.name = "1f1b-v",
          .title = "1F1B-V: a V of stages, two thirds of 1F1B's memory",
          .paper = "arXiv:2405.15362",
          .rule = "any shape",
          .placement = v_placement,
          .order = one_f_one_b_v_order,
          .bubble = one_f_one_b_v_bubble};
}

}  // namespace dualpipe::detail::generate
