#include "dualpipe/sim/search/construct.h"

#include <algorithm>
#include <utility>

#include "dualpipe/sim/search/blocks.h"
#include "dualpipe/sim/search/dispatch.h"
#include "dualpipe/sim/search/evaluator.h"

namespace dualpipe::detail::search {
namespace {

constexpr int rules = 6;
constexpr std::size_t filled = 4;  // the best, whose gaps are filled
constexpr std::size_t kept = 3;    // of these

// The words that a cyclic schedule makes: all ops by their times.
Order unrolled(const Problem& problem, const Ops& ops, const Block& block) {
  Order order;
  std::vector<std::pair<Time, OpId>> timed;
  for (const auto& stages : problem.stages_on) {
    timed.clear();
    for (const int s : stages) {
      for (const Pass pass : {Pass::forward, Pass::input_gradient, Pass::weight_gradient}) {
        const Time start = block.start[3 * static_cast<std::size_t>(s) + static_cast<std::size_t>(pass)];
        for (std::int64_t m = 0; m < problem.micro_batches; ++m) {
          timed.emplace_back(start + m * block.period, ops.id(s, pass, m));
        }
      }
    }
    std::ranges::sort(timed);
    for (const auto& [time, op] : timed) order.push_back(op);
  }
  return order;
}

DispatchRule random_rule(const Problem& problem, Random& random) {
  DispatchRule rule;
  const bool gradients_first = random.below(3) > 0;
  const bool late_first = random.below(2) == 0;
  const auto stages = static_cast<Time>(problem.stages.size());
  for (Time s = 0; s < stages; ++s) {
    const Time forward = late_first ? stages - s : s;
    const Time gradient = random.below(8) == 0 ? s : stages - s;
    rule.key.push_back((gradients_first ? stages : 0) + forward);
    rule.key.push_back((gradients_first ? 0 : stages) + gradient);
    rule.key.push_back(4 * stages + s);
  }
  rule.step = random.below(3) == 0 ? 1 : 0;
  constexpr double patience[] = {0, 0.25, 0.5, 1, 4};
  rule.patience = patience[random.below(5)];
  if (random.below(2) == 0) {
    for (const auto& stages_of_rank : problem.stages_on) {
      const auto share = static_cast<std::int64_t>(stages_of_rank.size());
      rule.in_flight.push_back(
          1 + static_cast<std::int64_t>(random.below(2 * problem.stages_on.size() *
                                                     static_cast<std::uint64_t>(std::max<std::int64_t>(share, 1)))));
    }
  }
  return rule;
}

int block_moves(const Problem& problem) { return problem.placement.chains() == 1 ? 1500 * problem.ranks() : 0; }

// Ops go forward into gaps in which they fit: their input is there, and the memory for them, and nothing is later for
// it.
class Backfill {
 public:
  Backfill(const Problem& problem, const Ops& ops, bool by_span)
      : problem_(problem), ops_(ops), evaluator_(problem, ops, by_span) {}

  // As far as it comes with so many evaluations.
  Candidate run(const Candidate& candidate, std::int64_t evaluations) {
    end_ = evaluations_ + evaluations;
    (void)evaluator_.reset(candidate.order);
    ++evaluations_;
    constexpr int passes_max = 30;  // an op that has gone makes room for others
    for (int pass = 0; pass < passes_max; ++pass) {
      bool has_changed = false;
      for (int rank = 0; rank < problem_.ranks(); ++rank) {
        for (std::size_t p = ops_.begin(rank); p < ops_.end(rank); ++p) has_changed |= fill_before(rank, p);
      }
      if (!has_changed) break;
    }
    return {evaluator_.order(), evaluator_.makespan()};
  }
  [[nodiscard]] std::int64_t evaluations() const { return evaluations_; }

 private:
  bool fill_before(int rank, std::size_t p) {
    constexpr std::size_t reach = 64;
    const Time begin = p == ops_.begin(rank) ? 0 : evaluator_.end(p - 1);
    const Time end = evaluator_.start(p);
    if (begin >= end) return false;
    for (std::size_t q = p + 1; q < std::min(ops_.end(rank), p + reach) && evaluations_ < end_; ++q) {
      const Time duration = ops_.of(op_of(evaluator_.order()[q])).duration;
      if (std::max(begin, evaluator_.arrival(q)) + duration > end || !evaluator_.may_move(rank, q, p)) continue;
      ++evaluations_;
      if (evaluator_.move(rank, q, p, evaluator_.makespan()) != Evaluator::hangs) {
        evaluator_.accept();
        return true;
      }
      evaluator_.undo();
    }
    return false;
  }

  const Problem& problem_;
  const Ops& ops_;
  Evaluator evaluator_;
  std::int64_t evaluations_ = 0;
  std::int64_t end_ = 0;
};

}  // namespace

std::int64_t cost_of_constructing(const Problem& problem, const Ops& ops) {
  const auto entries = static_cast<std::int64_t>(3 * problem.stages.size());
  return 1 + block_moves(problem) * entries / static_cast<std::int64_t>(ops.count());
}

Constructed construct(const Problem& problem, const Ops& ops, bool by_span, double stretch, std::int64_t evaluations,
                      Random& random) {
  Constructed result;
  result.evaluations = cost_of_constructing(problem, ops);
  Evaluator evaluator(problem, ops, by_span);
  const auto take = [&](std::optional<Order> order) {
    ++result.evaluations;
    if (!order || !holds_no_more(*order, ops, problem)) return;
    const Time value = evaluator.reset(*order);
    if (value != Evaluator::hangs) result.best.push_back({std::move(*order), value});
  };
  for (int i = 0; i < rules; ++i) take(dispatch(problem, ops, random_rule(problem, random)));
  if (const int moves = block_moves(problem); moves > 0) {
    const Block block = anneal_block(problem, stretch, moves, random);
    result.keeps_room = block.overflow == 0;
    take(unrolled(problem, ops, block));
    DispatchRule rule{block.start, block.period, 0, {}};
    for (const double patience : {0.0, 0.3, 0.6, 1.0, 10.0}) {
      rule.patience = patience;
      take(dispatch(problem, ops, rule));
    }
  }
  std::ranges::stable_sort(result.best, {}, &Candidate::value);
  if (result.best.size() > filled) result.best.resize(filled);
  Backfill backfill(problem, ops, by_span);
  const std::int64_t left = evaluations - result.evaluations;
  for (Candidate& each : result.best) {
    if (backfill.evaluations() < left) each = backfill.run(each, left - backfill.evaluations());
  }
  result.evaluations += backfill.evaluations();
  std::ranges::stable_sort(result.best, {}, &Candidate::value);
  if (result.best.size() > kept) result.best.resize(kept);
  return result;
}

}  // namespace dualpipe::detail::search
