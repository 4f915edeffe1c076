#include "dualpipe/exec/train/calibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <optional>
#include <unordered_map>
#include <utility>

#include "dualpipe/exec/train/probe.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/flow.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {

using detail::train::LinkProbe;

namespace {

using Samples = std::vector<std::int64_t>;  // times or bytes
using Figure = std::optional<std::int64_t>;

constexpr std::array passes{Kind::forward, Kind::backward, Kind::input_gradient, Kind::weight_gradient};

// The sample below which `share` of them lie.
Figure quantile(Samples samples, double share) {
  if (samples.empty()) return std::nullopt;
  const auto at = samples.begin() + static_cast<std::ptrdiff_t>(share * static_cast<double>(samples.size() - 1));
  std::ranges::nth_element(samples, at);
  return *at;
}

Figure median(Samples samples) { return quantile(std::move(samples), 0.5); }

Time duration(const Span& span) { return span.end - span.start; }

// A figure for each pass: F, B, I, W; nothing where a stage never ran it by itself.
template <typename Value>
class ByPass {
 public:
  [[nodiscard]] Value& of(Kind pass) { return values_[static_cast<std::size_t>(pass)]; }
  [[nodiscard]] const Value& of(Kind pass) const { return values_[static_cast<std::size_t>(pass)]; }

 private:
  std::array<Value, passes.size()> values_;
};

// Calls `visit(rank, record, unit, position)` with each op or pair of a rank, and its position in the rank.
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

// What one stage's ops took.
struct StageTimes {
  ByPass<Figure> pass;
  Figure overlapped;        // pairs with its forward
  Figure pair_of_backward;  // pairs with its backward
};

std::vector<StageTimes> times_of(std::span<const MeasuredSteps> runs, std::size_t stages) {
  std::vector<ByPass<Samples>> alone(stages);
  std::vector<Samples> ahead(stages);
  std::vector<Samples> back(stages);
  for (const MeasuredSteps& run : runs) {
    visit_run(run, [&](const RankRecord& record, std::span<const Op> unit, std::size_t position) {
      const Time time = duration(record.ops[position]);
      if (unit.size() == 2) {
        ahead[unit[0].stage].push_back(time);
        back[unit[1].stage].push_back(time);
      } else {
        alone[unit[0].stage].of(unit[0].kind).push_back(time);
      }
    });
  }
  std::vector<StageTimes> times(stages);
  for (std::size_t stage = 0; stage < stages; ++stage) {
    for (const Kind pass : passes) times[stage].pass.of(pass) = median(std::move(alone[stage].of(pass)));
    times[stage].overlapped = median(std::move(ahead[stage]));
    times[stage].pair_of_backward = median(std::move(back[stage]));
  }
  return times;
}

void add_halves(StageTimes& stage) {
  auto& full = stage.pass.of(Kind::backward);
  const auto& input = stage.pass.of(Kind::input_gradient);
  const auto& weight = stage.pass.of(Kind::weight_gradient);
  if (!full && input && weight) full = *input + *weight;
}

// Fills in a figure of a stage, `get(stage)`, where it is missing, from the stages that `stands_in` allows.
template <typename Stage, typename Get, typename StandsIn>
void fill_in(std::vector<Stage>& stages, Get get, StandsIn stands_in) {
  std::vector<Figure> measured;
  for (Stage& stage : stages) measured.push_back(get(stage));
  for (std::size_t stage = 0; stage < stages.size(); ++stage) {
    if (measured[stage]) continue;
    Samples others;
    for (std::size_t other = 0; other < stages.size(); ++other) {
      if (stands_in(stage, other) && measured[other]) others.push_back(*measured[other]);
    }
    get(stages[stage]) = median(std::move(others));
  }
}

auto with_same_weights(const Placement& placement) {
  return [&](std::size_t a, std::size_t b) { return placement.weights_of[a] == placement.weights_of[b]; };
}
constexpr auto any_stage = [](std::size_t, std::size_t) { return true; };

// What no stage runs by itself: a pair is a third F and two thirds B.
void split_pair(StageTimes& stage) {
  auto& forward = stage.pass.of(Kind::forward);
  auto& backward = stage.pass.of(Kind::backward);
  if (!forward && stage.overlapped) forward = *stage.overlapped / 3;
  if (!backward && stage.pair_of_backward) backward = *stage.pair_of_backward - *stage.pair_of_backward / 3;
}

// Where I and W are missing B is split, in the proportion of the stages that have them, or in two.
void split_backwards(std::vector<StageTimes>& stages) {
  const std::vector<StageTimes> measured = stages;
  for (StageTimes& stage : stages) {
    auto& input = stage.pass.of(Kind::input_gradient);
    auto& weight = stage.pass.of(Kind::weight_gradient);
    if ((input && weight) || !stage.pass.of(Kind::backward)) continue;
    const Time full = *stage.pass.of(Kind::backward);
    Samples splits;
    for (const StageTimes& other : measured) {
      const Time i = other.pass.of(Kind::input_gradient).value_or(0);
      const Time w = other.pass.of(Kind::weight_gradient).value_or(0);
      if (i + w == 0) continue;
      splits.push_back(
          static_cast<Time>(static_cast<double>(full) * static_cast<double>(i) / static_cast<double>(i + w)));
    }
    input = median(std::move(splits)).value_or(full / 2);
    weight = full - *input;
  }
}

// All passes of all stages, as far as anything is known of them.
void complete(std::vector<StageTimes>& stages, const Placement& placement) {
  for (StageTimes& stage : stages) add_halves(stage);
  const auto of = [](Kind pass) { return [pass](StageTimes& stage) -> Figure& { return stage.pass.of(pass); }; };
  for (const Kind pass : passes) fill_in(stages, of(pass), with_same_weights(placement));
  fill_in(stages, std::mem_fn(&StageTimes::overlapped), with_same_weights(placement));
  for (const Kind pass : {Kind::forward, Kind::backward}) fill_in(stages, of(pass), any_stage);
  for (StageTimes& stage : stages) split_pair(stage);
  split_backwards(stages);
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
Time latency_of(std::span<const MeasuredSteps> runs, const Costs& costs) {
  const Placement& placement = runs[0].program.schedule.placement;
  Samples samples;
  for (const MeasuredSteps& run : runs) {
    for (const AwaitedMessage& message : Messages(run).awaited(costs.launch)) {
      const auto sender = static_cast<std::uint16_t>(message.sender);
      const Op send{0, sender, message.forward ? Kind::send_forward : Kind::send_backward, false};
      const double bytes = static_cast<double>(costs.of(output_stage_of(send, placement)).message);
      const double transfer = costs.bandwidth == 0 ? 0 : bytes * 1e9 / costs.bandwidth;
      samples.push_back(std::max<Time>(0, message.time - std::llround(transfer)));
    }
  }
  return median(std::move(samples)).value_or(0);
}

// --- memory

// How memory.h in sim/simulate sees a stage.
struct StageMemory {
  Figure activation;    // M_B
  Figure weight_stash;  // M_W
  ByPass<Figure> workspace;
  Figure overlapped_workspace;  // pairs with its forward
};

class MemoryCalibration {
 public:
  MemoryCalibration(std::span<const MeasuredSteps> runs, const Placement& placement)
      : runs_(runs), placement_(placement), messages_(placement.rank_of.size()), stages_(messages_.size()) {
    measure_messages();
    measure_what_ops_leave();
    fill_in(stages_, std::mem_fn(&StageMemory::activation), with_same_weights(placement));
    fill_in(stages_, std::mem_fn(&StageMemory::weight_stash), with_same_weights(placement));
    for (StageMemory& stage : stages_) {
      if (!stage.weight_stash) stage.weight_stash = stage.activation;
    }
    measure_workspaces();
    for (const Kind pass : passes) {
      const auto of_pass = [pass](StageMemory& stage) -> Figure& { return stage.workspace.of(pass); };
      fill_in(stages_, of_pass, with_same_weights(placement));
    }
    fill_in(stages_, std::mem_fn(&StageMemory::overlapped_workspace), with_same_weights(placement));
    for (StageMemory& stage : stages_) estimate_backward(stage);
  }

  [[nodiscard]] Bytes message(std::size_t stage) const { return messages_[stage]; }
  [[nodiscard]] const StageMemory& of(std::size_t stage) const { return stages_[stage]; }

 private:
  template <typename Visit>
  void visit_memory(Visit visit) const {
    for (const MeasuredSteps& run : runs_) {
      visit_run(run, [&](const RankRecord& record, std::span<const Op> unit, std::size_t position) {
        if (!record.memory.empty()) visit(unit, record.memory[position]);
      });
    }
  }

  // What goes into a stage from the one before it, and so the gradient that goes back; 0 in a first stage.
  [[nodiscard]] Bytes input(std::uint16_t stage) const {
    const auto previous = placement_.previous(stage);
    return previous ? messages_[static_cast<std::size_t>(*previous)] : 0;
  }

  void measure_messages() {
    std::vector<Samples> outputs(stages_.size());
    visit_memory([&](std::span<const Op> unit, const OpMemory& memory) {
      const Op op = unit[0];  // of a pair the F
      if (op.kind == Kind::forward && placement_.next(op.stage)) outputs[op.stage].push_back(memory.output);
    });
    for (std::size_t i = 0; i < outputs.size(); ++i) messages_[i] = median(std::move(outputs[i])).value_or(0);
  }

  // Of ops by themselves: what came in and what goes out is the neighbours'.
  void measure_what_ops_leave() {
    std::vector<Samples> activations(stages_.size());
    std::vector<Samples> stashes(stages_.size());
    visit_memory([&](std::span<const Op> unit, const OpMemory& memory) {
      if (unit.size() == 2) return;
      const std::uint16_t stage = unit[0].stage;
      if (unit[0].kind == Kind::forward) {
        activations[stage].push_back((memory.after - memory.output) - (memory.before - input(stage)));
      } else if (unit[0].kind == Kind::backward) {
        activations[stage].push_back((memory.before - messages_[stage]) - (memory.after - input(stage)));
      } else if (unit[0].kind == Kind::weight_gradient) {
        stashes[stage].push_back(memory.before - memory.after);
      }
    });
    for (std::size_t i = 0; i < stages_.size(); ++i) {
      stages_[i].activation = median(std::move(activations[i]));
      stages_[i].weight_stash = median(std::move(stashes[i]));
    }
  }

  void measure_workspaces() {
    std::vector<ByPass<Samples>> alone(stages_.size());
    std::vector<Samples> pairs(stages_.size());
    visit_memory([&](std::span<const Op> unit, const OpMemory& memory) {
      const auto [op, stage] = std::pair(unit[0], unit[0].stage);
      Bytes held = memory.before;
      if (op.kind == Kind::forward) held += stages_[stage].activation.value_or(0) - input(stage);
      const Bytes workspace = memory.peak - held;
      if (unit.size() == 2) {
        pairs[stage].push_back(workspace);
      } else {
        alone[stage].of(op.kind).push_back(std::max<Bytes>(0, workspace));
      }
    });
    for (std::size_t i = 0; i < stages_.size(); ++i) {
      for (const Kind pass : passes) stages_[i].workspace.of(pass) = median(std::move(alone[i].of(pass)));
      stages_[i].overlapped_workspace = median(std::move(pairs[i]));
    }
  }

  // B is not more than I and then W.
  static void estimate_backward(StageMemory& stage) {
    Figure& backward = stage.workspace.of(Kind::backward);
    if (backward) return;
    const Bytes input = stage.workspace.of(Kind::input_gradient).value_or(0);
    const Bytes weight = stage.workspace.of(Kind::weight_gradient).value_or(0);
    const Bytes left = stage.weight_stash.value_or(0) - stage.activation.value_or(0);
    backward = std::max<Bytes>({0, input, left + weight});
  }

  std::span<const MeasuredSteps> runs_;
  const Placement& placement_;
  std::vector<Bytes> messages_;      // by stage: its output
  std::vector<StageMemory> stages_;  // by stage
};

void set_times(StageCosts& costs, const StageTimes& times) {
  costs.forward = times.pass.of(Kind::forward).value_or(0);
  costs.backward = times.pass.of(Kind::backward).value_or(0);
  costs.input_gradient = times.pass.of(Kind::input_gradient).value_or(0);
  costs.weight_gradient = times.pass.of(Kind::weight_gradient).value_or(0);
  costs.overlapped = times.overlapped;
}

void set_memory(StageCosts& costs, const StageMemory& memory) {
  costs.activation = std::max<Bytes>(0, memory.activation.value_or(0));
  costs.weight_stash = std::max<Bytes>(0, memory.weight_stash.value_or(0));
  costs.forward_workspace = memory.workspace.of(Kind::forward).value_or(0);
  costs.backward_workspace = memory.workspace.of(Kind::backward).value_or(0);
  costs.input_gradient_workspace = memory.workspace.of(Kind::input_gradient).value_or(0);
  costs.weight_gradient_workspace = memory.workspace.of(Kind::weight_gradient).value_or(0);
  costs.overlapped_workspace = memory.overlapped_workspace;
}

}  // namespace

Costs calibrate(std::span<const MeasuredSteps> runs, std::span<const StageBytes> stages, double bandwidth) {
  if (std::ranges::all_of(runs, [](const MeasuredSteps& run) { return run.steps.empty(); })) {
    throw InputError("there is no step to calibrate costs from; train at least one");
  }
  for (const MeasuredSteps& run : runs) check_recorded(run);
  const Placement& placement = runs[0].program.schedule.placement;
  if (stages.size() != placement.rank_of.size()) {
    throw InputError(fmt::format("the bytes of {} stages are given, but the program has {}", stages.size(),
                                 placement.rank_of.size()));
  }
  std::vector<StageTimes> times = times_of(runs, placement.rank_of.size());
  complete(times, placement);
  const MemoryCalibration memory(runs, placement);

  Costs costs;
  for (std::size_t i = 0; i < times.size(); ++i) {
    StageCosts& stage = costs.stages.emplace_back();
    set_times(stage, times[i]);
    set_memory(stage, memory.of(i));
    stage.message = memory.message(i);
    stage.parameters = stages[i].parameters;
    stage.gradients = stages[i].gradients;
    stage.optimizer = stages[i].optimizer;
  }
  costs.model = bandwidth == 0 ? CommunicationModel::latency : CommunicationModel::links;
  costs.bandwidth = bandwidth;
  costs.launch = launch_of(runs);
  costs.latency = latency_of(runs, costs);
  return costs;
}

Costs calibrate(const Program& program, const TrainResult& result) {
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
  if (quantile(least->times, 0.75) >= quantile(most->times, 0.25)) return 0;

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
