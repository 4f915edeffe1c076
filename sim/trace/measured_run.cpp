#include "dualpipe/sim/trace/measured_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/flow.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/memory.h"

namespace dualpipe {
namespace {

Schedule schedule_of(const TraceRun& run, const std::string& source) {
  Schedule schedule;
  schedule.name = source;
  schedule.rank_begin = {0};
  std::vector<std::optional<int>> rank_of;
  for (std::size_t rank = 0; rank < run.ranks.size(); ++rank) {
    for (const Op op : run.ranks[rank].ops) {
      if (rank_of.size() <= op.stage) rank_of.resize(std::size_t{op.stage} + 1);
      auto& home = rank_of[op.stage];
      if (home && *home != static_cast<int>(rank)) {
        throw InputError(fmt::format("{}: stage {} runs on rank {} and on rank {}", source, op.stage, *home, rank));
      }
      home = static_cast<int>(rank);
      schedule.micro_batches = std::max(schedule.micro_batches, op.micro_batch + 1);
      schedule.ops.push_back(op);
    }
    schedule.rank_begin.push_back(schedule.ops.size());
  }
  std::vector<int> ranks;
  for (std::size_t stage = 0; stage < rank_of.size(); ++stage) {
    if (!rank_of[stage]) throw InputError(fmt::format("{}: no rank runs anything of stage {}", source, stage));
    ranks.push_back(*rank_of[stage]);
  }
  if (ranks.empty()) throw InputError(fmt::format("{}: it has no ops", source));
  schedule.placement = one_chain(ranks);
  schedule.placement.ranks = static_cast<int>(run.ranks.size());
  return schedule;
}

// Whether no op starts before its input is made.
bool agree(const Placement& placement, const TraceRun& run) {
  std::unordered_map<std::uint64_t, Time> made;
  const auto for_each_op = [&](auto visit) {
    for (const TraceRank& rank : run.ranks) {
      for (std::size_t i = 0; i < rank.ops.size(); ++i) {
        if (rank.ops[i].kind != Kind::weight_gradient) visit(rank.ops[i], rank.spans[i]);
      }
    }
  };
  for_each_op([&](Op op, Span span) { made[key_of(op)] = span.end; });
  bool agrees = true;
  for_each_op([&](Op op, Span span) {
    const auto from = producer_of(op, placement);
    if (from) agrees &= made[key_of(Op{op.micro_batch, from->stage, op.kind, false})] <= span.start;
  });
  return agrees;
}

[[noreturn]] void throw_no_order(const std::string& source) {
  throw InputError(
      fmt::format("{}: no ranks can have run their ops in this order, as each would wait for another", source));
}

[[noreturn]] void throw_no_step(std::span<const Violation> violations, const Placement& placement,
                                const std::string& source) {
  throw InputError(fmt::format("{}: what ran is no whole step: {}{}", source, to_text(violations.front(), placement),
                               violations.size() > 1 ? fmt::format(", and {} more", violations.size() - 1) : ""));
}

// As so few chains as the ops can be, by their order and by their times; or by their order alone, as clocks may be off.
Lowered lowered(const Schedule& schedule, const std::string& source,
                const std::function<bool(const Placement&)>& agrees_with_times) {
  std::optional<Lowered> by_order;
  std::vector<Violation> violations;
  for (int chains = 1; chains <= schedule.placement.stages(); ++chains) {
    if (schedule.placement.stages() % chains != 0) continue;
    Schedule divided = schedule;
    if (chains > 1) divided.placement = in_chains(schedule.placement, chains);
    auto found = validate(divided);
    if (chains == 1) violations = found;
    if (!found.empty()) continue;
    const bool agrees = agrees_with_times(divided.placement);
    Lowered candidate = lower_checked(std::move(divided));
    if (candidate.completes && agrees) return candidate;
    if (candidate.completes && !by_order) by_order = std::move(candidate);
  }
  if (by_order) return *std::move(by_order);
  if (violations.empty()) throw_no_order(source);
  throw_no_step(violations, schedule.placement, source);
}

}  // namespace

std::optional<Program> program_of(const TraceRun& run, const std::function<bool(const Placement&)>& agrees_with_times) {
  try {
    return lowered(schedule_of(run, ""), "", agrees_with_times).program;
  } catch (const InputError&) {
    return std::nullopt;
  }
}

Program program_on(const TraceRun& run, const Placement& placement, const std::string& source) {
  Schedule schedule = schedule_of(run, source);
  schedule.placement = placement;
  if (const auto violations = validate(schedule); !violations.empty()) throw_no_step(violations, placement, source);
  Lowered result = lower_checked(std::move(schedule));
  if (!result.completes) throw_no_order(source);
  return std::move(result.program);
}

MeasuredRun measured_run(const TraceRun& run, const std::string& source, std::optional<Program> program) {
  const auto agrees = [&](const Placement& placement) { return agree(placement, run); };
  MeasuredRun result{program ? *std::move(program) : lowered(schedule_of(run, source), source, agrees).program, {}, {}};
  result.program.schedule.name = source;
  for (const TraceRank& rank : run.ranks) {
    result.timeline.ops.insert(result.timeline.ops.end(), rank.spans.begin(), rank.spans.end());
    RankTimes times;
    for (const auto& unit : detail::report::units_of(rank.ops, rank.spans)) times.busy += unit.duration();
    if (!rank.spans.empty()) {
      times.first_start = rank.spans.front().start;
      times.last_end = rank.spans.back().end;
    }
    result.timeline.ranks.push_back(times);
    result.peaks.push_back(rank.peak);
  }
  if (std::ranges::all_of(result.peaks, [](const RankPeak& peak) { return peak == RankPeak{}; })) {
    Costs nothing;
    nothing.stages.resize(1);
    const auto memories = memory_of_ranks(result.program, nothing);
    std::ranges::transform(memories, result.peaks.begin(), [](const RankMemory& memory) {
      return RankPeak{memory.peak_activations, 0};
    });
  }
  return result;
}

bool add_messages(MeasuredRun& run, std::span<const MeasuredMessage> messages) {
  const Program& program = run.program;
  const Placement& placement = program.schedule.placement;
  std::map<std::pair<int, int>, std::vector<Span>> found;  // by link
  for (const MeasuredMessage& each : messages) {
    found[{each.from, each.to}].push_back({std::min(each.sent.start, each.received.end), each.received.end});
  }
  std::map<std::pair<int, int>, std::size_t> next;
  std::unordered_map<std::uint64_t, Span> received;  // by key_of() the receive; never iterated
  std::vector<Span> spans(program.communication.size());
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const Op op = program.communication[i];
    if (!is_send(op.kind)) continue;
    const Op receive = peer_of(op, placement);
    const std::pair<int, int> link{placement.rank_of[op.stage], placement.rank_of[receive.stage]};
    const std::size_t k = next[link]++;
    if (k >= found[link].size()) return false;
    spans[i] = received[key_of(receive)] = found[link][k];
  }
  for (const auto& [link, of_link] : found) {
    if (next[link] != of_link.size()) return false;
  }
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const Op op = program.communication[i];
    if (is_receive(op.kind)) spans[i] = received[key_of(op)];
  }
  run.timeline.communication = std::move(spans);
  return !messages.empty();
}

}  // namespace dualpipe
