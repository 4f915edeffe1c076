#include "dualpipe/sim/search/anneal.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace dualpipe::detail::search {
namespace {

class Walk {
 public:
  Walk(const Problem& problem, const Ops& ops, const Annealing& annealing, Random& random)
      : problem_(problem),
        ops_(ops),
        annealing_(annealing),
        random_(random),
        evaluator_(problem, ops, annealing.by_span) {
    double sum = 0;
    for (OpId op = 0; op < ops.count(); ++op) sum += static_cast<double>(ops.of(op).duration);
    mean_ = sum / static_cast<double>(std::max<std::size_t>(ops.count(), 1));
    has_units_ = problem.has_pairs || problem.joins_backwards();
  }

  Annealed run(const Order& start) {
    Annealed best{start, evaluator_.reset(start), 1};
    if (best.makespan == Evaluator::hangs) return best;
    evaluator_.critical_path(path_);
    const std::int64_t tries_max = 64 * annealing_.evaluations;  // moves that are not possible are not evaluated
    const double cooling = std::log(annealing_.cold / annealing_.hot);
    double temperature = mean_ * annealing_.hot;
    for (std::int64_t tries = 0; tries < tries_max && best.evaluations < annealing_.evaluations; ++tries) {
      if (best.makespan <= annealing_.bound) break;
      if (tries % 256 == 0) {
        if (annealing_.stopped && annealing_.stopped()) break;
        const double done = static_cast<double>(best.evaluations) / static_cast<double>(annealing_.evaluations);
        temperature = mean_ * annealing_.hot * std::exp(cooling * done);
      }
      const Time most = evaluator_.makespan() + static_cast<Time>(-temperature * std::log(1 - random_.share()));
      Time makespan = 0;
      if (!change(most, makespan)) continue;
      ++best.evaluations;
      if (makespan == Evaluator::hangs) {
        evaluator_.undo();
        continue;
      }
      evaluator_.accept();
      evaluator_.critical_path(path_);
      if (makespan < best.makespan) best.makespan = makespan, best.order = evaluator_.order();
    }
    return best;
  }

 private:
  // False: it was not possible.
  bool change(Time most, Time& makespan) {
    const bool on_path = random_.below(2) == 0;
    std::size_t from = on_path ? path_[random_.below(path_.size())] : random_.below(ops_.count());
    if (has_units_) from = evaluator_.unit_begin(from);
    const int rank = problem_.stages[static_cast<std::size_t>(ops_.stage(op_of(evaluator_.order()[from])))].rank;
    if (has_units_ && random_.below(8) == 0) return join(rank, from, most, makespan);
    const auto step = 1 + random_.below(random_.below(2) == 0 ? 4 : static_cast<std::uint64_t>(annealing_.reach));
    std::size_t to = 0;
    if (random_.below(2) == 0) {
      if (from < ops_.begin(rank) + step) return false;
      to = from - step;
    } else {
      to = from + step;
      if (to >= ops_.end(rank)) return false;
    }
    // What is on the path may also stay, and another op go behind it, or before.
    if (on_path && random_.below(4) == 0) std::swap(from, to);
    if (has_units_) {
      from = evaluator_.unit_begin(from);
      to = evaluator_.unit_begin(to);
      if (from == to) return false;
    }
    if (!evaluator_.may_move(rank, from, to)) return false;
    makespan = evaluator_.move(rank, from, to, most);
    return true;
  }

  // Makes one unit of what were two, or two of one.
  bool join(int rank, std::size_t from, Time most, Time& makespan) {
    const Order& order = evaluator_.order();
    const std::size_t end = evaluator_.unit_end(from);
    std::vector<Entry> entries(order.begin() + static_cast<std::ptrdiff_t>(from),
                               order.begin() + static_cast<std::ptrdiff_t>(end));
    if (is_joined(entries[0])) {
      entries[0] &= ~joined;
    } else {
      if (end == ops_.end(rank)) return false;
      const Pass pass = ops_.pass(op_of(entries[0]));
      const OpId next = op_of(order[end]);
      const bool next_is_full = ops_.pass(next) == Pass::input_gradient && is_joined(order[end]);
      const bool makes_pair = pass == Pass::forward && next_is_full && problem_.has_pairs &&
                              (ops_.stage(next) != ops_.stage(op_of(entries[0])) ||
                               ops_.micro_batch(next) != ops_.micro_batch(op_of(entries[0])));
      const bool makes_full = pass == Pass::input_gradient && ops_.pass(next) == Pass::weight_gradient &&
                              ops_.stage(next) == ops_.stage(op_of(entries[0])) &&
                              ops_.micro_batch(next) == ops_.micro_batch(op_of(entries[0]));
      if (!makes_pair && !makes_full) return false;
      if (makes_pair && !may_pair(rank, op_of(entries[0]), next)) return false;
      entries[0] |= joined;
    }
    makespan = evaluator_.replace(rank, from, entries, most);
    return true;
  }

  // The backward must not need the forward on the same rank, through whatever stages.
  [[nodiscard]] bool may_pair(int rank, OpId forward, OpId backward) const {
    (void)rank;
    return ops_.micro_batch(forward) != ops_.micro_batch(backward) ||
           problem_.placement.chain_of(ops_.stage(forward)) != problem_.placement.chain_of(ops_.stage(backward));
  }

  const Problem& problem_;
  const Ops& ops_;
  const Annealing& annealing_;
  Random& random_;
  Evaluator evaluator_;
  std::vector<std::size_t> path_;
  double mean_ = 1;
  bool has_units_ = false;
};

}  // namespace

Annealed anneal(const Problem& problem, const Ops& ops, const Order& start, const Annealing& annealing,
                Random& random) {
  return Walk(problem, ops, annealing, random).run(start);
}

}  // namespace dualpipe::detail::search
