// The rules that Perfetto's JSON importer sets for a trace as a whole, and where they are kept (those for an event,
// TraceWriter keeps):
//
//   - Slices of one thread nest or are disjoint: transfers that overlap get lanes of their own (FreeLanes).
//   - tid 0, and a tid equal to its pid, mean other things: tids start at 1 and step over the pid (tid_of_lane).
//   - Processes sort by how many slices they have, those with as many by name, as text: ranks are padded with zeros.
//   Threads sort by tid: lanes are numbered in order.
//   - An arrow's ends are at times when the slices there are open (MessageTrace).
//   - The colour is a hash of the name without its trailing number: "F 3", not "3F3".
#include "dualpipe/sim/trace/chrome_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <ostream>
#include <span>
#include <vector>

#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/trace/message_trace.h"
#include "dualpipe/sim/trace/run_context.h"

namespace dualpipe {

using detail::report::bounds_of;
using detail::report::Unit;
using detail::report::units_of;
using detail::trace::FreeLanes;
using detail::trace::MessageTrace;
using detail::trace::numbered;
using detail::trace::RunContext;

namespace {

void check_complete(const RunContext& run) {
  if (run.timeline.ops.size() != run.program.schedule.ops.size() ||
      run.timeline.communication.size() != run.program.communication.size()) {
    throw InputError("a trace needs the spans of all ops and messages; simulate with Record::spans");
  }
  for (const std::size_t given : {run.group.peaks.size(), run.group.devices.size()}) {
    if (given == 0 || given == static_cast<std::size_t>(run.placement().ranks)) continue;
    throw InputError(fmt::format("peaks or devices are given for {} ranks, but the program has {}; give one for each",
                                 given, run.placement().ranks));
  }
}

// Lanes of parts, in order: a compute lane for each stage, then the two that the rank has once.
struct PartLane {
  PartSpan::Lane kind = PartSpan::Lane::compute;
  int stage = 0;

  friend auto operator<=>(const PartLane&, const PartLane&) = default;
};
PartLane lane_of(const PartSpan& part) { return {part.lane, part.lane == PartSpan::Lane::compute ? part.op.stage : 0}; }
std::string name_of(PartLane lane) {
  switch (lane.kind) {
    case PartSpan::Lane::exchange:
      return "exchange";
    case PartSpan::Lane::copy:
      return "copy";
    default:
      return fmt::format("compute, stage {}", lane.stage);
  }
}

class RunTrace {
 public:
  explicit RunTrace(const RunContext& run)
      : run_(run), memories_(run.program, run.costs), messages_(run), begin_(bounds_of(run.timeline).start) {}

  void write() {
    for (int rank = 0; rank < run_.placement().ranks; ++rank) {
      if (run_.filter.has(rank)) write_rank(rank);
    }
    messages_.write_arrows();
  }

 private:
  void write_rank(int rank) {
    run_.writer.process(run_.pid(rank), process_name(rank), rank, rank_args(rank));
    run_.writer.thread(run_.compute_track(rank), "compute");
    const auto units = units_of(run_.program, run_.timeline, rank);
    write_ops(rank, units);
    const int lanes = write_parts(rank, 1);
    messages_.write_transfers(rank, units, lanes);
    write_counters(rank);
  }

  [[nodiscard]] std::string process_name(int rank) const {
    std::string text = run_.rank_name(rank);
    if (!run_.group.label.empty()) text.append(" ").append(run_.group.label);
    if (!run_.group.devices.empty()) text.append(" on ").append(run_.group.devices[static_cast<std::size_t>(rank)]);
    return text;
  }

  [[nodiscard]] TraceArgs rank_args(int rank) const {
    TraceArgs args;
    args.add("rank", rank);
    if (!run_.group.label.empty()) args.add("run", run_.group.label);
    if (!run_.group.devices.empty()) args.add("device", run_.group.devices[static_cast<std::size_t>(rank)]);
    args.add(run_.group.about);
    const RankPeak peak = peak_of(rank);
    return args.add("peak_activations", peak.activations).add("peak_memory_bytes", peak.memory);
  }

  [[nodiscard]] RankPeak peak_of(int rank) const {
    if (!run_.group.peaks.empty()) return run_.group.peaks[static_cast<std::size_t>(rank)];
    const RankMemory memory = memories_.of(rank);
    return {memory.peak_activations, memory.peak};
  }

  // --- computation

  void write_ops(int rank, std::span<const Unit> units) {
    Time free_since = begin_;
    for (const Unit& unit : units) {
      if (run_.filter.has(unit.span)) {
        run_.writer.slice(run_.compute_track(rank), "compute", unit_name(unit), unit.span,
                          unit_args(unit).add("wait_ns", unit.span.start - free_since));
      }
      free_since = unit.span.end;
    }
  }

  [[nodiscard]] static std::string unit_name(const Unit& unit) {
    const Op first = unit.ops[0];
    if (!unit.is_pair()) return fmt::format("{} {}", name(first.kind), first.micro_batch);
    const Op second = unit.ops[1];
    return fmt::format("{}&{} {} {}", name(first.kind), name(second.kind), first.micro_batch, second.micro_batch);
  }

  [[nodiscard]] TraceArgs unit_args(const Unit& unit) const {
    TraceArgs args;
    args.add("op", cell_text(unit.ops));
    if (!unit.is_pair()) {
      run_.add_place(args, unit.ops[0]);
      return args;
    }
    for (const Op op : unit.ops) {
      TraceArgs half;
      run_.add_place(half, op);
      args.add(op.kind == Kind::forward ? "forward" : "backward", half);
    }
    return args;
  }

  // --- parts

  // Returns the first lane behind theirs.
  int write_parts(int rank, int first_lane) {
    std::vector<const PartSpan*> parts;
    for (const PartSpan& part : run_.timeline.parts) {
      if (run_.rank_of(part.op.stage) == rank && run_.filter.has(part.span)) parts.push_back(&part);
    }
    std::ranges::stable_sort(parts, {},
                             [](const PartSpan* part) { return std::pair(lane_of(*part), part->span.start); });
    for (std::size_t i = 0; i < parts.size();) {
      const PartLane kind = lane_of(*parts[i]);
      FreeLanes lanes;
      for (; i < parts.size() && lane_of(*parts[i]) == kind; ++i) {
        const auto [lane, is_first] = lanes.take(parts[i]->span);
        const TraceTrack track = run_.track(rank, first_lane + lane);
        if (is_first) run_.writer.thread(track, numbered(name_of(kind), lane));
        write_part(track, *parts[i]);
      }
      first_lane += lanes.count();
    }
    return first_lane;
  }

  void write_part(TraceTrack track, const PartSpan& part) {
    TraceArgs args;
    args.add("op", to_text(part.op));
    run_.add_place(args, part.op);
    run_.writer.slice(track, "part", fmt::format("{} {}", part.name, to_text(part.op)), part.span, args);
  }

  // --- counters

  void write_counters(int rank) {
    const auto points = memories_.over_time(run_.timeline, rank);
    const auto activations = [](const MemoryPoint& point) { return std::int64_t{point.activations}; };
    const auto bytes = [](const MemoryPoint& point) { return point.bytes; };
    write_counter(rank, "activations", "live", points, activations);
    if (std::any_of(points.begin(), points.end(), [](const MemoryPoint& point) { return point.bytes != 0; })) {
      write_counter(rank, "memory", "bytes", points, bytes);
    }
  }

  // On change: of points at one time the last counts. What holds at the window's begin is written there.
  template <typename Value>
  void write_counter(int rank, std::string_view name, std::string_view key, std::span<const MemoryPoint> points,
                     Value value_of) {
    std::optional<std::int64_t> written;
    for (std::size_t i = 0; i < points.size(); ++i) {
      const bool last_before_window = points[i].time < run_.filter.begin;
      const Time replaced_at = i + 1 < points.size() ? points[i + 1].time : std::numeric_limits<Time>::max();
      if (replaced_at <= std::max(points[i].time, run_.filter.begin) || points[i].time >= run_.filter.end) continue;
      if (written == value_of(points[i])) continue;
      written = value_of(points[i]);
      run_.writer.counter(run_.pid(rank), name, key, last_before_window ? run_.filter.begin : points[i].time, *written);
    }
  }

  const RunContext& run_;
  RankMemories memories_;
  MessageTrace messages_;
  Time begin_;  // of the run
};

}  // namespace

void write_run(TraceWriter& writer, const Program& program, const Costs& costs, const Timeline& timeline,
               const TraceFilter& filter, const TraceGroup& group) {
  const RunContext run{writer, program, costs, timeline, filter, group};
  check_complete(run);
  RunTrace(run).write();
}

void write_chrome_trace(std::ostream& out, const Program& program, const Costs& costs, const Timeline& timeline,
                        const TraceFilter& filter) {
  TraceWriter writer(out);
  write_run(writer, program, costs, timeline, filter);
  writer.finish();
}

}  // namespace dualpipe
