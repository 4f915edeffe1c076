#include "dualpipe/sim/trace/steps.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <span>
#include <unordered_map>
#include <utility>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/flow.h"

namespace dualpipe::detail::trace {
namespace {

void check_ranks(std::vector<RankSteps>& ranks) {
  std::ranges::stable_sort(ranks, {}, &RankSteps::rank);
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (ranks[i].rank == static_cast<int>(i)) continue;
    if (i > 0 && ranks[i].rank == ranks[i - 1].rank) {
      throw InputError(
          fmt::format("{} and {} are both of rank {}", ranks[i - 1].source, ranks[i].source, ranks[i].rank));
    }
    throw InputError(fmt::format("{}: it is of rank {}, and there is no file of rank {}; name those of all ranks",
                                 ranks[i].source, ranks[i].rank, i));
  }
}

// From the first start to the last end on rank 0.
std::map<std::int64_t, Span> steps_of(const RankSteps& rank) {
  std::map<std::int64_t, Span> steps;
  for (const RanOp& op : rank.ops) {
    const auto [step, is_new] = steps.try_emplace(op.step, op.span);
    step->second.start = std::min(step->second.start, op.span.start);
    step->second.end = std::max(step->second.end, op.span.end);
  }
  return steps;
}

std::int64_t chosen_step(const std::vector<RankSteps>& ranks, std::optional<std::int64_t> asked,
                         std::vector<std::string>& remarks) {
  const auto steps = steps_of(ranks[0]);
  if (steps.empty()) throw InputError(fmt::format("{}: no op is in it", ranks[0].source));
  if (asked) {
    if (steps.contains(*asked)) return *asked;
    throw InputError(fmt::format("{}: there is no step {}; there are {} to {}", ranks[0].source, *asked,
                                 steps.begin()->first, steps.rbegin()->first));
  }
  std::vector<std::pair<Time, std::int64_t>> lengths;
  for (const auto& [number, span] : steps) lengths.emplace_back(span.end - span.start, number);
  std::ranges::sort(lengths);
  const std::int64_t median = lengths[(lengths.size() - 1) / 2].second;
  if (lengths.size() > 1) {
    remarks.push_back(
        fmt::format("of {} steps this is step {}, of median length; --step takes another", lengths.size(), median));
  }
  return median;
}

// In order of time. What overlaps what runs before it, by how a profiler rounds, begins when that ends.
TraceRank rank_of(const RankSteps& rank, std::int64_t step) {
  std::vector<const RanOp*> ops;
  for (const RanOp& op : rank.ops) {
    if (op.step == step) ops.push_back(&op);
  }
  std::ranges::stable_sort(ops, [](const RanOp* a, const RanOp* b) {
    return std::pair(a->span.start, a->span.end) < std::pair(b->span.start, b->span.end);
  });
  TraceRank result;
  for (const RanOp* op : ops) {
    const Time free = result.spans.empty() ? op->span.start : result.spans.back().end;
    const Time start = std::max(op->span.start, free);
    for (const Op each : op->ops) {
      result.ops.push_back(each);
      result.spans.push_back({start, std::max(start, op->span.end)});
    }
  }
  return result;
}

// Of the messages those that were sent in the step: from its first op on the sender to the one that follows its last.
std::vector<MeasuredMessage> messages_of(const std::vector<RankSteps>& ranks, const TraceRun& run, std::int64_t step,
                                         std::vector<std::string>& remarks) {
  std::vector<Span> windows;
  std::vector<std::vector<RankMessage>> all;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    const Time last = run.ranks[rank].spans.back().start;
    Span window{run.ranks[rank].spans.front().start, std::numeric_limits<Time>::max()};
    for (const RanOp& op : ranks[rank].ops) {
      if (op.step != step && op.span.start > last) window.end = std::min(window.end, op.span.start);
    }
    windows.push_back(window);
    all.push_back(ranks[rank].messages);
  }
  if (std::ranges::any_of(ranks, &RankSteps::lacks_peers)) {
    remarks.emplace_back(
        "messages do not say their peers, and are not looked at; record with record_shapes=True to know when each "
        "came");
  }
  auto messages = matched_messages(all, remarks);
  std::erase_if(messages, [&](const MeasuredMessage& each) {
    const Span& window = windows[static_cast<std::size_t>(each.from)];
    return each.sent.start < window.start || each.sent.start >= window.end;
  });
  return messages;
}

constexpr Time unknown = std::numeric_limits<Time>::min();

// By how much the clock of one rank is ahead of another's, at least.
class ClockBounds {
 public:
  ClockBounds(const ForeignRun& foreign, const Placement& placement) {
    const TraceRun& run = foreign.run;
    std::unordered_map<std::uint64_t, std::pair<int, Span>> made;
    for_each_op(run, [&](Op op, int rank, Span span) {
      if (op.kind != Kind::weight_gradient) made[key_of(op)] = {rank, span};
    });
    for_each_op(run, [&](Op op, int rank, Span span) {
      if (op.kind == Kind::weight_gradient) return;
      const auto from = producer_of(op, placement);
      if (!from || !from->is_remote) return;
      const auto producer = made.find(key_of({op.micro_batch, from->stage, op.kind, false}));
      if (producer == made.end()) return;
      add(producer->second.first, producer->second.second.end, rank, span.start);
    });
    for (const MeasuredMessage& each : foreign.messages) add(each.from, each.sent.start, each.to, each.received.end);
  }

  [[nodiscard]] bool agree() const {
    return std::ranges::all_of(least_, [&](const auto& each) {
      const auto back = least_.find({each.first.second, each.first.first});
      return back == least_.end() || each.second + back->second <= 0;
    });
  }

  // The least that must be added to the times of `to`, where nothing is added to those of `from`.
  [[nodiscard]] std::optional<Time> least(int from, int to) const {
    const auto found = least_.find({from, to});
    return found == least_.end() ? std::nullopt : std::optional(found->second);
  }

 private:
  // What happened second shows, by its clock plus its shift, no less than what happened first.
  void add(int first, Time first_time, int second, Time second_time) {
    Time& least = least_.try_emplace({first, second}, unknown).first->second;
    least = std::max(least, first_time - second_time);
  }

  template <typename Visit>
  static void for_each_op(const TraceRun& run, Visit visit) {
    for (std::size_t rank = 0; rank < run.ranks.size(); ++rank) {
      for (std::size_t i = 0; i < run.ranks[rank].ops.size(); ++i) {
        visit(run.ranks[rank].ops[i], static_cast<int>(rank), run.ranks[rank].spans[i]);
      }
    }
  }

  std::map<std::pair<int, int>, Time> least_;
};

void shift(Span& span, Time by) {
  span.start += by;
  span.end += by;
}

// By rank.
void shift(ForeignRun& run, std::span<const Time> by) {
  for (std::size_t rank = 0; rank < by.size(); ++rank) {
    for (Span& span : run.run.ranks[rank].spans) shift(span, by[rank]);
  }
  for (MeasuredMessage& each : run.messages) {
    shift(each.sent, by[static_cast<std::size_t>(each.from)]);
    shift(each.received, by[static_cast<std::size_t>(each.to)]);
  }
}

// So that the first op of all begins at 0.
void shift_to_zero(ForeignRun& run) {
  Time first = std::numeric_limits<Time>::max();
  for (const TraceRank& rank : run.run.ranks) first = std::min(first, rank.spans.front().start);
  shift(run, std::vector<Time>(run.run.ranks.size(), -first));
}

}  // namespace

ForeignRun one_step(std::vector<RankSteps> ranks, std::optional<std::int64_t> step) {
  if (ranks.empty()) throw InputError("a trace is missing");
  check_ranks(ranks);
  ForeignRun result;
  const std::int64_t chosen = chosen_step(ranks, step, result.remarks);
  for (const RankSteps& rank : ranks) {
    result.run.ranks.push_back(rank_of(rank, chosen));
    if (!result.run.ranks.back().spans.empty()) continue;
    throw InputError(fmt::format("{}: it has no op of step {}", rank.source, chosen));
  }
  result.messages = messages_of(ranks, result.run, chosen, result.remarks);
  shift_to_zero(result);
  return result;
}

bool clocks_agree(const ForeignRun& run, const Placement& placement) { return ClockBounds(run, placement).agree(); }

void align_clocks(ForeignRun& run, const Placement& placement) {
  const ClockBounds bounds(run, placement);
  auto& ranks = run.run.ranks;
  std::vector<bool> is_done(ranks.size());
  std::vector<Time> shifts(ranks.size());
  std::vector<std::size_t> queue{0};
  is_done[0] = true;
  for (std::size_t next = 0; next < queue.size(); ++next) {
    const auto from = static_cast<int>(queue[next]);
    for (std::size_t to = 0; to < ranks.size(); ++to) {
      if (is_done[to]) continue;
      const auto least = bounds.least(from, static_cast<int>(to));
      const auto least_back = bounds.least(static_cast<int>(to), from);
      if (!least || !least_back) continue;
      is_done[to] = true;
      queue.push_back(to);
      const Time most = -*least_back;
      run.clock_width = std::max(run.clock_width.value_or(0), std::max<Time>(most - *least, 0));
      shifts[to] = shifts[queue[next]] + *least + (most - *least) / 2;
    }
  }
  shift(run, shifts);
  shift_to_zero(run);
}

}  // namespace dualpipe::detail::trace
