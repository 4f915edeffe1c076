// One run that is being written: what the files that write its slices have in common. Private to sim/trace.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <string>

#include "dualpipe/sim/trace/chrome_trace.h"
#include "dualpipe/sim/trace/lanes.h"

namespace dualpipe::detail::trace {

// All that it refers to outlives it.
struct RunContext {
  TraceWriter& writer;
  const Program& program;
  const Costs& costs;
  const Timeline& timeline;
  const TraceFilter& filter;
  const TraceGroup& group;

  [[nodiscard]] const Placement& placement() const { return program.schedule.placement; }
  [[nodiscard]] int rank_of(int stage) const { return placement().rank_of[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] int pid(int rank) const { return group.first_pid + rank; }
  [[nodiscard]] TraceTrack track(int rank, int lane) const { return {pid(rank), tid_of_lane(lane, pid(rank))}; }
  [[nodiscard]] TraceTrack compute_track(int rank) const { return track(rank, 0); }
  [[nodiscard]] std::string rank_name(int rank) const {
    const std::size_t digits = std::max<std::size_t>(2, std::to_string(placement().ranks - 1).size());
    return fmt::format("rank {:0{}}", rank, digits);
  }

  // Stage, chain and micro-batch of an op.
  void add_place(TraceArgs& args, Op op) const {
    args.add("stage", op.stage).add("chain", placement().chain_of(op.stage));
    if (has_micro_batch(op.kind)) args.add("micro_batch", op.micro_batch);
  }
};

}  // namespace dualpipe::detail::trace
