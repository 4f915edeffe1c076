#include "dualpipe/sim/trace/explained_trace.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace dualpipe::detail::trace {

ExplainedTrace::ExplainedTrace(const RunContext& run) : run_(run), cells_(run.run.program) {}

std::string ExplainedTrace::step_name(const PathStep& step) const {
  if (step.kind == PathStep::Kind::transfer) return "transfer";
  if (step.kind == PathStep::Kind::launch) return "launch";
  return run_.unit_name(step.op, cells_.second(step.op));
}

void ExplainedTrace::write_path() const {
  constexpr std::string_view lane = "critical path";
  const TraceTrack track = run_.tracks.next();
  run_.writer.thread(track, run_.run.label.empty() ? std::string(lane) : fmt::format("{} {}", run_.run.label, lane));
  for (const PathStep& step : explanation().path) {
    if (!run_.filter.has(step.span) || !run_.filter.has(step.rank)) continue;
    TraceArgs args;
    args.add("op", cells_.text(step.op)).add("on_rank", step.rank);
    run_.writer.slice(track, "critical path", step_name(step), step.span, args);
  }
}

void ExplainedTrace::write_idle(int rank) const {
  const auto& segments = explanation().segments;
  const std::span<const IdleSegment> of_rank(std::ranges::lower_bound(segments, rank, {}, &IdleSegment::rank),
                                             std::ranges::upper_bound(segments, rank, {}, &IdleSegment::rank));
  if (of_rank.empty()) return;
  const TraceTrack track = run_.add_lane(rank, "idle");
  for (const IdleSegment& segment : of_rank) {
    if (!run_.filter.has(segment.span)) continue;
    TraceArgs args;
    args.add("cause", name(segment.cause)).add("waits_for", cells_.text(segment.op)).add("of_rank", segment.from);
    args.add("meanwhile", name(segment.readiness));
    run_.writer.slice(track, "idle", name(segment.cause), segment.span, args);
  }
}

void ExplainedTrace::add_slack(TraceArgs& args, int rank, const report::Unit& unit) const {
  const std::size_t op = run_.run.program.schedule.rank_begin[static_cast<std::size_t>(rank)] + unit.position;
  args.add("slack_ns", explanation().slack[op]);
}

// From the last nanosecond of an op to the start of the next. What takes no time has no slice that an arrow could end
// at.
void ExplainedTrace::write_arrows(std::span<const TraceTrack> compute) const {
  const auto track_of = [&](const PathStep& step) { return compute[static_cast<std::size_t>(step.rank)]; };
  const PathStep* before = nullptr;
  for (const PathStep& step : explanation().path) {
    if (step.kind != PathStep::Kind::op || step.span.start == step.span.end) continue;
    const bool is_written = run_.filter.has(step.rank) && run_.filter.has(step.span);
    if (is_written && before != nullptr) {
      run_.writer.arrow("critical path", "critical path", track_of(*before), before->span.end - 1, track_of(step),
                        step.span.start);
    }
    before = is_written ? &step : nullptr;
  }
}

}  // namespace dualpipe::detail::trace
