// One run that is being written: what the files that write its slices have in common. Private to sim/trace.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "dualpipe/sim/trace/chrome_trace.h"
#include "dualpipe/sim/trace/lanes.h"

namespace dualpipe::detail::trace {

// All that it refers to outlives it.
struct RunContext {
  TraceWriter& writer;
  Tracks& tracks;  // of all runs of the file
  const TracedRun& run;
  const TraceFilter& filter;
  int number = 0;  // of the run among those of the file, from 1; 0: it is the only one

  [[nodiscard]] const Placement& placement() const { return run.program.schedule.placement; }
  [[nodiscard]] int rank_of(int stage) const { return placement().rank_of[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] std::string rank_name(int rank) const {
    const std::size_t digits = std::max<std::size_t>(2, std::to_string(placement().ranks - 1).size());
    return fmt::format("rank {:0{}}", rank, digits);
  }
  // "rank 03 planned send to rank 04".
  [[nodiscard]] std::string row_name(int rank, std::string_view what) const {
    return fmt::format("{} {}{}{}", rank_name(rank), run.label, run.label.empty() ? "" : " ", what);
  }
  // "rank 03 #1 planned memory". Counters sort by name, in which "measured" comes before "planned".
  [[nodiscard]] std::string counter_name(int rank, std::string_view what) const {
    if (number == 0) return row_name(rank, what);
    return fmt::format("{} #{} {} {}", rank_name(rank), number, run.label, what);
  }
  // Names the next lane.
  TraceTrack add_lane(int rank, std::string_view name, const TraceArgs& args = {}) const {
    const TraceTrack track = tracks.next();
    writer.thread(track, row_name(rank, name), args);
    return track;
  }

  // "F", and of the second chain "F'". So the chains differ in colour, too: it is made of the name.
  [[nodiscard]] std::string pass_name(Op op) const {
    const auto chain = static_cast<std::size_t>(placement().chain_of(op.stage));
    return std::string(name(op.kind)) + std::string(chain, '\'');
  }

  // "F 3", and of a pair "F&B' 3 7".
  [[nodiscard]] std::string unit_name(Op first, std::optional<Op> second) const {
    if (!second) return fmt::format("{} {}", pass_name(first), first.micro_batch);
    return fmt::format("{}&{} {} {}", pass_name(first), pass_name(*second), first.micro_batch, second->micro_batch);
  }

  // Stage, chain and micro-batch of an op.
  void add_place(TraceArgs& args, Op op) const {
    args.add("stage", op.stage).add("chain", placement().chain_of(op.stage));
    if (has_micro_batch(op.kind)) args.add("micro_batch", op.micro_batch);
  }
};

}  // namespace dualpipe::detail::trace
