// When the later ops of a rank could have run, while it was idle. Private to sim/explain.
#pragma once

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "dualpipe/sim/explain/events.h"
#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/simulate/memory.h"

namespace dualpipe::detail::explain {

class ReadyTimes {
 public:
  // All outlive it.
  ReadyTimes(const Program& program, const Events& events);

  // From now on an F that would take its rank above the limit is not counted as one that could have run.
  void set_limit(const Costs& costs, const Timeline& timeline, const MemoryLimit& limit);

  void go_to(int rank);
  // Sets the readiness of the segments from `first` on, which are those of the window before unit `next`, in order; and
  // cuts those in two during which it changes.
  void classify(Span window, Index next, std::size_t first, std::vector<IdleSegment>& segments);

 private:
  // By number of a unit of the rank, and one more: when the first of the units from there on could run.
  using Earliest = std::vector<Time>;
  using StageTimes = std::pair<int, Earliest>;

  struct Limit {
    Costs costs;  // that it is counted with
    MemoryLimit limit;
    const Timeline& timeline;
  };

  [[nodiscard]] Bytes limit_of_rank() const;
  [[nodiscard]] Time ready_at(Index unit) const;
  [[nodiscard]] Time allowed_from(std::size_t first, Time now);

  const Program& program_;
  const Events& events_;
  std::optional<Limit> limit_;

  int rank_ = 0;
  Earliest any_;                     // of all units
  Earliest backward_;                // of those without an F; only where there is a limit, as what follows
  std::vector<StageTimes> forward_;  // of those with an F of a stage
  std::vector<MemoryPoint> held_;
  std::size_t held_at_ = 0;
};

}  // namespace dualpipe::detail::explain
