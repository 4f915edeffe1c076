#include "tests/search/exact.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <span>
#include <vector>

namespace dualpipe::test {
namespace {

// How many micro-batches each stage has run F, I and W of.
using Counts = std::vector<std::array<std::uint8_t, 3>>;

// One way to have come there: what of it matters from there on. All of it is better the less it is.
struct Way {
  std::vector<Time> clock;    // by rank
  std::vector<Time> started;  // by rank: minus the start of its first op. Only where the span counts
  std::vector<Time> arrives;  // of each F and I that has been run, when its result is where it is needed
  std::vector<Time> spans;    // by rank. Only where the span counts
};

bool is_no_worse(const Way& a, const Way& b) {
  const auto no_later = [](const std::vector<Time>& x, const std::vector<Time>& y) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (x[i] > y[i]) return false;
    }
    return true;
  };
  return no_later(a.clock, b.clock) && no_later(a.started, b.started) && no_later(a.arrives, b.arrives);
}

class States {
 public:
  States(const Placement& placement, int micro_batches, const Costs& costs, const std::vector<Bytes>& limits,
         bool by_span)
      : placement_(placement), micro_batches_(micro_batches), costs_(costs), limits_(limits), by_span_(by_span) {}

  Time least() {
    Way begin;
    begin.clock.resize(static_cast<std::size_t>(placement_.ranks));
    if (by_span_) begin.started.assign(begin.clock.size(), 0);
    begin.arrives.assign(2 * stages() * static_cast<std::size_t>(micro_batches_), 0);
    std::map<Counts, std::vector<Way>> level{{Counts(stages()), {begin}}};
    const std::size_t steps = 3 * stages() * static_cast<std::size_t>(micro_batches_);
    for (std::size_t step = 0; step < steps; ++step) {
      std::map<Counts, std::vector<Way>> next;
      for (const auto& [counts, ways] : level) {
        for (std::size_t s = 0; s < stages(); ++s) {
          for (int kind = 0; kind < 3; ++kind) extend(counts, ways, s, kind, next);
        }
      }
      level = std::move(next);
    }
    Time best = std::numeric_limits<Time>::max();
    for (const auto& [counts, ways] : level) {
      for (const Way& way : ways) best = std::min(best, value(way));
    }
    return best == std::numeric_limits<Time>::max() ? 0 : best;
  }

 private:
  [[nodiscard]] std::size_t stages() const { return placement_.rank_of.size(); }
  [[nodiscard]] std::size_t result(std::size_t s, int kind, int m) const {
    return (2 * s + static_cast<std::size_t>(kind)) * static_cast<std::size_t>(micro_batches_) +
           static_cast<std::size_t>(m);
  }
  [[nodiscard]] Time value(const Way& way) const {
    Time longest = 0;
    for (std::size_t r = 0; r < way.clock.size(); ++r) {
      longest = std::max(longest, way.clock[r] + (by_span_ ? way.started[r] : 0));
    }
    return longest;
  }

  [[nodiscard]] Time duration(std::size_t s, int kind) const {
    const StageCosts& cost = costs_.of(static_cast<int>(s));
    return kind == 0 ? cost.forward : kind == 1 ? cost.input_gradient : cost.weight_gradient;
  }

  [[nodiscard]] bool may_run(const Counts& counts, std::size_t s, int kind) const {
    const auto count = [&](std::size_t stage, int pass) { return counts[stage][static_cast<std::size_t>(pass)]; };
    const int m = count(s, kind);
    if (m == micro_batches_ || (kind > 0 && m == count(s, kind - 1))) return false;
    if (kind == 0 && s > 0 && m == count(s - 1, 0)) return false;
    if (kind == 1 && s + 1 < stages() && m == count(s + 1, 1)) return false;
    if (kind != 0) return true;
    Bytes held = costs_.of(static_cast<int>(s)).activation;
    for (std::size_t x = 0; x < stages(); ++x) {
      if (placement_.rank_of[x] != placement_.rank_of[s]) continue;
      held += (count(x, 0) - count(x, 1)) * costs_.of(static_cast<int>(x)).activation;
      held += (count(x, 1) - count(x, 2)) * costs_.of(static_cast<int>(x)).weight_stash;
    }
    return held <= limits_[placement_.rank_of[s]];
  }

  void extend(const Counts& counts, const std::vector<Way>& ways, std::size_t s, int kind,
              std::map<Counts, std::vector<Way>>& next) const {
    if (!may_run(counts, s, kind)) return;
    const int m = counts[s][static_cast<std::size_t>(kind)];
    Counts after = counts;
    ++after[s][static_cast<std::size_t>(kind)];
    std::vector<Way>& there = next[after];
    const std::size_t rank = placement_.rank_of[s];
    for (Way way : ways) {
      Time start = way.clock[rank];
      if (kind == 0 && s > 0) start = std::max(start, way.arrives[result(s - 1, 0, m)]);
      if (kind == 1 && s + 1 < stages()) start = std::max(start, way.arrives[result(s + 1, 1, m)]);
      const bool is_first = std::ranges::all_of(stages_of(rank), [&](std::size_t x) { return counts[x][0] == 0; });
      if (by_span_ && is_first) way.started[rank] = -start;
      way.clock[rank] = start + duration(s, kind);
      if (kind < 2) set_arrival(way, s, kind, m);
      // What has been taken no longer matters.
      if (kind == 0 && s > 0) way.arrives[result(s - 1, 0, m)] = 0;
      if (kind == 1 && s + 1 < stages()) way.arrives[result(s + 1, 1, m)] = 0;
      if (std::ranges::any_of(there, [&](const Way& other) { return is_no_worse(other, way); })) continue;
      std::erase_if(there, [&](const Way& other) { return is_no_worse(way, other); });
      there.push_back(std::move(way));
    }
  }

  void set_arrival(Way& way, std::size_t s, int kind, int m) const {
    const bool is_last = kind == 0 ? s + 1 == stages() : s == 0;
    if (is_last) return;
    const std::size_t to = kind == 0 ? s + 1 : s - 1;
    const Time travels = placement_.rank_of[s] == placement_.rank_of[to] ? 0 : costs_.latency;
    way.arrives[result(s, kind, m)] = way.clock[placement_.rank_of[s]] + travels;
  }

  [[nodiscard]] std::vector<std::size_t> stages_of(std::size_t rank) const {
    std::vector<std::size_t> found;
    for (std::size_t x = 0; x < stages(); ++x) {
      if (placement_.rank_of[x] == rank) found.push_back(x);
    }
    return found;
  }

  const Placement& placement_;
  int micro_batches_;
  const Costs& costs_;
  const std::vector<Bytes>& limits_;
  bool by_span_;
};

}  // namespace

Exact exact(const Placement& placement, int micro_batches, const Costs& costs, const std::vector<Bytes>& limits) {
  return {States(placement, micro_batches, costs, limits, false).least(),
          States(placement, micro_batches, costs, limits, true).least()};
}

}  // namespace dualpipe::test
