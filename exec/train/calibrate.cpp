#include "dualpipe/exec/train/calibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <unordered_map>
#include <utility>

#include "dualpipe/exec/train/probe.h"
#include "dualpipe/sim/explain/measured_passes.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/flow.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {

using detail::explain::complete;
using detail::explain::durations_of;
using detail::explain::Figure;
using detail::explain::median;
using detail::explain::medians;
using detail::explain::PassFigures;
using detail::explain::PassSamples;
using detail::explain::Samples;
using detail::train::LinkProbe;

namespace {

// Calls `visit(record, unit, position)` with each op or pair of a rank, and its position in the rank.
template <typename Visit>
void visit_rank(const Program& program, int rank, const RankRecord& record, Visit visit) {
  const auto ops = program.schedule.rank(rank);
  std::size_t size = 1;
  for (std::size_t i = 0; i < ops.size(); i += size) {
    size = unit_size(ops.subspan(i));
    visit(record, ops.subspan(i, size), i);
  }
}

template <typename Visit>
void visit_run(const MeasuredSteps& run, Visit visit) {
  for (const RankRecords& step : run.steps) {
    for (int rank = 0; rank < run.program.schedule.ranks(); ++rank) {
      visit_rank(run.program, rank, step[static_cast<std::size_t>(rank)], visit);
    }
  }
}

// The parts of the model are the stages of a chain; those at the same place of all chains are the same part.
std::size_t part_of(const Placement& placement, int stage) {
  return static_cast<std::size_t>(stage - placement.chain_begin[static_cast<std::size_t>(placement.chain_of(stage))]);
}

std::size_t parts_of(const Placement& placement) {
  std::size_t last = 0;
  for (int stage = 0; stage < placement.stages(); ++stage) last = std::max(last, part_of(placement, stage));
  return last + 1;
}

// Whole steps of this program; not of another one, or of a run that failed.
void check_recorded(const MeasuredSteps& run) {
  const Schedule& schedule = run.program.schedule;
  const auto is_whole = [&](const RankRecords& step) {
    if (step.size() != static_cast<std::size_t>(schedule.ranks())) return false;
    for (int rank = 0; rank < schedule.ranks(); ++rank) {
      const RankRecord& record = step[static_cast<std::size_t>(rank)];
      const std::size_t ops = schedule.rank(rank).size();
      if (record.ops.size() != ops || record.waited.size() != ops) return false;
      if (!record.memory.empty() && record.memory.size() != ops) return false;
    }
    return true;
  };
  if (std::ranges::all_of(run.steps, is_whole)) return;
  throw InputError(
      fmt::format("a step has not been recorded whole, or was of another program than {}; give steps of it "
                  "that ended",
                  detail::schedule::quote(schedule.name)));
}

// --- durations

// What the ops of each part took.
std::vector<PassFigures> times_of(std::span<const MeasuredSteps> runs, const Placement& placement) {
  std::vector<PassSamples> samples(parts_of(placement));
  for (const MeasuredSteps& run : runs) {
    visit_run(run, [&](const RankRecord& record, std::span<const Op> unit, std::size_t position) {
      const Time time = record.ops[position].end - record.ops[position].start;
      PassSamples& first = samples[part_of(placement, unit[0].stage)];
      (unit.size() == 2 ? first.pair : first.of(unit[0].kind)).push_back(time);
      if (unit.size() == 2) samples[part_of(placement, unit[1].stage)].pair_back.push_back(time);
    });
  }
  std::vector<PassFigures> times(samples.size());
  std::ranges::transform(samples, times.begin(), medians);
  return times;
}

// --- communication, and what lies between ops

Time launch_of(std::span<const MeasuredSteps> runs) {
  Samples gaps;
  for (const MeasuredSteps& run : runs) {
    visit_run(run, [&](const RankRecord& record, std::span<const Op>, std::size_t position) {
      if (position == 0) return;
      const Time gap = record.ops[position].start - record.ops[position - 1].end;
      gaps.push_back(std::max<Time>(0, gap - record.waited[position]));
    });
  }
  return median(std::move(gaps)).value_or(0);
}

class Messages {
 public:
  explicit Messages(const MeasuredSteps& run) : run_(run), placement_(run.program.schedule.placement) {}

  [[nodiscard]] std::vector<AwaitedMessage> awaited(Time launch) const {
    std::vector<AwaitedMessage> all;
    for (const RankRecords& step : run_.steps) {
      const TimesMade made = times_made(step);
      for (int rank = 0; rank < placement_.ranks; ++rank) {
        visit_rank(run_.program, rank, step[static_cast<std::size_t>(rank)],
                   [&](const RankRecord& record, std::span<const Op> unit, std::size_t position) {
                     const auto last = last_input(record, unit, position, made);
                     if (last && last->time <= record.waited[position] + launch) all.push_back(*last);
                   });
      }
    }
    return all;
  }

 private:
  using TimesMade = std::unordered_map<std::uint64_t, Time>;  // when an op ended that makes a message; never iterated

  [[nodiscard]] TimesMade times_made(const RankRecords& step) const {
    TimesMade made;
    for (int rank = 0; rank < placement_.ranks; ++rank) {
      const auto ops = run_.program.schedule.rank(rank);
      for (std::size_t i = 0; i < ops.size(); ++i) {
        if (ops[i].kind == Kind::weight_gradient) continue;
        const Time end = step[static_cast<std::size_t>(rank)].ops[i].end;
        made[key_of(ops[i])] = end;
      }
    }
    return made;
  }

  // A pair starts when the later of its inputs is there.
  [[nodiscard]] std::optional<AwaitedMessage> last_input(const RankRecord& record, std::span<const Op> unit,
                                                         std::size_t position, const TimesMade& made) const {
    std::optional<AwaitedMessage> last;
    for (const Op op : unit) {
      const auto sender = producer_of(op, placement_);
      if (!sender || !sender->is_remote) continue;
      const Time made_at = made.at(key_of({op.micro_batch, sender->stage, op.kind, false}));
      const Time time = record.ops[position].start - made_at;
      if (!last || time < last->time) last = AwaitedMessage{sender->stage, is_forward(op.kind), time};
    }
    return last;
  }

  const MeasuredSteps& run_;
  const Placement& placement_;
};

// What is left of the times of messages when the bytes have gone.
Time latency_of(std::span<const MeasuredSteps> runs, const ModelCosts& costs) {
  const Placement& placement = runs[0].program.schedule.placement;
  Samples samples;
  for (const MeasuredSteps& run : runs) {
    for (const AwaitedMessage& message : Messages(run).awaited(costs.launch)) {
      const auto sender = static_cast<std::uint16_t>(message.sender);
      const Op send{0, sender, message.forward ? Kind::send_forward : Kind::send_backward, false};
      const double bytes =
          static_cast<double>(costs.parts[part_of(placement, output_stage_of(send, placement))].message);
      const double transfer = costs.bandwidth == 0 ? 0 : bytes * 1e9 / costs.bandwidth;
      samples.push_back(std::max<Time>(0, message.time - std::llround(transfer)));
    }
  }
  return median(std::move(samples)).value_or(0);
}

// --- memory

// How memory.h in sim/simulate sees a stage that is this part.
struct PartMemory {
  Bytes message = 0;    // its output
  Figure activation;    // M_B
  Figure weight_stash;  // M_W
  PassFigures workspace;
};

class MemoryCalibration {
 public:
  MemoryCalibration(std::span<const MeasuredSteps> runs, const Placement& placement)
      : runs_(runs), placement_(placement), memory_(parts_of(placement)) {
    measure_messages();
    measure_what_ops_leave();
    measure_workspaces();
    for (PartMemory& part : memory_) estimate_backward(part);
  }

  [[nodiscard]] const PartMemory& of(std::size_t part) const { return memory_[part]; }

 private:
  // Calls `visit(unit, part, memory)`, of a pair with the part of its forward.
  template <typename Visit>
  void visit_memory(Visit visit) const {
    for (const MeasuredSteps& run : runs_) {
      visit_run(run, [&](const RankRecord& record, std::span<const Op> unit, std::size_t position) {
        if (!record.memory.empty()) visit(unit, part_of(placement_, unit[0].stage), record.memory[position]);
      });
    }
  }

  // What goes into a part from the one before it, and so the gradient that goes back; 0 in the first.
  [[nodiscard]] Bytes input(std::size_t part) const { return part == 0 ? 0 : memory_[part - 1].message; }

  void measure_messages() {
    std::vector<Samples> outputs(memory_.size());
    visit_memory([&](std::span<const Op> unit, std::size_t part, const OpMemory& memory) {
      if (unit[0].kind == Kind::forward && part + 1 < memory_.size()) outputs[part].push_back(memory.output);
    });
    for (std::size_t i = 0; i < outputs.size(); ++i) memory_[i].message = median(std::move(outputs[i])).value_or(0);
  }

  // Of ops by themselves: what came in and what goes out is the neighbours'.
  void measure_what_ops_leave() {
    std::vector<Samples> activations(memory_.size());
    std::vector<Samples> stashes(memory_.size());
    visit_memory([&](std::span<const Op> unit, std::size_t part, const OpMemory& memory) {
      if (unit.size() == 2) return;
      if (unit[0].kind == Kind::forward) {
        activations[part].push_back((memory.after - memory.output) - (memory.before - input(part)));
      } else if (unit[0].kind == Kind::backward) {
        activations[part].push_back((memory.before - memory_[part].message) - (memory.after - input(part)));
      } else if (unit[0].kind == Kind::weight_gradient) {
        stashes[part].push_back(memory.before - memory.after);
      }
    });
    for (std::size_t i = 0; i < memory_.size(); ++i) {
      memory_[i].activation = median(std::move(activations[i]));
      memory_[i].weight_stash = median(std::move(stashes[i]));
      if (!memory_[i].weight_stash) memory_[i].weight_stash = memory_[i].activation;
    }
  }

  void measure_workspaces() {
    std::vector<PassSamples> samples(memory_.size());
    visit_memory([&](std::span<const Op> unit, std::size_t part, const OpMemory& memory) {
      Bytes held = memory.before;
      if (unit[0].kind == Kind::forward) held += memory_[part].activation.value_or(0) - input(part);
      const Bytes workspace = memory.peak - held;
      if (unit.size() == 2) {
        samples[part].pair.push_back(workspace);
      } else {
        samples[part].of(unit[0].kind).push_back(std::max<Bytes>(0, workspace));
      }
    });
    for (std::size_t i = 0; i < memory_.size(); ++i) memory_[i].workspace = medians(samples[i]);
  }

  // B is not more than I and then W.
  static void estimate_backward(PartMemory& part) {
    Figure& backward = part.workspace.backward;
    if (backward) return;
    const Bytes input = part.workspace.input_gradient.value_or(0);
    const Bytes weight = part.workspace.weight_gradient.value_or(0);
    const Bytes left = part.weight_stash.value_or(0) - part.activation.value_or(0);
    backward = std::max<Bytes>({0, input, left + weight});
  }

  std::span<const MeasuredSteps> runs_;
  const Placement& placement_;
  std::vector<PartMemory> memory_;  // by part
};

StageCosts costs_of(const PassFigures& times, const PartMemory& memory) {
  StageCosts costs = durations_of(times);
  costs.message = memory.message;
  costs.activation = std::max<Bytes>(0, memory.activation.value_or(0));
  costs.weight_stash = std::max<Bytes>(0, memory.weight_stash.value_or(0));
  costs.forward_workspace = memory.workspace.forward.value_or(0);
  costs.backward_workspace = memory.workspace.backward.value_or(0);
  costs.input_gradient_workspace = memory.workspace.input_gradient.value_or(0);
  costs.weight_gradient_workspace = memory.workspace.weight_gradient.value_or(0);
  costs.overlapped_workspace = memory.workspace.pair;
  return costs;
}

}  // namespace

ModelCosts calibrate(std::span<const MeasuredSteps> runs, std::span<const StageBytes> stages, double bandwidth) {
  if (std::ranges::all_of(runs, [](const MeasuredSteps& run) { return run.steps.empty(); })) {
    throw InputError("there is no step to calibrate costs from; train at least one");
  }
  for (const MeasuredSteps& run : runs) check_recorded(run);
  const Placement& placement = runs[0].program.schedule.placement;
  if (stages.size() != placement.rank_of.size()) {
    throw InputError(fmt::format("the bytes of {} stages are given, but the program has {}", stages.size(),
                                 placement.rank_of.size()));
  }
  std::vector<PassFigures> times = times_of(runs, placement);
  complete(times);
  const MemoryCalibration memory(runs, placement);

  ModelCosts costs;
  for (std::size_t part = 0; part < times.size(); ++part) costs.parts.push_back(costs_of(times[part], memory.of(part)));
  for (std::size_t stage = 0; stage < stages.size(); ++stage) {
    StageCosts& part = costs.parts[part_of(placement, static_cast<int>(stage))];
    part.parameters = stages[stage].parameters;
    part.gradients = stages[stage].gradients;
    part.optimizer = stages[stage].optimizer;
  }
  costs.model = bandwidth == 0 ? CommunicationModel::latency : CommunicationModel::links;
  costs.bandwidth = bandwidth;
  costs.launch = launch_of(runs);
  costs.latency = latency_of(runs, costs);
  return costs;
}

ModelCosts calibrate(const Program& program, const TrainResult& result) {
  std::vector<MeasuredSteps> runs{{program, result.warm_up.empty() ? result.measured : result.warm_up}};
  if (!result.warm_up_apart.empty()) runs.push_back({result.apart, result.warm_up_apart});
  double bandwidth = 0;
  for (const RankRecords& records : result.probe) {
    bandwidth = LinkProbe(program.schedule.ranks()).bandwidth(records);
  }
  return calibrate(runs, result.stages, bandwidth);
}

std::vector<AwaitedMessage> awaited_messages(const MeasuredSteps& run) {
  check_recorded(run);
  return Messages(run).awaited(launch_of({&run, 1}));
}

}  // namespace dualpipe
