// Where the stages are: which rank holds each, which chain it belongs to, and which stages share weights.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace dualpipe {

struct Placement {
  std::vector<std::uint16_t> rank_of;      // per stage
  std::vector<std::uint16_t> chain_begin;  // first stage of each chain, and the number of stages: chains + 1 entries
  std::vector<std::uint16_t> weights_of;   // per stage: the parameter set it uses. Equal numbers are shared weights
  int ranks = 0;

  friend bool operator==(const Placement&, const Placement&) = default;

  [[nodiscard]] int stages() const { return static_cast<int>(rank_of.size()); }
  [[nodiscard]] int chains() const { return static_cast<int>(chain_begin.size()) - 1; }
  [[nodiscard]] int chain_of(int stage) const;
  // The neighbours of a stage in its chain; nothing at the ends of the chain.
  [[nodiscard]] std::optional<int> previous(int stage) const {
    return begins_chain(stage) ? std::nullopt : std::optional(stage - 1);
  }
  [[nodiscard]] std::optional<int> next(int stage) const {
    return begins_chain(stage + 1) ? std::nullopt : std::optional(stage + 1);
  }
  [[nodiscard]] std::vector<int> stages_on(int rank) const;
  // All stages with the same weights, itself among them, in ascending order.
  [[nodiscard]] std::vector<int> sharers_of(int stage) const;

 private:
  // The number of all stages is the end of the last chain, and counts as a beginning, too.
  [[nodiscard]] bool begins_chain(int stage) const { return std::ranges::binary_search(chain_begin, stage); }
};

// One chain whose stage s is on rank_of[s], no shared weights.
[[nodiscard]] Placement one_chain(std::span<const int> rank_of);

//   straight(4, 2): ranks 0 1 2 3 0 1 2 3   1F1B (one chunk), interleaved, looped BFS
[[nodiscard]] Placement straight(int ranks, int chunks);
//   v_shape(4):     ranks 0 1 2 3 3 2 1 0   ZBV, DualPipeV
[[nodiscard]] Placement v_shape(int ranks);
//   wave(4, 2):     ranks 0 1 2 3 3 2 1 0 0 1 2 3 3 2 1 0   Hanayo; v_shape() so many times
[[nodiscard]] Placement wave(int ranks, int waves);
//   two_way(4):     ranks 0 1 2 3 | 3 2 1 0 DualPipe: two chains; stages s and ranks + s hold the same layers
//   two_way(4, 2):  ranks 0 1 2 3 | 2 3 0 1 | 3 2 1 0 | 1 0 3 2   Chimera: so many down, as many up, ranks / replicas
//   apart
[[nodiscard]] Placement two_way(int ranks, int replicas = 1);

// The stages of a placement as so many chains of equal length; stages at equal places share their weights. Throws
// InputError where they cannot be divided.
[[nodiscard]] Placement in_chains(Placement placement, int chains);

// Throws InputError where the parts do not fit together (a rank out of range, a chain without stages, …).
void check(const Placement& placement);

// The stages of each rank, found once, for code that visits all ranks: Placement::stages_on() looks through all stages
// at each call.
class StagesByRank {
 public:
  explicit StagesByRank(const Placement& placement);

  // In ascending order.
  [[nodiscard]] std::span<const int> on(int rank) const {
    const auto begin = begin_[static_cast<std::size_t>(rank)];
    return std::span(stages_).subspan(begin, begin_[static_cast<std::size_t>(rank) + 1] - begin);
  }

 private:
  std::vector<std::size_t> begin_;  // of stages_: ranks + 1 entries
  std::vector<int> stages_;
};

}  // namespace dualpipe
