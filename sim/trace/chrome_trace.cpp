// The rules that Perfetto's JSON importer sets for a trace as a whole, and where they are kept (those for an event,
// TraceWriter keeps):
//
//   - Slices of one thread nest or are disjoint: transfers that overlap get lanes of their own (FreeLanes).
//   - tid 0, and a tid equal to its pid, mean other things: tids start at 1 and step over the pid (Tracks).
//   - Processes sort by how many slices they have (v52), which says nothing of ranks: there is but one. Its threads
//   sort by tid: lanes are numbered in the order of rows. Counters sort by name, as text: ranks are padded with zeros.
//   - An arrow's ends are at times when the slices there are open (MessageTrace).
//   - The colour is a hash of the name without its trailing number: "F 3", not "3F3"; "F' 3" in another chain.
#include "dualpipe/sim/trace/chrome_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <ostream>
#include <span>
#include <vector>

#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/trace/explained_trace.h"
#include "dualpipe/sim/trace/message_trace.h"
#include "dualpipe/sim/trace/run_context.h"

namespace dualpipe {

using detail::report::bounds_of;
using detail::report::Unit;
using detail::report::units_of;
using detail::trace::ExplainedTrace;
using detail::trace::FreeLanes;
using detail::trace::MessageTrace;
using detail::trace::numbered;
using detail::trace::RunContext;
using detail::trace::trace_pid;
using detail::trace::Tracks;

namespace {

void check_complete(const RunContext& run) {
  const auto& [program, costs, timeline, label, peaks, devices, about, explanation, has_messages] = run.run;
  if (timeline.ops.size() != program.schedule.ops.size() ||
      (has_messages && timeline.communication.size() != program.communication.size())) {
    throw InputError("a trace needs the spans of all ops and messages; simulate with Record::spans");
  }
  for (const std::size_t given : {peaks.size(), devices.size()}) {
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
      : run_(run),
        memories_(run.run.program, run.run.costs),
        messages_(run_),
        begin_(bounds_of(run.run.timeline).start),
        compute_(static_cast<std::size_t>(run.placement().ranks)) {
    check_complete(run_);
    if (run.run.explanation != nullptr) explained_.emplace(run_);
  }
  RunTrace(const RunTrace&) = delete;
  RunTrace& operator=(const RunTrace&) = delete;

  // Before all ranks.
  void write_path() const {
    if (explained_) explained_->write_path();
  }
  void write_rank(int rank) {
    if (!run_.filter.has(rank)) return;
    compute_track(rank) = run_.add_lane(rank, compute_name(rank), rank_args(rank));
    const auto units = units_of(run_.run.program, run_.run.timeline, rank);
    write_ops(rank, units);
    if (explained_) explained_->write_idle(rank);
    write_parts(rank);
    messages_.write_transfers(rank, units);
    write_counters(rank);
  }
  // After all ranks of all runs.
  void write_arrows() const {
    messages_.write_arrows(compute_);
    if (explained_) explained_->write_arrows(compute_);
  }

 private:
  [[nodiscard]] TraceTrack& compute_track(int rank) { return compute_[static_cast<std::size_t>(rank)]; }

  [[nodiscard]] std::string compute_name(int rank) const {
    const auto devices = run_.run.devices;
    return devices.empty() ? "compute" : "compute on " + devices[static_cast<std::size_t>(rank)];
  }

  [[nodiscard]] TraceArgs rank_args(int rank) const {
    TraceArgs args;
    args.add("rank", rank);
    if (!run_.run.label.empty()) args.add("run", run_.run.label);
    if (!run_.run.devices.empty()) args.add("device", run_.run.devices[static_cast<std::size_t>(rank)]);
    args.add(run_.run.about);
    const RankPeak peak = peak_of(rank);
    return args.add("peak_activations", peak.activations).add("peak_memory_bytes", peak.memory);
  }

  [[nodiscard]] RankPeak peak_of(int rank) const {
    if (!run_.run.peaks.empty()) return run_.run.peaks[static_cast<std::size_t>(rank)];
    const RankMemory memory = memories_.of(rank);
    return {memory.peak_activations, memory.peak};
  }

  // --- computation

  void write_ops(int rank, std::span<const Unit> units) {
    Time free_since = begin_;
    for (const Unit& unit : units) {
      if (run_.filter.has(unit.span)) {
        TraceArgs args = unit_args(unit).add("wait_ns", unit.span.start - free_since);
        if (explained_) explained_->add_slack(args, rank, unit);
        run_.writer.slice(compute_track(rank), "compute", unit_name(unit), unit.span, args);
      }
      free_since = unit.span.end;
    }
  }

  [[nodiscard]] std::string unit_name(const Unit& unit) const {
    return run_.unit_name(unit.ops[0], unit.is_pair() ? std::optional(unit.ops[1]) : std::nullopt);
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

  void write_parts(int rank) {
    std::vector<const PartSpan*> parts;
    for (const PartSpan& part : run_.run.timeline.parts) {
      if (run_.rank_of(part.op.stage) == rank && run_.filter.has(part.span)) parts.push_back(&part);
    }
    std::ranges::stable_sort(parts, {},
                             [](const PartSpan* part) { return std::pair(lane_of(*part), part->span.start); });
    for (std::size_t i = 0; i < parts.size();) {
      const PartLane kind = lane_of(*parts[i]);
      FreeLanes lanes;
      std::vector<TraceTrack> tracks;
      for (; i < parts.size() && lane_of(*parts[i]) == kind; ++i) {
        const auto [lane, is_first] = lanes.take(parts[i]->span);
        if (is_first) tracks.push_back(run_.add_lane(rank, numbered(name_of(kind), lane)));
        write_part(tracks[static_cast<std::size_t>(lane)], *parts[i]);
      }
    }
  }

  void write_part(TraceTrack track, const PartSpan& part) {
    TraceArgs args;
    args.add("op", to_text(part.op));
    run_.add_place(args, part.op);
    run_.writer.slice(track, "part", fmt::format("{} {}", part.name, to_text(part.op)), part.span, args);
  }

  // --- counters

  void write_counters(int rank) {
    const auto points = memories_.over_time(run_.run.timeline, rank);
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
    const std::string row_name = run_.counter_name(rank, name);
    std::optional<std::int64_t> written;
    for (std::size_t i = 0; i < points.size(); ++i) {
      const bool last_before_window = points[i].time < run_.filter.begin;
      const Time replaced_at = i + 1 < points.size() ? points[i + 1].time : std::numeric_limits<Time>::max();
      if (replaced_at <= std::max(points[i].time, run_.filter.begin) || points[i].time >= run_.filter.end) continue;
      if (written == value_of(points[i])) continue;
      written = value_of(points[i]);
      run_.writer.counter(trace_pid, row_name, key, last_before_window ? run_.filter.begin : points[i].time, *written);
    }
  }

  RunContext run_;
  RankMemories memories_;
  MessageTrace messages_;
  std::optional<ExplainedTrace> explained_;
  Time begin_;                       // of the run
  std::vector<TraceTrack> compute_;  // by rank
};

}  // namespace

void write_chrome_trace(std::ostream& out, std::span<const TracedRun> runs, const TraceFilter& filter) {
  TraceWriter writer(out);
  Tracks tracks;
  std::vector<std::unique_ptr<RunTrace>> traces;
  for (const TracedRun& run : runs) {
    const int number = runs.size() == 1 ? 0 : static_cast<int>(traces.size()) + 1;
    traces.push_back(std::make_unique<RunTrace>(RunContext{writer, tracks, run, filter, number}));
  }
  const Schedule& schedule = runs.front().program.schedule;
  writer.process(trace_pid, schedule.name.empty() ? "schedule" : schedule.name);
  for (const auto& trace : traces) trace->write_path();
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    for (const auto& trace : traces) trace->write_rank(rank);
  }
  for (const auto& trace : traces) trace->write_arrows();
  writer.finish();
}

void write_chrome_trace(std::ostream& out, const Program& program, const Costs& costs, const Timeline& timeline,
                        const TraceFilter& filter) {
  const TracedRun run{program, costs, timeline};
  write_chrome_trace(out, std::span(&run, 1), filter);
}

}  // namespace dualpipe
