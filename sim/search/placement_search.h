// The search on one placement. Private to sim/search.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/costs/memory_limit.h"
#include "dualpipe/sim/schedule/schedule.h"
#include "dualpipe/sim/search/order.h"
#include "dualpipe/sim/search/problem.h"
#include "dualpipe/sim/simulate/memory_limit.h"

namespace dualpipe::detail::search {

// What simulate() and memory_needed() say of a schedule.
struct Real {
  Time makespan = 0;
  Time span = 0;
  Bytes peak = 0;                   // in bytes
  std::vector<MemoryLimit> needed;  // by rank; empty without a limit
  [[nodiscard]] bool keeps(const std::optional<MemoryLimit>& limit) const;
};
[[nodiscard]] Real real_of(const Schedule& schedule, const Costs& costs, const std::optional<MemoryLimit>& limit);

struct Found {
  Schedule schedule;
  std::string origin;
  Real real;
  Time value = 0;  // of the objective
};

struct PlacementSettings {
  bool by_span = false;
  std::optional<MemoryLimit> limit;
  std::uint64_t seed = 0;
  unsigned threads = 0;
  std::function<bool()> stopped;
};

class PlacementSearch {
 public:
  // Throws InputError where the costs, of the placement's stages, do not fit.
  PlacementSearch(const Placement& placement, std::int64_t micro_batches, Costs costs, PlacementSettings settings);
  ~PlacementSearch();
  PlacementSearch(PlacementSearch&&) noexcept;

  [[nodiscard]] Time bound() const;
  [[nodiscard]] const std::optional<Found>& best() const;
  [[nodiscard]] bool is_done() const { return best() && best()->value <= bound(); }
  [[nodiscard]] std::int64_t evaluations() const;
  [[nodiscard]] const Costs& costs() const;

  // A schedule of the catalog, of this placement: where the search may start. Whether it keeps the limit is looked at.
  void add(const Schedule& schedule, const Real& real);
  // The order that holds one micro-batch at a time.
  void add_least();
  // So many evaluations more, or fewer where it is done. `found` is called whenever there is something better,
  // `progress` now and then.
  void run(std::int64_t evaluations, const std::function<void()>& found, const std::function<void()>& progress);
  // What the order needs that holds one micro-batch at a time, by rank.
  [[nodiscard]] std::vector<MemoryLimit> least_needed() const;

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace dualpipe::detail::search
