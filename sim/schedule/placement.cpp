#include "dualpipe/sim/schedule/placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <numeric>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/op.h"

namespace dualpipe {
namespace {

constexpr int stages_max = static_cast<int>(stage_count_max);

void check_ranks(const Placement& placement) {
  if (placement.ranks < 1 || placement.ranks > stages_max) {
    throw InputError(fmt::format("a placement on {} ranks: there must be 1 to {}", placement.ranks, stages_max));
  }
  std::vector<bool> used(static_cast<std::size_t>(placement.ranks));
  for (int stage = 0; stage < placement.stages(); ++stage) {
    const int rank = placement.rank_of[static_cast<std::size_t>(stage)];
    if (rank >= placement.ranks) {
      throw InputError(
          fmt::format("stage {} is on rank {}, but there are only ranks 0 to {}", stage, rank, placement.ranks - 1));
    }
    used[static_cast<std::size_t>(rank)] = true;
  }
  const auto idle = std::ranges::find(used, false);
  if (idle != used.end()) {
    throw InputError(fmt::format("rank {} holds no stage; each rank must hold one", idle - used.begin()));
  }
}

void check_chains(const Placement& placement) {
  const auto& begin = placement.chain_begin;
  if (begin.size() < 2) throw InputError("a placement without chains: there must be at least one");
  if (begin.front() != 0)
    throw InputError(fmt::format("the first chain begins at stage {} instead of 0", begin.front()));
  for (std::size_t chain = 0; chain + 1 < begin.size(); ++chain) {
    if (begin[chain] >= begin[chain + 1]) {
      throw InputError(fmt::format("chain {} has no stages: it begins at stage {} and the next one at {}", chain,
                                   begin[chain], begin[chain + 1]));
    }
  }
  if (begin.back() != placement.stages()) {
    throw InputError(
        fmt::format("the chains hold {} stages together, the placement {}", begin.back(), placement.stages()));
  }
}

void check_weights(const Placement& placement) {
  if (placement.weights_of.size() != placement.rank_of.size()) {
    throw InputError(fmt::format("weights are given for {} stages, but there are {}", placement.weights_of.size(),
                                 placement.stages()));
  }
  for (std::size_t stage = 0; stage < placement.weights_of.size(); ++stage) {
    const int weights = placement.weights_of[stage];
    if (weights >= placement.stages()) {
      throw InputError(fmt::format("stage {} uses the weights {}; with {} stages they are numbered 0 to {}", stage,
                                   weights, placement.stages(), placement.stages() - 1));
    }
  }
}

}  // namespace

int Placement::chain_of(int stage) const {
  assert(stage >= 0 && stage < stages());
  return static_cast<int>(std::ranges::upper_bound(chain_begin, stage) - chain_begin.begin()) - 1;
}

std::vector<int> Placement::sharers_of(int stage) const {
  std::vector<int> sharers;
  for (int other = 0; other < stages(); ++other) {
    if (weights_of[static_cast<std::size_t>(other)] == weights_of[static_cast<std::size_t>(stage)]) {
      sharers.push_back(other);
    }
  }
  return sharers;
}

std::vector<int> Placement::stages_on(int rank) const {
  std::vector<int> result;
  for (int stage = 0; stage < stages(); ++stage) {
    if (rank_of[static_cast<std::size_t>(stage)] == rank) result.push_back(stage);
  }
  return result;
}

Placement one_chain(std::span<const int> rank_of) {
  if (rank_of.empty() || rank_of.size() > stage_count_max) {
    throw InputError(fmt::format("a placement of {} stages: there must be 1 to {}", rank_of.size(), stage_count_max));
  }
  Placement placement;
  for (const int rank : rank_of) {
    if (rank < 0 || rank >= stages_max) {
      throw InputError(
          fmt::format("stage {} is on rank {}: ranks are 0 to {}", placement.stages(), rank, stages_max - 1));
    }
    placement.rank_of.push_back(static_cast<std::uint16_t>(rank));
    placement.ranks = std::max(placement.ranks, rank + 1);
  }
  placement.chain_begin = {0, static_cast<std::uint16_t>(rank_of.size())};
  placement.weights_of.resize(rank_of.size());
  std::iota(placement.weights_of.begin(), placement.weights_of.end(), std::uint16_t{0});
  return placement;
}

Placement straight(int ranks, int chunks) {
  if (ranks < 1 || chunks < 1 || ranks > stages_max / chunks) {
    throw InputError(fmt::format("{} stages on each of {} ranks: there must be 1 to {} stages altogether", chunks,
                                 ranks, stages_max));
  }
  std::vector<int> rank_of(static_cast<std::size_t>(ranks) * static_cast<std::size_t>(chunks));
  for (std::size_t stage = 0; stage < rank_of.size(); ++stage) {
    rank_of[stage] = static_cast<int>(stage % static_cast<std::size_t>(ranks));
  }
  return one_chain(rank_of);
}

Placement v_shape(int ranks) { return wave(ranks, 1); }

Placement wave(int ranks, int waves) {
  Placement placement = straight(ranks, 2 * waves);
  for (auto up = placement.rank_of.begin() + ranks; up < placement.rank_of.end(); up += 2 * std::ptrdiff_t{ranks}) {
    std::reverse(up, up + ranks);
  }
  return placement;
}

Placement two_way(int ranks, int replicas) {
  Placement placement = straight(ranks, 2 * replicas);
  placement.chain_begin = {0};
  for (int chain = 0; chain < 2 * replicas; ++chain) {
    const std::int64_t start = std::int64_t{chain % replicas} * ranks / replicas;
    const bool goes_down = chain < replicas;
    for (int position = 0; position < ranks; ++position) {
      const auto stage =
          static_cast<std::size_t>(chain) * static_cast<std::size_t>(ranks) + static_cast<std::size_t>(position);
      const int way = goes_down ? position : ranks - 1 - position;
      placement.rank_of[stage] = static_cast<std::uint16_t>((start + way) % ranks);
      placement.weights_of[stage] = static_cast<std::uint16_t>(position);
    }
    placement.chain_begin.push_back(static_cast<std::uint16_t>((chain + 1) * ranks));
  }
  return placement;
}

Placement in_chains(Placement placement, int chains) {
  if (chains < 1 || placement.stages() % chains != 0) {
    throw InputError(
        fmt::format("{} stages cannot be divided into {} equally long chains", placement.stages(), chains));
  }
  const int length = placement.stages() / chains;
  placement.chain_begin.clear();
  for (int begin = 0; begin <= placement.stages(); begin += length) {
    placement.chain_begin.push_back(static_cast<std::uint16_t>(begin));
  }
  for (int stage = 0; stage < placement.stages(); ++stage) {
    placement.weights_of[static_cast<std::size_t>(stage)] = static_cast<std::uint16_t>(stage % length);
  }
  return placement;
}

void check(const Placement& placement) {
  if (placement.rank_of.empty() || placement.rank_of.size() > stage_count_max) {
    throw InputError(
        fmt::format("a placement of {} stages: there must be 1 to {}", placement.rank_of.size(), stage_count_max));
  }
  check_ranks(placement);
  check_chains(placement);
  check_weights(placement);
}

StagesByRank::StagesByRank(const Placement& placement)
    : begin_(static_cast<std::size_t>(placement.ranks) + 1), stages_(placement.rank_of.size()) {
  for (const auto rank : placement.rank_of) ++begin_[rank + 1U];
  std::partial_sum(begin_.begin(), begin_.end(), begin_.begin());
  std::vector<std::size_t> next = begin_;
  for (int stage = 0; stage < placement.stages(); ++stage) {
    stages_[next[placement.rank_of[static_cast<std::size_t>(stage)]]++] = stage;
  }
}

}  // namespace dualpipe
