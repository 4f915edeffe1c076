#include <algorithm>
#include <cassert>
#include <cstdint>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <unordered_set>

#include "dualpipe/sim/costs/partition.h"

namespace dualpipe::detail::costs {
namespace {

__extension__ using Int128 = __int128;

// Bound b of a cut is where stage b begins and stage b - 1 ends, as a number of parts.
class CutSearch {
 public:
  CutSearch(std::span<const Time> loads, std::span<const RankStages> ranks, int stages)
      : stages_(stages), sums_(loads.size() + 1), cut_(static_cast<std::size_t>(stages) + 1, unset) {
    for (std::size_t i = 0; i < loads.size(); ++i) sums_[i + 1] = sums_[i] + loads[i];
    cut_.front() = 0;
    cut_.back() = parts();
    for (int bound = 0; bound <= stages; ++bound) even_.push_back(even_bound(bound));
    if (stages_ <= searched_stages_max) plan(ranks);
  }

  [[nodiscard]] std::vector<int> best() {
    const std::vector<int> cut = plan_.empty() ? even_cut() : best_cut();
    std::vector<int> counts;
    for (std::size_t stage = 0; stage + 1 < cut.size(); ++stage) counts.push_back(cut[stage + 1] - cut[stage]);
    return counts;
  }

 private:
  static constexpr int unset = -1;
  static constexpr int searched_stages_max = 4096;  // the search is as deep as there are stages
  // Places tried for one limit, by how many bounds ranks share: with one there are few. 645,000 were the most that 200
  // parts of the most uneven loads took for two chains on 32 ranks, and 300 parts for a V on 16 took half of that.
  static constexpr std::size_t tries_max_of_two = std::size_t{1} << 20U;
  static constexpr std::size_t tries_max_of_more = std::size_t{1} << 16U;

  // A bound that a rank sets, between those set before it; and its stages that are then known.
  struct Step {
    int bound;
    int below, above;
    RankStages known;
  };
  struct Rank {
    RankStages stages;
    bool has_twice;    // a stage
    RankStages known;  // between bounds of the ranks before it
    std::vector<Step> steps;
    std::vector<int> shared;  // bounds that are set then, and that the ranks after it have stages beside
  };

  [[nodiscard]] std::vector<int> best_cut() {
    std::vector<int> best = even_cut();
    Time least = std::max(largest_part(), (sums_.back() + ranks() - 1) / ranks());
    Time most = largest_load(best);
    for (Time limit = least; least < most; limit = least + (most - least) / 2) {
      if (const auto found = within(limit)) {
        best = *found;
        most = largest_load(best);
      } else {
        least = gave_up_ ? limit + 1 : std::min(next_limit_, most);
      }
    }
    return best;
  }

  [[nodiscard]] int parts() const { return static_cast<int>(sums_.size()) - 1; }
  [[nodiscard]] int ranks() const { return static_cast<int>(plan_.size()); }
  [[nodiscard]] Time load(int stage, const std::vector<int>& cut) const {
    const auto s = static_cast<std::size_t>(stage);
    return sum(cut[s + 1]) - sum(cut[s]);
  }
  [[nodiscard]] Time sum(int part) const { return sums_[static_cast<std::size_t>(part)]; }
  [[nodiscard]] int& at(int bound) { return cut_[static_cast<std::size_t>(bound)]; }
  [[nodiscard]] Time largest_part() const {
    Time largest = 0;
    for (int part = 0; part < parts(); ++part) largest = std::max(largest, sum(part + 1) - sum(part));
    return largest;
  }

  void plan(std::span<const RankStages> ranks) {
    std::vector<bool> is_set(cut_.size());
    std::vector<bool> is_done(static_cast<std::size_t>(stages_));
    is_set.front() = is_set.back() = true;
    for (const RankStages& stages : ranks) {
      Rank& rank = plan_.emplace_back();
      rank.stages = stages;
      rank.has_twice = std::ranges::adjacent_find(stages) != stages.end();
      const auto known = [&](int stage) {
        return is_set[static_cast<std::size_t>(stage)] && is_set[static_cast<std::size_t>(stage) + 1];
      };
      std::ranges::copy_if(stages, std::back_inserter(rank.known), known);
      for (const int stage : stages) {
        for (const int bound : {stage, stage + 1}) {
          if (is_set[static_cast<std::size_t>(bound)]) continue;
          Step& step = rank.steps.emplace_back(Step{bound, bound - 1, bound + 1, {}});
          while (!is_set[static_cast<std::size_t>(step.below)]) --step.below;
          while (!is_set[static_cast<std::size_t>(step.above)]) ++step.above;
          is_set[static_cast<std::size_t>(bound)] = true;
          for (const int other : stages) {
            if ((other == bound || other == bound - 1) && known(other)) step.known.push_back(other);
          }
        }
        is_done[static_cast<std::size_t>(stage)] = true;
      }
      for (int bound = 1; bound < stages_; ++bound) {
        const auto b = static_cast<std::size_t>(bound);
        if (is_set[b] && !(is_done[b - 1] && is_done[b])) rank.shared.push_back(bound);
      }
      shared_most_ = std::max(shared_most_, rank.shared.size());
    }
  }

  // Where a bound would be if all stages had the same load; of several such places where they had as many parts.
  [[nodiscard]] int even_bound(int bound) const {
    const Int128 wanted = Int128{bound} * sums_.back();
    const auto distance = [&](int part) {
      const Int128 off = Int128{stages_} * sum(part) - wanted;
      return off < 0 ? -off : off;
    };
    const auto from = std::ranges::partition_point(sums_, [&](Time each) { return Int128{stages_} * each < wanted; });
    const int after = static_cast<int>(from - sums_.begin());
    const int nearest = after > 0 && distance(after - 1) <= distance(after) ? after - 1 : after;
    const auto [first, last] = std::equal_range(sums_.begin(), sums_.end(), sum(nearest));
    const auto by_count = static_cast<int>(std::int64_t{bound} * parts() / stages_);
    return std::clamp(by_count, static_cast<int>(first - sums_.begin()), static_cast<int>(last - sums_.begin()) - 1);
  }

  [[nodiscard]] std::vector<int> even_cut() const {
    std::vector<int> cut = even_;
    cut.front() = 0;
    cut.back() = parts();
    for (int bound = 1; bound < stages_; ++bound) {
      const auto b = static_cast<std::size_t>(bound);
      cut[b] = std::clamp(cut[b], cut[b - 1] + 1, parts() - (stages_ - bound));
    }
    return cut;
  }

  [[nodiscard]] Time largest_load(const std::vector<int>& cut) const {
    Time largest = 0;
    for (const Rank& rank : plan_) {
      Time total = 0;
      for (const int stage : rank.stages) total += load(stage, cut);
      largest = std::max(largest, total);
    }
    return largest;
  }

  // A cut in which no rank has more than the limit, if there is one.
  [[nodiscard]] std::optional<std::vector<int>> within(Time limit) {
    limit_ = limit;
    next_limit_ = std::numeric_limits<Time>::max();
    tries_ = 0;
    gave_up_ = false;
    failed_.clear();
    if (begin_rank(0, sums_.back())) return cut_;
    return std::nullopt;
  }

  // Whether a rank may have so much. The least of what none may is the next limit by which the search could go on
  // otherwise.
  [[nodiscard]] bool is_within(Time load) {
    if (load > limit_) next_limit_ = std::min(next_limit_, load);
    return load <= limit_;
  }
  // Whether the ranks after this one may have so much altogether.
  [[nodiscard]] bool is_within(Time left, std::size_t number) {
    const auto after = static_cast<Time>(plan_.size() - number - 1);
    return after == 0 ? left == 0 : is_within((left + after - 1) / after);
  }

  // `left`: the load of all stages whose rank is still to come.
  bool begin_rank(std::size_t number, Time left) {
    if (number == plan_.size()) return true;
    Time total = 0;
    for (const int stage : plan_[number].known) total += load(stage, cut_);
    return is_within(total) && set_bounds(number, 0, total, left);
  }

  bool set_bounds(std::size_t number, std::size_t next, Time total, Time left) {
    const Rank& rank = plan_[number];
    if (next == rank.steps.size()) return end_rank(number, left);
    const Step& step = rank.steps[next];
    const Places range = places(number, next, total, left);
    const int first = range.first;
    const int last = range.last;
    const auto is_right = [&](int place) {
      if (place < first || place > last || is_given_up()) return false;
      at(step.bound) = place;
      Time with = total;
      for (const int stage : step.known) with += load(stage, cut_);
      return is_within(with) && set_bounds(number, next + 1, with, left);
    };
    // Outwards from the even cut, so that the first one found is near it.
    const int start = std::clamp(even_[static_cast<std::size_t>(step.bound)], first, std::max(first, last));
    for (int away = 0; !gave_up_ && (start - away >= first || start + away <= last); ++away) {
      if (is_right(start - away) || (away > 0 && is_right(start + away))) return true;
    }
    at(step.bound) = unset;
    return false;
  }

  struct Places {
    int first, last;
  };
  // The first number below `count` for which `holds` does not hold, which it does for all before it and none after it;
  // `count` if there is none.
  template <typename Holds>
  [[nodiscard]] static int first_without(int count, Holds holds) {
    int first = 0;
    while (first < count) {
      const int middle = first + (count - first) / 2;
      if (holds(middle)) {
        first = middle + 1;
      } else {
        count = middle;
      }
    }
    return first;
  }
  // Where a bound may be: each stage has a part; if one stage is then known the rank has not too much, and where that
  // is its last stage not so little that the ranks after it have too much.
  [[nodiscard]] Places places(std::size_t number, std::size_t next, Time total, Time left) {
    const Rank& rank = plan_[number];
    const Step& step = rank.steps[next];
    const Places all{at(step.below) + (step.bound - step.below), at(step.above) - (step.above - step.bound)};
    if (step.known.size() != 1 || all.first > all.last) return all;

    const bool ends = step.known[0] != step.bound;  // the stage does, there; else it begins
    const auto place_of = [&](int i) { return ends ? all.first + i : all.last - i; };  // by the load of the rank
    const auto load_at = [&](int i) {
      return total + (ends ? sum(place_of(i)) - sum(at(step.bound - 1)) : sum(at(step.bound + 1)) - sum(place_of(i)));
    };
    const int ways = all.last - all.first + 1;
    const int too_many = first_without(ways, [&](int i) { return load_at(i) <= limit_; });
    if (too_many < ways) (void)is_within(load_at(too_many));
    int enough = 0;
    if (next + 1 == rank.steps.size() && !rank.has_twice) {
      const Int128 most_after = Int128{limit_} * static_cast<Time>(plan_.size() - number - 1);
      enough = first_without(ways, [&](int i) { return left - load_at(i) > most_after; });
      if (enough > 0) (void)is_within(left - load_at(enough - 1), number);
    }
    if (enough >= too_many) return {0, -1};
    return ends ? Places{place_of(enough), place_of(too_many - 1)} : Places{place_of(too_many - 1), place_of(enough)};
  }

  bool end_rank(std::size_t number, Time left) {
    const Rank& rank = plan_[number];
    int previous = -1;
    for (const int stage : rank.stages) {
      if (stage != previous) left -= load(stage, cut_);
      previous = stage;
    }
    if (!is_within(left, number)) return false;
    std::u32string key(1, static_cast<char32_t>(number));
    for (const int bound : rank.shared) key += static_cast<char32_t>(at(bound));
    if (failed_.contains(key)) return false;
    if (begin_rank(number + 1, left)) return true;
    failed_.insert(std::move(key));
    return false;
  }

  [[nodiscard]] bool is_given_up() {
    const std::size_t most = shared_most_ == 2 ? tries_max_of_two : tries_max_of_more;
    gave_up_ = gave_up_ || (shared_most_ > 1 && ++tries_ > most);
    return gave_up_;
  }

  int stages_;
  std::vector<Time> sums_;  // of the loads before each part, and of all
  std::vector<int> cut_;    // bounds, stages + 1; unset while the search has not come to them
  std::vector<Rank> plan_;  // empty where there are too many stages for a search
  std::vector<int> even_;
  std::size_t shared_most_ = 0;
  Time limit_ = 0;
  Time next_limit_ = 0;
  std::size_t tries_ = 0;
  bool gave_up_ = false;                       // this limit
  std::unordered_set<std::u32string> failed_;  // ranks done, and their shared bounds
};

}  // namespace

std::vector<RankStages> stages_of_ranks(const Placement& placement) {
  std::vector<RankStages> ranks(static_cast<std::size_t>(placement.ranks));
  for (int chain = 0; chain < placement.chains(); ++chain) {
    const int begin = placement.chain_begin[static_cast<std::size_t>(chain)];
    const int end = placement.chain_begin[static_cast<std::size_t>(chain) + 1];
    for (int stage = begin; stage < end; ++stage) {
      ranks[placement.rank_of[static_cast<std::size_t>(stage)]].push_back(stage - begin);
    }
  }
  for (RankStages& stages : ranks) std::ranges::sort(stages);
  std::ranges::sort(ranks);
  const auto same = std::unique(ranks.begin(), ranks.end());
  ranks.erase(same, ranks.end());
  return ranks;
}

std::vector<int> parts_of_stages(std::span<const Time> loads, std::span<const RankStages> ranks, int stages) {
  assert(loads.size() >= static_cast<std::size_t>(stages));
  return CutSearch(loads, ranks, stages).best();
}

}  // namespace dualpipe::detail::costs
