#include "dualpipe/exec/train/calibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <unordered_map>
#include <utility>

#include "dualpipe/exec/train/probe.h"
#include "dualpipe/sim/report/percentile.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/flow.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {

using detail::report::percentile;
using detail::train::LinkProbe;

namespace {

using Samples = std::vector<std::int64_t>;  // times or bytes
using Figure = std::optional<std::int64_t>;

Figure median(Samples samples) {
  if (samples.empty()) return std::nullopt;
  return detail::report::median(std::move(samples));
}

// What a part is measured at: ops that ran by themselves, and pairs with its forward, or with its backward.
enum Unit : std::size_t { unit_f, unit_b, unit_i, unit_w, unit_pair, unit_pair_back, units };
using UnitSamples = std::array<Samples, units>;
using UnitFigures = std::array<Figure, units>;  // their medians; nothing where none ran

std::size_t unit_of(std::span<const Op> ops) {
  return ops.size() == 2 ? unit_pair : static_cast<std::size_t>(ops[0].kind);  // the passes come first, in this order
}
static_assert(static_cast<std::size_t>(Kind::forward) == unit_f && static_cast<std::size_t>(Kind::backward) == unit_b);
static_assert(static_cast<std::size_t>(Kind::input_gradient) == unit_i);
static_assert(static_cast<std::size_t>(Kind::weight_gradient) == unit_w);

UnitFigures medians(const UnitSamples& samples) {
  UnitFigures figures;
  std::ranges::transform(samples, figures.begin(), median);
  return figures;
}

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
std::vector<UnitFigures> times_of(std::span<const MeasuredSteps> runs, const Placement& placement) {
  std::vector<UnitSamples> samples(parts_of(placement));
  for (const MeasuredSteps& run : runs) {
    visit_run(run, [&](const RankRecord& record, std::span<const Op> unit, std::size_t position) {
      const Time time = record.ops[position].end - record.ops[position].start;
      samples[part_of(placement, unit[0].stage)][unit_of(unit)].push_back(time);
      if (unit.size() == 2) samples[part_of(placement, unit[1].stage)][unit_pair_back].push_back(time);
    });
  }
  std::vector<UnitFigures> times(samples.size());
  std::ranges::transform(samples, times.begin(), medians);
  return times;
}

// What a part never ran by itself is the median of the other parts'.
void fill_in(std::vector<UnitFigures>& parts, Unit unit) {
  Samples measured;
  for (const UnitFigures& part : parts) {
    if (part[unit]) measured.push_back(*part[unit]);
  }
  const Figure other = median(std::move(measured));
  for (UnitFigures& part : parts) {
    if (!part[unit]) part[unit] = other;
  }
}

// Where I and W are missing B is split, in the proportion of the parts that have them, or in two.
void split_backwards(std::vector<UnitFigures>& parts) {
  const std::vector<UnitFigures> measured = parts;
  for (UnitFigures& part : parts) {
    if ((part[unit_i] && part[unit_w]) || !part[unit_b]) continue;
    const Time full = *part[unit_b];
    Samples splits;
    for (const UnitFigures& other : measured) {
      const auto input = static_cast<double>(other[unit_i].value_or(0));
      const auto weight = static_cast<double>(other[unit_w].value_or(0));
      if (input + weight > 0) splits.push_back(static_cast<Time>(static_cast<double>(full) * input / (input + weight)));
    }
    part[unit_i] = median(std::move(splits)).value_or(full / 2);
    part[unit_w] = full - *part[unit_i];
  }
}

// All passes of all parts, as far as anything is known of them.
void complete(std::vector<UnitFigures>& parts) {
  for (UnitFigures& part : parts) {
    if (!part[unit_b] && part[unit_i] && part[unit_w]) part[unit_b] = *part[unit_i] + *part[unit_w];
  }
  for (const Unit unit : {unit_f, unit_b}) fill_in(parts, unit);
  for (UnitFigures& part : parts) {  // what no part runs by itself: a pair is a third F and two thirds B
    if (!part[unit_f] && part[unit_pair]) part[unit_f] = *part[unit_pair] / 3;
    if (!part[unit_b] && part[unit_pair_back]) part[unit_b] = *part[unit_pair_back] - *part[unit_pair_back] / 3;
  }
  split_backwards(parts);
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
  UnitFigures workspace;
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
    std::vector<UnitSamples> samples(memory_.size());
    visit_memory([&](std::span<const Op> unit, std::size_t part, const OpMemory& memory) {
      Bytes held = memory.before;
      if (unit[0].kind == Kind::forward) held += memory_[part].activation.value_or(0) - input(part);
      const Bytes workspace = memory.peak - held;
      samples[part][unit_of(unit)].push_back(unit.size() == 2 ? workspace : std::max<Bytes>(0, workspace));
    });
    for (std::size_t i = 0; i < memory_.size(); ++i) memory_[i].workspace = medians(samples[i]);
  }

  // B is not more than I and then W.
  static void estimate_backward(PartMemory& part) {
    Figure& backward = part.workspace[unit_b];
    if (backward) return;
    const Bytes input = part.workspace[unit_i].value_or(0);
    const Bytes weight = part.workspace[unit_w].value_or(0);
    const Bytes left = part.weight_stash.value_or(0) - part.activation.value_or(0);
    backward = std::max<Bytes>({0, input, left + weight});
  }

  std::span<const MeasuredSteps> runs_;
  const Placement& placement_;
  std::vector<PartMemory> memory_;  // by part
};

StageCosts costs_of(const UnitFigures& times, const PartMemory& memory) {
  StageCosts costs;
  costs.forward = times[unit_f].value_or(0);
  costs.backward = times[unit_b].value_or(0);
  costs.input_gradient = times[unit_i].value_or(0);
  costs.weight_gradient = times[unit_w].value_or(0);
  costs.overlapped = times[unit_pair];
  costs.message = memory.message;
  costs.activation = std::max<Bytes>(0, memory.activation.value_or(0));
  costs.weight_stash = std::max<Bytes>(0, memory.weight_stash.value_or(0));
  costs.forward_workspace = memory.workspace[unit_f].value_or(0);
  costs.backward_workspace = memory.workspace[unit_b].value_or(0);
  costs.input_gradient_workspace = memory.workspace[unit_i].value_or(0);
  costs.weight_gradient_workspace = memory.workspace[unit_w].value_or(0);
  costs.overlapped_workspace = memory.workspace[unit_pair];
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
  std::vector<UnitFigures> times = times_of(runs, placement);
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

double bandwidth_of(std::span<const MessageTimes> sizes) {
  const auto [least, most] = std::ranges::minmax_element(sizes, {}, &MessageTimes::bytes);
  if (least == sizes.end() || least->times.empty() || most->times.empty()) return 0;
  if (percentile(least->times, 75) >= percentile(most->times, 25)) return 0;

  // The slope of the line through the medians, in nanoseconds per byte.
  double count = 0, mean_bytes = 0, mean_time = 0;
  for (const MessageTimes& size : sizes) {
    if (size.times.empty()) continue;
    ++count;
    mean_bytes += static_cast<double>(size.bytes);
    mean_time += static_cast<double>(*median(size.times));
  }
  mean_bytes /= count;
  mean_time /= count;
  double products = 0, squares = 0;
  for (const MessageTimes& size : sizes) {
    if (size.times.empty()) continue;
    const double bytes = static_cast<double>(size.bytes) - mean_bytes;
    products += bytes * (static_cast<double>(*median(size.times)) - mean_time);
    squares += bytes * bytes;
  }
  return products > 0 ? 1e9 * squares / products : 0;
}

}  // namespace dualpipe
