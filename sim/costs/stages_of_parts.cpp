#include <algorithm>
#include <cassert>
#include <cstdint>
#include <numeric>
#include <queue>
#include <tuple>

#include "dualpipe/sim/costs/partition.h"

namespace dualpipe::detail::costs {
namespace {

class DivisionSearch {
 public:
  DivisionSearch(std::span<const LoadTimes> parts, std::span<const RankStages> ranks, int stages)
      : parts_(parts), stages_(stages), loads_(ranks.size()), ranks_of_(static_cast<std::size_t>(stages)) {
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      for (const int stage : ranks[rank]) ranks_of_[static_cast<std::size_t>(stage)].push_back(rank);
    }
    for (const LoadTimes& part : parts) {
      totals_.push_back(std::accumulate(part.begin(), part.end(), Time{0}));
    }
  }

  [[nodiscard]] std::vector<int> best() {
    best_ = even();
    most_ = largest_load(best_);
    const Time all = std::accumulate(totals_.begin(), totals_.end(), Time{0});
    const auto ranks = static_cast<Time>(loads_.size());
    least_ = (all + ranks - 1) / ranks;
    if (parts_.size() <= searched_parts_max) divide(0, 0);
    return best_;
  }

 private:
  static constexpr std::size_t searched_parts_max = 4096;  // the search is as deep as there are parts
  static constexpr std::size_t tries_max = std::size_t{1} << 18U;

  // One after another to the part that has most for each of its stages; of parts alike to the one with the fewest.
  [[nodiscard]] std::vector<int> even() const {
    std::vector<int> counts(parts_.size(), 1);
    using Entry = std::tuple<double, int, int>;  // the load for each of its stages, -stages, -part: the largest is next
    std::priority_queue<Entry> queue;
    const auto push = [&](std::size_t part) {
      queue.emplace(static_cast<double>(totals_[part]) / counts[part], -counts[part], -static_cast<int>(part));
    };
    for (std::size_t part = 0; part < parts_.size(); ++part) push(part);
    for (int left = stages_ - static_cast<int>(parts_.size()); left > 0; --left) {
      const auto part = static_cast<std::size_t>(-std::get<2>(queue.top()));
      queue.pop();
      ++counts[part];
      push(part);
    }
    return counts;
  }

  [[nodiscard]] Time largest_load(const std::vector<int>& counts) {
    int stage = 0;
    for (std::size_t part = 0; part < counts.size(); ++part) {
      add(part, stage, counts[part], +1);
      stage += counts[part];
    }
    const Time largest = *std::ranges::max_element(loads_);
    std::ranges::fill(loads_, 0);
    return largest;
  }

  // Gives the ranks the stages of a part, or takes them back.
  void add(std::size_t part, int stage, int count, int sign) {
    for (int i = 0; i < count; ++i) {
      Time load = 0;
      for (const Time time : parts_[part]) load += share_of(time, i, count);
      for (const std::size_t rank : ranks_of_[static_cast<std::size_t>(stage + i)]) loads_[rank] += sign * load;
    }
  }

  // `stage`: the first that is not of the parts before.
  void divide(std::size_t part, int stage) {
    if (part == parts_.size()) {
      most_ = *std::ranges::max_element(loads_);
      best_ = counts_;
      return;
    }
    const int left = stages_ - stage - static_cast<int>(parts_.size() - part - 1);
    for (int count = part + 1 == parts_.size() ? left : 1; count <= left; ++count) {
      if (most_ <= least_ || ++tries_ > tries_max) return;
      add(part, stage, count, +1);
      counts_.push_back(count);
      if (*std::ranges::max_element(loads_) < most_ && is_enough(part + 1, stages_ - stage - count)) {
        divide(part + 1, stage + count);
      }
      counts_.pop_back();
      add(part, stage, count, -1);
    }
  }

  // Whether so many stages can take the parts from this one on, if each of them may have just less than the best way's
  // largest load.
  [[nodiscard]] bool is_enough(std::size_t part, int stages) const {
    const Time limit = most_ - 1;
    Time needed = 0;
    for (; part < parts_.size(); ++part) {
      if (totals_[part] > 0 && limit == 0) return false;
      needed += std::max<Time>(1, limit == 0 ? 1 : (totals_[part] + limit - 1) / limit);
    }
    return needed <= stages;
  }

  std::span<const LoadTimes> parts_;
  int stages_;
  std::vector<Time> totals_;                        // by part
  std::vector<Time> loads_;                         // by rank, of the parts so far
  std::vector<std::vector<std::size_t>> ranks_of_;  // by stage; a rank that holds it in two chains is there twice
  std::vector<int> counts_;                         // of the parts so far
  std::vector<int> best_;
  Time most_ = 0;   // the largest load of the best way
  Time least_ = 0;  // that any way has
  std::size_t tries_ = 0;
};

}  // namespace

std::int64_t share_of(std::int64_t amount, int index, int count) {
  assert(amount >= 0 && index >= 0 && index < count);
  const std::int64_t each = amount / count;
  const std::int64_t more = amount % count;  // shares that have one more, evenly among the others
  return each + (index + 1) * more / count - index * more / count;
}

std::vector<int> stages_of_parts(std::span<const LoadTimes> parts, std::span<const RankStages> ranks, int stages) {
  assert(parts.size() < static_cast<std::size_t>(stages));
  return DivisionSearch(parts, ranks, stages).best();
}

}  // namespace dualpipe::detail::costs
