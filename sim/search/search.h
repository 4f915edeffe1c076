// The shortest schedule that can be found for these costs and this memory, and what none can be shorter than.
//
//   seeds      schedules of the catalog, and orders that are made in one go by rules and from cyclic schedules (blocks)
//   annealing  of the best of them, by moves of ops within a rank's order, half of them on the critical path
//   repetend   where there are many micro-batches: the steady state of what was found for fewer, repeated
//
// on every placement that is asked for. All of it is one model on the same ranks, as in a table of equal ranks.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/costs/memory_limit.h"
#include "dualpipe/sim/costs/model_costs.h"
#include "dualpipe/sim/schedule/schedule.h"

namespace dualpipe {

enum class SearchPlacement : std::uint8_t {
  linear,       // stage s on rank s
  v,            // down all ranks and up again
  interleaved,  // down all ranks, twice
  two_way,  // DualPipe's: two chains in opposite order, which share weights; every rank holds two stages' parameters
  any,      // each of them
};

enum class SearchObjective : std::uint8_t {
  makespan,
  span,  // the longest first-op-to-last-op span of any one rank (zero-bubble papers)
};

struct SearchRequest {
  int ranks = 1;
  std::int64_t micro_batches = 1;  // over all chains
  GivenCosts costs = {};           // of the model: one entry for all stages is a rank's share, several are its parts
  // In micro-batches it counts a rank's whole share of the model for each; so it does for each chain of `two_way`.
  std::optional<MemoryLimit> memory_limit = {};
  SearchPlacement placement = SearchPlacement::any;
  SearchObjective objective = SearchObjective::makespan;
  // How many orders are timed at most, over all; unset: as many as take some seconds. With 0 there are the schedules of
  // the catalog alone.
  std::optional<std::int64_t> evaluations = {};
  std::uint64_t seed = 1;
  unsigned threads = 0;  // 0: one for every core. What is found is the same for any number
};

// A schedule of the catalog, for the same model, ranks and micro-batches, as it is planned for the limit.
struct SearchRow {
  std::string schedule;
  Time makespan = 0;
  Time span = 0;
  Bytes peak_memory = 0;
  bool fits = true;
};

// What is known of one placement.
struct SearchedPlacement {
  SearchPlacement placement = SearchPlacement::linear;
  Time lower_bound = 0;      // of the objective
  std::optional<Time> best;  // that was found; none: nothing that keeps the limit
};

struct SearchResult {
  Schedule schedule;   // valid, hangs under no model of communication, keeps the limit; named "search"
  std::string origin;  // "search", or the family that it is of
  Costs costs;         // of its stages
  Time makespan = 0;   // as simulate() has them
  Time span = 0;
  Bytes peak_memory = 0;  // of the rank that needs most
  Time lower_bound = 0;   // of the objective: of the placement that could be best
  std::int64_t evaluations = 0;
  std::vector<SearchRow> catalog;  // shortest first
  std::vector<SearchedPlacement> placements;
  std::vector<std::string> remarks;  // what was left out, and why

  [[nodiscard]] Time value(SearchObjective objective) const {
    return objective == SearchObjective::span ? span : makespan;
  }
  // How much longer it is than the bound, as a share of that.
  [[nodiscard]] double gap(SearchObjective objective) const {
    return lower_bound == 0 ? 0
                            : static_cast<double>(value(objective) - lower_bound) / static_cast<double>(lower_bound);
  }
  [[nodiscard]] bool is_optimal(SearchObjective objective) const { return value(objective) <= lower_bound; }
};

struct SearchProgress {
  SearchPlacement placement = SearchPlacement::linear;  // that is searched
  std::optional<Time> best;
  Time lower_bound = 0;
  std::int64_t evaluations = 0;
};

// All may be unset. They are called on one thread at a time, `stopped` on several at once.
struct SearchHooks {
  std::function<void(const SearchProgress&)> progress;  // every now and then
  std::function<void(const SearchResult&)> found;       // the best of the catalog, and whatever is better
  std::function<bool()> stopped;                        // true ends the search; it keeps what it has
};

[[nodiscard]] std::string_view name(SearchPlacement placement);

// Throws InputError: costs that do not fit, jitter, a limit in bytes without bytes; MemoryLimitError where nothing that
// was found keeps the limit, with the least that would do.
[[nodiscard]] SearchResult search(const SearchRequest& request, const SearchHooks& hooks = {});

}  // namespace dualpipe
