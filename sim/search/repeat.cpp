#include "dualpipe/sim/search/repeat.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "dualpipe/sim/search/evaluator.h"

namespace dualpipe::detail::search {
namespace {

// Pieces of the words of all ranks: those between two times.
using Stretch = std::vector<std::pair<std::size_t, std::size_t>>;

class Repeater {
 public:
  Repeater(const Order& order, const Problem& few, const Problem& many)
      : order_(order), few_(few), many_(many), few_ops_(few), many_ops_(many), evaluator_(few, few_ops_) {
    (void)evaluator_.reset(order);
  }

  std::optional<Order> best(bool by_span) {
    Evaluator longer(many_, many_ops_, by_span);
    std::optional<Order> best;
    Time least = Evaluator::hangs;
    for (std::int64_t times = 1; times <= 4; ++times) {
      if ((many_.micro_batches - few_.micro_batches) % times != 0) continue;
      for (const Time begin : begins()) {
        const auto stretch = stretch_from(begin, times);
        if (!stretch) continue;
        Order order = with(*stretch, (many_.micro_batches - few_.micro_batches) / times);
        if (!keeps_room(order)) continue;
        const Time makespan = longer.reset(order);
        if (makespan < least) least = makespan, best = std::move(order);
      }
    }
    return best;
  }

 private:
  // Starts of the ops of the rank that has most to do, in the middle half of the run.
  [[nodiscard]] std::vector<Time> begins() const {
    std::vector<Time> times;
    const int rank = few_.ranks() / 2;
    const std::size_t count = few_ops_.end(rank) - few_ops_.begin(rank);
    for (std::size_t p = few_ops_.begin(rank) + count / 4; p < few_ops_.end(rank) - count / 4; ++p) {
      times.push_back(evaluator_.start(p));
    }
    std::ranges::sort(times);
    times.erase(std::unique(times.begin(), times.end()), times.end());
    return times;
  }

  [[nodiscard]] std::optional<Stretch> stretch_from(Time begin, std::int64_t times) const {
    Stretch stretch;
    for (int r = 0; r < few_.ranks(); ++r) {
      const auto& stages = few_.stages_on[static_cast<std::size_t>(r)];
      std::size_t from = few_ops_.begin(r);
      while (from < few_ops_.end(r) && evaluator_.start(from) < begin) ++from;
      const std::size_t to = from + 3 * stages.size() * static_cast<std::size_t>(times);
      if (to > few_ops_.end(r)) return std::nullopt;
      std::vector<std::array<std::int64_t, 3>> counts(few_.stages.size());
      for (std::size_t p = from; p < to; ++p) {
        const OpId op = op_of(order_[p]);
        const auto s = static_cast<std::size_t>(few_ops_.stage(op));
        if (++counts[s][static_cast<std::size_t>(few_ops_.pass(op))] > times) return std::nullopt;
      }
      stretch.emplace_back(from, to);
    }
    return stretch;
  }

  [[nodiscard]] Order with(const Stretch& stretch, std::int64_t more) const {
    Order order;
    std::vector<std::array<std::int64_t, 3>> next(few_.stages.size());
    const auto add = [&](std::size_t from, std::size_t to) {
      for (std::size_t p = from; p < to; ++p) {
        const OpId op = op_of(order_[p]);
        const int s = few_ops_.stage(op);
        const Pass pass = few_ops_.pass(op);
        auto& counts = next[static_cast<std::size_t>(s)];
        order.push_back(many_ops_.id(s, pass, counts[static_cast<std::size_t>(pass)]++));
      }
    };
    for (int r = 0; r < few_.ranks(); ++r) {
      const auto [from, to] = stretch[static_cast<std::size_t>(r)];
      add(few_ops_.begin(r), to);
      for (std::int64_t i = 0; i < more; ++i) add(from, to);
      add(to, few_ops_.end(r));
    }
    return order;
  }

  [[nodiscard]] bool keeps_room(const Order& order) const { return holds_no_more(order, many_ops_, many_); }

  const Order& order_;
  const Problem& few_;
  const Problem& many_;
  Ops few_ops_;
  Ops many_ops_;
  Evaluator evaluator_;
};

}  // namespace

std::optional<Order> repeated(const Order& order, const Problem& few, const Problem& many, bool by_span) {
  if (std::ranges::any_of(order, is_joined)) return std::nullopt;
  return Repeater(order, few, many).best(by_span);
}

}  // namespace dualpipe::detail::search
