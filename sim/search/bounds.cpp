#include "dualpipe/sim/search/bounds.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/search/most_work.h"
#include "dualpipe/sim/search/problem.h"

namespace dualpipe {
namespace detail::search {
namespace {

// A stage as the bounds see it. Ops are as short as they can be in a chain, and as long as they can be in a rank's
// work.
struct Stage {
  int rank = 0;
  Time forward = 0, input_gradient = 0, weight_gradient = 0;  // least
  Time forward_most = 0, backward_most = 0;                   // of I and W, or B
  Time work_least = 0;                                        // of all passes of a micro-batch
  Time to_next = 0, to_previous = 0;
  Bytes activation = 0, stash = 0;
  // When the first micro-batch comes to F and I, and ends them, if nothing else runs: from the start of the chain.
  Time forward_start = 0, forward_end = 0, input_gradient_start = 0, input_gradient_end = 0;
};

enum class Point : std::uint8_t { edge, forward, input_gradient };  // edge: the rank's first op, or its last

// A of the formula: where the window begins.
struct Begin {
  Point point;
  int stage;           // of `edge`, the rank's first
  std::int64_t index;  // of the micro-batch
  Time head;
  Time done;  // most work of the rank before
};

// B, where it ends.
struct End {
  Point point;
  int stage;
  Time left;
};

// Of what problems it is: one chain.
class Windows {
 public:
  Windows(const std::vector<Stage>& stages, const Problem& problem) : stages_(stages), problem_(problem) {}

  [[nodiscard]] Bound bounds() const {
    Bound bounds;
    for (int q = 0; q < problem_.ranks(); ++q) {
      if (chunks(q).empty()) continue;
      Time load = 0;
      for (const int s : chunks(q)) load += problem_.micro_batches * at(s).work_least;
      const std::vector<Begin> begins = begins_of(q);
      for (const End& end : ends_of(q)) {
        const Tails after = tails(end, q);
        for (const Begin& begin : begins) {
          if (!is_before(begin, end, q)) continue;
          const Time window = begin.head + load - begin.done - end.left;
          bounds.makespan = std::max(bounds.makespan, window + after.of_all);
          for (int o = 0; o < problem_.ranks(); ++o) {
            const Time of_rank = after.of_rank[static_cast<std::size_t>(o)];
            if (of_rank == unreached || !follows_start_of(o, begin)) continue;
            bounds.span = std::max(bounds.span, window + of_rank - at(chunks(o).front()).forward_start);
          }
        }
      }
    }
    return bounds;
  }

 private:
  [[nodiscard]] const Stage& at(int s) const { return stages_[static_cast<std::size_t>(s)]; }
  [[nodiscard]] const std::vector<int>& chunks(int rank) const {
    return problem_.stages_on[static_cast<std::size_t>(rank)];
  }
  [[nodiscard]] Bytes room(int rank) const { return problem_.room[static_cast<std::size_t>(rank)]; }

  // From the end of B to the end of these stages.
  [[nodiscard]] Time tail(const End& end, const std::vector<int>& stages) const {
    if (end.point == Point::edge) return 0;
    const Time from = end.point == Point::forward ? at(end.stage).forward_end : at(end.stage).input_gradient_end;
    Time last = unreached;
    for (const int x : stages) {
      if (end.point == Point::input_gradient && x > end.stage) continue;
      last = std::max(last, at(x).input_gradient_end + at(x).weight_gradient - from);
    }
    return last;
  }

  struct Tails {
    Time of_all;
    std::vector<Time> of_rank;  // unreached where nothing of the rank must follow
  };
  [[nodiscard]] Tails tails(const End& end, int q) const {
    Tails tails{0, {}};
    for (int o = 0; o < problem_.ranks(); ++o) {
      const bool is_reached = end.point != Point::edge || o == q;
      tails.of_rank.push_back(is_reached && !chunks(o).empty() ? tail(end, chunks(o)) : unreached);
      tails.of_all = std::max(tails.of_all, tails.of_rank.back());
    }
    return tails;
  }

  // Whether A comes after the first op of rank o.
  [[nodiscard]] bool follows_start_of(int o, const Begin& begin) const {
    return begin.point == Point::input_gradient || begin.stage >= chunks(o).front();
  }

  [[nodiscard]] std::vector<Begin> begins_of(int q) const {
    std::vector<Begin> begins{{Point::edge, chunks(q).front(), 0, at(chunks(q).front()).forward_start, 0}};
    for (const int s : chunks(q)) {
      begins.push_back({Point::forward, s, 0, at(s).forward_start, done_before_forward(q, s)});
      begins.push_back({Point::input_gradient, s, 0, at(s).input_gradient_start, done_before_gradient(q, s, 0)});
      for (const int from : chunks(q)) {
        if (from <= s) add_rounds(begins, q, from, s);
      }
    }
    return begins;
  }

  // While I of micro-batch m - n waits at stage s, those up to m are held in all stages up to `from`, if they have come
  // there: one more than memory holds. So F of m starts after it.
  void add_rounds(std::vector<Begin>& begins, int q, int from, int s) const {
    Bytes each = 0;   // of a micro-batch, in the stages up to `from`
    Bytes later = 0;  // of one, from there to s
    for (const int x : chunks(q)) {
      if (x <= from) each += at(x).activation;
      if (x > from && x <= s) later += at(x).activation;
    }
    if (each <= 0 || room(q) < each + later) return;
    const std::int64_t n = (room(q) - later) / each;
    Time round = at(s).input_gradient_end - at(from).forward_start;
    if (from == s && chunks(q).front() == s && n * each + at(s).stash > room(q)) {
      round += std::min(at(s).weight_gradient, at(s).input_gradient);
    }
    for (std::int64_t k = 1; k * n < problem_.micro_batches; ++k) {
      begins.push_back(
          {Point::input_gradient, s, k * n, at(s).input_gradient_start + k * round, done_before_gradient(q, s, k * n)});
    }
  }

  [[nodiscard]] Time done_before_forward(int q, int s) const {
    MostWork p{.most = problem_.micro_batches, .room = room(q) - at(s).activation};
    for (const int x : chunks(q)) {
      if (x >= s) break;
      p.work.push_back(at(x).forward_most);
      p.bytes.push_back(at(x).activation);
    }
    return std::max<Time>(most_work(p), 0);
  }

  // Before I of micro-batch m: `m` of each stage up to s have run I, and W at most.
  [[nodiscard]] Time done_before_gradient(int q, int s, std::int64_t m) const {
    MostWork p{.least = m + 1, .most = problem_.micro_batches, .room = room(q)};
    Time ended = 0;
    for (const int x : chunks(q)) {
      if (x <= s) {
        p.work.push_back(at(x).forward_most);
        p.bytes.push_back(at(x).activation);
        p.room += m * at(x).activation;
        ended += m * at(x).backward_most;
      } else {
        p.work.back() += at(x).forward_most + at(x).backward_most;
      }
    }
    return std::max<Time>(most_work(p), 0) + ended;
  }

  [[nodiscard]] std::vector<End> ends_of(int q) const {
    std::vector<End> ends{{Point::edge, 0, 0}};
    for (const int s : chunks(q)) {
      ends.push_back({Point::forward, s, left_after(q, s, true)});
      ends.push_back({Point::input_gradient, s, left_after(q, s, false)});
    }
    return ends;
  }

  [[nodiscard]] Time left_after(int q, int s, bool forward) const {
    MostWork p{.most = problem_.micro_batches, .room = room(q)};
    set_stash(p, q);
    for (const int x : chunks(q)) {
      if (x < s || (x == s && forward)) {
        p.work.push_back(at(x).backward_most);
        p.bytes.push_back(at(x).activation);
      } else if (x > s && forward) {
        p.work.back() += at(x).forward_most + at(x).backward_most;
      }
    }
    return std::max<Time>(most_work(p), 0);
  }

  // What waits for W. A stage without W's time or B in one has nothing that could wait.
  void set_stash(MostWork& p, int q) const {
    bool is_free = false;
    double best = 0;
    for (const int x : chunks(q)) {
      const Time weight = at(x).backward_most - std::min(at(x).backward_most, at(x).input_gradient);
      p.stash_work_most += problem_.micro_batches * weight;
      if (weight == 0) continue;
      if (at(x).stash == 0) is_free = true;
      if (at(x).stash == 0 || static_cast<double>(weight) / static_cast<double>(at(x).stash) <= best) continue;
      best = static_cast<double>(weight) / static_cast<double>(at(x).stash);
      p.stash_work = weight;
      p.stash_bytes = at(x).stash;
    }
    if (is_free) p.stash_work = p.stash_bytes = 0;
  }

  // Whether A surely starts before B ends.
  [[nodiscard]] bool is_before(const Begin& a, const End& b, int q) const {
    if (a.point == Point::edge || b.point == Point::edge) return true;
    if (a.point == Point::forward && (b.point == Point::input_gradient || a.stage <= b.stage)) return true;
    if (b.point == Point::input_gradient) return a.stage >= b.stage;
    Bytes held = 0;  // if all F up to B had run before A
    for (const int x : chunks(q)) {
      const bool is_held = x <= b.stage && (a.point == Point::forward ? x < a.stage : x <= a.stage);
      if (is_held) held += (problem_.micro_batches - a.index) * at(x).activation;
    }
    return held > room(q);
  }

  static constexpr Time unreached = std::numeric_limits<Time>::min() / 4;

  const std::vector<Stage>& stages_;
  const Problem& problem_;
};

// The least time in which the activations of all micro-batches pass through the memory of a rank.
Time area_bound(const std::vector<Stage>& stages, const Problem& problem, int q) {
  const auto& chunks = problem.stages_on[static_cast<std::size_t>(q)];
  const auto room = static_cast<double>(problem.room[static_cast<std::size_t>(q)]);
  double area = 0;
  double most = 0;     // activation of a stage
  double drained = 0;  // bytes that a unit of work frees
  Time forward = std::numeric_limits<Time>::max();
  Time head = std::numeric_limits<Time>::max();
  for (const int x : chunks) {
    const Stage& stage = stages[static_cast<std::size_t>(x)];
    const auto a = static_cast<double>(stage.activation);
    const auto w = static_cast<double>(stage.stash);
    const Time back = stage.input_gradient + stage.weight_gradient;
    area += static_cast<double>(problem.micro_batches) *
            (a * static_cast<double>(stage.input_gradient_end - stage.forward_start) +
             w * static_cast<double>(stage.weight_gradient));
    most = std::max(most, a);
    if (stage.forward <= 0 || back <= 0 || (w > 0 && stage.weight_gradient <= 0)) return 0;
    drained = std::max(drained, a / static_cast<double>(back));
    if (w > 0) drained = std::max(drained, w / static_cast<double>(stage.weight_gradient));
    forward = std::min(forward, stage.forward);
    head = std::min(head, stage.forward_start);
  }
  if (area <= 0 || most <= 0 || room < most) return 0;
  // A staircase that rises by `most` every `forward`, up to the room, against a line that falls to `most` at the end.
  const auto held_within = [&](double length) {
    double held = 0;
    for (double t = 0, level = most; t < length;) {
      const bool is_full = level >= room;
      const double until = is_full ? length : std::min(length, t + static_cast<double>(forward));
      const double top = std::min(level, room);
      const double turn = drained > 0 ? length - (top - most) / drained : length;  // from there on the line is lower
      const double flat = std::clamp(turn, t, until);
      held += (flat - t) * top;
      const auto line = [&](double at) { return most + drained * (length - at); };
      if (flat < until) held += (until - flat) * (line(flat) + line(until)) / 2;
      t = until;
      level += most;
    }
    return held;
  };
  double low = 0;
  double high = area / most + static_cast<double>(forward);
  for (int i = 0; i < 64 && high - low > 0.25; ++i) {
    const double middle = (low + high) / 2;
    (held_within(middle) * (1 + 1e-12) < area ? low : high) = middle;
  }
  return head + static_cast<Time>(std::ceil(low * (1 - 1e-12) - 1e-6));
}

// With several chains: each rank's own work between what has to come before and after it.
Time load_bound(const std::vector<Stage>& stages, const Problem& problem, int q) {
  Time load = 0;
  Time head = std::numeric_limits<Time>::max();
  Time tail = std::numeric_limits<Time>::max();
  for (const int x : problem.stages_on[static_cast<std::size_t>(q)]) {
    const Stage& stage = stages[static_cast<std::size_t>(x)];
    load += problem.micro_batches * stage.work_least;
    head = std::min(head, stage.forward_start);
    Time after = 0;  // the rank's last op is a W or B of its, or an I that W follows
    if (stage.weight_gradient == 0) {
      int first = x;
      while (!problem.stages[static_cast<std::size_t>(first)].begins_chain) --first;
      after = stages[static_cast<std::size_t>(first)].input_gradient_end - stage.input_gradient_end;
    }
    tail = std::min(tail, after);
  }
  return load == 0 ? 0 : head + load + tail;
}

void set_durations(std::vector<Stage>& stages, const Problem& problem) {
  for (std::size_t s = 0; s < stages.size(); ++s) {
    const ProblemStage& from = problem.stages[s];
    Stage& stage = stages[s];
    stage.rank = from.rank;
    stage.forward = stage.forward_most = from.forward;
    stage.input_gradient = std::min(from.input_gradient, from.backward);
    stage.weight_gradient = std::min(from.weight_gradient, from.backward - stage.input_gradient);
    stage.backward_most = std::max(from.input_gradient + from.weight_gradient, from.backward);
    stage.work_least = stage.forward + std::min(from.input_gradient + from.weight_gradient, from.backward);
    stage.to_next = from.to_next;
    stage.to_previous = from.to_previous;
    stage.activation = from.activation;
    // A full backward never holds more than the activation.
    stage.stash = std::min(from.stash, from.activation);
  }
}

// What F&B can gain at most, and how early it can end.
void lower_by_pairs(std::vector<Stage>& stages, const Problem& problem) {
  for (const auto& chunks : problem.stages_on) {
    const std::vector<Stage> alone = stages;
    Time shortest = std::numeric_limits<Time>::max();
    for (const int f : chunks) {
      Time gain = 0;
      Stage& ahead = stages[static_cast<std::size_t>(f)];
      for (const int b : chunks) {
        const Stage& back = alone[static_cast<std::size_t>(b)];
        const Time pair = problem.pair_duration(f, b);
        gain = std::max(gain, alone[static_cast<std::size_t>(f)].forward + back.work_least - back.forward - pair);
        shortest = std::min(shortest, pair);
        if (!problem.releases_early) ahead.forward = std::min(ahead.forward, pair);
      }
      ahead.work_least -= gain;
    }
    for (const int b : chunks) {
      Stage& back = stages[static_cast<std::size_t>(b)];
      back.input_gradient = std::min(back.input_gradient, shortest);
      back.weight_gradient = std::min(back.weight_gradient, shortest - back.input_gradient);
    }
  }
}

void set_way_through_chain(std::vector<Stage>& stages, const Problem& problem) {
  for (std::size_t s = 0; s < stages.size(); ++s) {
    if (!problem.stages[s].begins_chain) stages[s].forward_start = stages[s - 1].forward_end + stages[s - 1].to_next;
    stages[s].forward_end = stages[s].forward_start + stages[s].forward;
  }
  for (std::size_t s = stages.size(); s-- > 0;) {
    stages[s].input_gradient_start = problem.stages[s].ends_chain
                                         ? stages[s].forward_end
                                         : stages[s + 1].input_gradient_end + stages[s + 1].to_previous;
    stages[s].input_gradient_end = stages[s].input_gradient_start + stages[s].input_gradient;
  }
}

}  // namespace

Bound bound_of(const Problem& problem) {
  std::vector<Stage> stages(problem.stages.size());
  set_durations(stages, problem);
  if (problem.has_pairs) lower_by_pairs(stages, problem);
  set_way_through_chain(stages, problem);
  Bound bounds;
  if (problem.placement.chains() == 1) bounds = Windows(stages, problem).bounds();
  for (int q = 0; q < problem.ranks(); ++q) {
    Time load = 0;
    for (const int x : problem.stages_on[static_cast<std::size_t>(q)]) {
      load += problem.micro_batches * stages[static_cast<std::size_t>(x)].work_least;
    }
    bounds.makespan = std::max({bounds.makespan, load_bound(stages, problem, q), area_bound(stages, problem, q)});
    bounds.span = std::max(bounds.span, load);
  }
  return {bounds.makespan - problem.launch, bounds.span - problem.launch};
}

}  // namespace detail::search

LowerBounds lower_bounds(const Placement& placement, std::int64_t micro_batches, const Costs& costs,
                         const std::optional<MemoryLimit>& limit) {
  if (costs.jitter > 0) throw InputError("with jitter a run may be faster than any bound; leave the jitter out");
  const auto bound = detail::search::bound_of(detail::search::problem_of(placement, micro_batches, costs, limit));
  return {bound.makespan, bound.span};
}

}  // namespace dualpipe
