#include "dualpipe/sim/search/partition.h"

#include <fmt/core.h>

#include <algorithm>
#include <set>
#include <utility>

#include "dualpipe/sim/evaluate/in_order.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "dualpipe/sim/simulate/simulate.h"

namespace dualpipe {
namespace {

constexpr std::size_t run_max = 16;  // cuts that are moved together, at most

// What less of is better: first what is held too much, then time, then the load, so that a tie goes to the more even.
struct Tried {
  CutFigures figures;
  std::int64_t excess = 0;
  std::vector<MemoryLimit> needed;

  [[nodiscard]] bool is_better_than(const Tried& other) const {
    if (excess != other.excess) return excess < other.excess;
    if (figures.makespan != other.figures.makespan) return figures.makespan < other.figures.makespan;
    return figures.load < other.figures.load;
  }
};

class Partitioner {
 public:
  Partitioner(const std::function<Program(const ModelCosts&)>& program_of, const ModelCosts& costs,
              const std::optional<MemoryLimit>& limit, unsigned threads)
      : program_of_(program_of), costs_(costs), limit_(limit), threads_(threads) {}

  Partition run() {
    const Program program = program_of_(costs_);
    const std::vector<int> first = cut_of(costs_, program.schedule.placement);
    if (first.empty()) {
      throw InputError(
          fmt::format("the model has {} parts, and the schedule {} stages: there is nothing to cut; give the costs of "
                      "smaller parts, at least one for each stage",
                      costs_.parts.size(), program.schedule.placement.stages() / program.schedule.placement.chains()));
    }
    Tried best = tried(first);
    const CutFigures balanced = best.figures;
    seen_.insert(first);
    int simulations = 1;
    for (bool improved = true; improved;) {
      improved = false;
      const std::vector<std::vector<int>> cuts = neighbours(best.figures.cut);
      simulations += static_cast<int>(cuts.size());
      std::vector<Tried> results;
      detail::evaluate::in_order<Tried>(
          cuts.size(), threads_, [&](std::size_t i) { return tried(cuts[i]); },
          [&](std::size_t, Tried each) { results.push_back(std::move(each)); });
      for (Tried& each : results) {
        if (!each.is_better_than(best)) continue;
        best = std::move(each);
        improved = true;
      }
    }
    if (best.excess > 0) throw MemoryLimitError(program.schedule.name, *limit_, best.needed);
    return {best.figures, balanced, simulations};
  }

 private:
  [[nodiscard]] Tried tried(const std::vector<int>& cut) const {
    ModelCosts model = costs_;
    model.cut = cut;
    const Program program = program_of_(model);
    const Placement& placement = program.schedule.placement;
    const Costs costs = stage_costs(model, placement);
    Tried result;
    result.figures.cut = cut;
    result.figures.makespan = simulate(program, costs, Record::ranks).makespan();
    for (int rank = 0; rank < placement.ranks; ++rank) {
      Time load = 0;
      for (const int s : placement.stages_on(rank)) {
        load += costs.of(s).duration(Kind::forward) + costs.of(s).duration(Kind::backward);
      }
      result.figures.load = std::max(result.figures.load, load);
    }
    for (const MemoryLimit& each : memory_needed(program, costs, MemoryLimit::Unit::bytes)) {
      result.figures.peak_memory = std::max(result.figures.peak_memory, each.amount);
    }
    if (!limit_) return result;
    result.needed = memory_needed(program, costs, limit_->unit);
    for (const MemoryLimit& each : result.needed) {
      result.excess = std::max(result.excess, each.amount - limit_->amount);
    }
    result.figures.fits = result.excess == 0;
    return result;
  }

  // Those that were not tried yet: the stages before a run of cuts and behind it give and take, those between keep what
  // they have.
  std::vector<std::vector<int>> neighbours(const std::vector<int>& cut) {
    std::vector<std::vector<int>> found;
    for (std::size_t from = 0; from + 1 < cut.size(); ++from) {
      for (std::size_t to = from + 1; to < cut.size() && to - from <= run_max; ++to) {
        for (const int parts : {1, -1, 2, -2}) {
          std::vector<int> moved = cut;
          moved[from] += parts;
          moved[to] -= parts;
          if (moved[from] < 1 || moved[to] < 1 || !seen_.insert(moved).second) continue;
          found.push_back(std::move(moved));
        }
      }
    }
    return found;
  }

  const std::function<Program(const ModelCosts&)>& program_of_;
  const ModelCosts& costs_;
  const std::optional<MemoryLimit>& limit_;
  unsigned threads_;
  std::set<std::vector<int>> seen_;
};

}  // namespace

Partition partition(const std::function<Program(const ModelCosts&)>& program_of, const ModelCosts& costs,
                    const std::optional<MemoryLimit>& limit, unsigned threads) {
  return Partitioner(program_of, costs, limit, threads).run();
}

}  // namespace dualpipe
