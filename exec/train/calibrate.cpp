#include "exec/train/calibrate.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <optional>
#include <unordered_map>
#include <vector>

namespace dualpipe {
namespace {

using Samples = std::vector<Time>;

std::optional<Time> median(Samples samples) {
  if (samples.empty()) return std::nullopt;
  const auto middle = samples.begin() + static_cast<std::ptrdiff_t>((samples.size() - 1) / 2);
  std::ranges::nth_element(samples, middle);
  return *middle;
}

Time duration(const Span& span) { return span.end - span.start; }

// What one stage's ops took; nothing where none ran by itself.
struct StageMedians {
  std::array<std::optional<Time>, 4> pass;  // by Kind: F, B, I, W
  std::optional<Time> overlapped;           // pairs with its forward
  std::optional<Time> pair_of_backward;     // pairs with its backward

  [[nodiscard]] std::optional<Time>& of(Kind kind) { return pass[static_cast<std::size_t>(kind)]; }
};

class Calibration {
 public:
  Calibration(const Program& program, std::span<const RankRecords> steps)
      : program_(program), placement_(program.schedule.placement), steps_(steps) {}

  [[nodiscard]] std::vector<StageMedians> stages() const {
    const std::size_t count = placement_.rank_of.size();
    std::vector<std::array<Samples, 4>> passes(count);
    std::vector<Samples> ahead(count);
    std::vector<Samples> back(count);
    for_each_unit([&](int, const RankRecord& record, std::span<const Op> unit, std::size_t position) {
      const Time time = duration(record.ops[position]);
      if (unit.size() == 2) {
        ahead[unit[0].stage].push_back(time);
        back[unit[1].stage].push_back(time);
      } else {
        passes[unit[0].stage][static_cast<std::size_t>(unit[0].kind)].push_back(time);
      }
    });
    std::vector<StageMedians> medians(count);
    for (std::size_t stage = 0; stage < count; ++stage) {
      for (std::size_t kind = 0; kind < 4; ++kind) medians[stage].pass[kind] = median(passes[stage][kind]);
      medians[stage].overlapped = median(ahead[stage]);
      medians[stage].pair_of_backward = median(back[stage]);
    }
    return medians;
  }

  [[nodiscard]] Time launch() const {
    Samples gaps;
    for_each_unit([&](int, const RankRecord& record, std::span<const Op>, std::size_t position) {
      if (position == 0) return;
      const Time gap = record.ops[position].start - record.ops[position - 1].end;
      gaps.push_back(std::max<Time>(0, gap - record.waited[position]));
    });
    return median(std::move(gaps)).value_or(0);
  }

  [[nodiscard]] Time latency(Time launch) const {
    Samples samples;
    for (const RankRecords& step : steps_) {
      const auto made = times_made(step);
      for (int rank = 0; rank < placement_.ranks; ++rank) sample_latencies(rank, step, made, launch, samples);
    }
    return median(std::move(samples)).value_or(0);
  }

 private:
  using TimesMade = std::unordered_map<std::uint64_t, Time>;  // when an op ended that makes a message; never iterated

  static std::uint64_t key_of(std::uint16_t stage, std::uint32_t micro_batch, bool forward) {
    return (std::uint64_t{stage} << 33U) | (std::uint64_t{micro_batch} << 1U) | (forward ? 1U : 0U);
  }

  // Calls back with each op or pair that a rank has run, and its position in the rank.
  template <typename Visit>
  void for_each_unit(Visit visit) const {
    for (const RankRecords& step : steps_) {
      for (int rank = 0; rank < placement_.ranks; ++rank) visit_rank(rank, step[static_cast<std::size_t>(rank)], visit);
    }
  }

  template <typename Visit>
  void visit_rank(int rank, const RankRecord& record, Visit visit) const {
    const auto ops = program_.schedule.rank(rank);
    std::size_t size = 1;
    for (std::size_t i = 0; i < ops.size(); i += size) {
      size = unit_size(ops.subspan(i));
      visit(rank, record, ops.subspan(i, size), i);
    }
  }

  [[nodiscard]] TimesMade times_made(const RankRecords& step) const {
    TimesMade made;
    for (int rank = 0; rank < placement_.ranks; ++rank) {
      const auto ops = program_.schedule.rank(rank);
      for (std::size_t i = 0; i < ops.size(); ++i) {
        if (ops[i].kind == Kind::weight_gradient) continue;
        const Time end = step[static_cast<std::size_t>(rank)].ops[i].end;
        made[key_of(ops[i].stage, ops[i].micro_batch, ops[i].kind == Kind::forward)] = end;
      }
    }
    return made;
  }

  // An op that waited for an input started when it was there; a pair when the later one was.
  void sample_latencies(int rank, const RankRecords& step, const TimesMade& made, Time launch, Samples& samples) const {
    const RankRecord& record = step[static_cast<std::size_t>(rank)];
    visit_rank(rank, record, [&](int, const RankRecord&, std::span<const Op> unit, std::size_t position) {
      std::optional<Time> sent;
      for (const Op op : unit) {
        const auto producer = producer_of(op);
        if (!producer) continue;
        const Time time = made.at(key_of(*producer, op.micro_batch, op.kind == Kind::forward));
        sent = std::max(sent.value_or(time), time);
      }
      const bool was_there = position > 0 && record.waited[position] <= launch;
      if (!sent || was_there) return;
      samples.push_back(record.ops[position].start - *sent);
    });
  }

  // The stage on another rank whose op makes the input.
  [[nodiscard]] std::optional<std::uint16_t> producer_of(Op op) const {
    if (op.kind == Kind::weight_gradient) return std::nullopt;
    const auto stage = op.kind == Kind::forward ? placement_.previous(op.stage) : placement_.next(op.stage);
    if (!stage) return std::nullopt;
    const auto number = static_cast<std::uint16_t>(*stage);
    if (placement_.rank_of[number] == placement_.rank_of[op.stage]) return std::nullopt;
    return number;
  }

  const Program& program_;
  const Placement& placement_;
  std::span<const RankRecords> steps_;
};

void add_halves(StageMedians& stage) {
  auto& full = stage.of(Kind::backward);
  const auto& input = stage.of(Kind::input_gradient);
  const auto& weight = stage.of(Kind::weight_gradient);
  if (!full && input && weight) full = *input + *weight;
}

// Fills in what is missing of these passes from the stages that `stands_in` allows.
template <typename StandsIn>
void fill_in(std::vector<StageMedians>& stages, std::span<const Kind> passes, StandsIn stands_in) {
  const std::vector<StageMedians> measured = stages;
  for (const Kind kind : passes) {
    const auto pass = static_cast<std::size_t>(kind);
    for (std::size_t stage = 0; stage < stages.size(); ++stage) {
      if (stages[stage].pass[pass]) continue;
      Samples others;
      for (std::size_t other = 0; other < stages.size(); ++other) {
        if (stands_in(stage, other) && measured[other].pass[pass]) others.push_back(*measured[other].pass[pass]);
      }
      stages[stage].pass[pass] = median(std::move(others));
    }
  }
}

// What no stage runs by itself: a pair is a third F and two thirds B.
void split_pair(StageMedians& stage) {
  if (!stage.of(Kind::forward) && stage.overlapped) stage.of(Kind::forward) = *stage.overlapped / 3;
  if (!stage.of(Kind::backward) && stage.pair_of_backward) {
    stage.of(Kind::backward) = *stage.pair_of_backward - *stage.pair_of_backward / 3;
  }
}

// Where I and W are missing B is split, in the proportion of the stages that have them, or in two.
void split_backwards(std::vector<StageMedians>& stages) {
  const std::vector<StageMedians> measured = stages;
  for (StageMedians& stage : stages) {
    auto& input = stage.of(Kind::input_gradient);
    auto& weight = stage.of(Kind::weight_gradient);
    if ((input && weight) || !stage.of(Kind::backward)) continue;
    const Time full = *stage.of(Kind::backward);
    Samples splits;
    for (StageMedians other : measured) {
      const Time i = other.of(Kind::input_gradient).value_or(0);
      const Time w = other.of(Kind::weight_gradient).value_or(0);
      if (i + w == 0) continue;
      splits.push_back(
          static_cast<Time>(static_cast<double>(full) * static_cast<double>(i) / static_cast<double>(i + w)));
    }
    input = median(std::move(splits)).value_or(full / 2);
    weight = full - *input;
  }
}

// All passes of all stages, as far as anything is known of them.
void complete(std::vector<StageMedians>& stages, const Placement& placement) {
  constexpr std::array all{Kind::forward, Kind::backward, Kind::input_gradient, Kind::weight_gradient};
  constexpr std::array whole{Kind::forward, Kind::backward};
  for (StageMedians& stage : stages) add_halves(stage);
  fill_in(stages, all,
          [&](std::size_t a, std::size_t b) { return placement.weights_of[a] == placement.weights_of[b]; });
  fill_in(stages, whole, [](std::size_t, std::size_t) { return true; });
  for (StageMedians& stage : stages) split_pair(stage);
  split_backwards(stages);
}

Bytes activation_bytes(const Placement& placement, std::span<const RankRecords> steps, int stage) {
  const auto rank = placement.rank_of[static_cast<std::size_t>(stage)];
  Samples sizes;
  for (const RankRecords& step : steps) {
    const RankRecord& record = step[rank];
    if (record.peak_activations > 0) sizes.push_back(record.peak_memory / record.peak_activations);
  }
  return std::max<Bytes>(0, median(std::move(sizes)).value_or(0));
}

}  // namespace

Costs calibrate(const Program& program, std::span<const RankRecords> steps, std::span<const StageBytes> stages) {
  assert(!steps.empty());
  const Placement& placement = program.schedule.placement;
  const Calibration calibration(program, steps);
  std::vector<StageMedians> medians = calibration.stages();
  complete(medians, placement);

  Costs costs;
  costs.launch = calibration.launch();
  costs.latency = calibration.latency(costs.launch);
  for (std::size_t i = 0; i < medians.size(); ++i) {
    StageCosts stage;
    stage.forward = medians[i].of(Kind::forward).value_or(0);
    stage.backward = medians[i].of(Kind::backward).value_or(0);
    stage.input_gradient = medians[i].of(Kind::input_gradient).value_or(0);
    stage.weight_gradient = medians[i].of(Kind::weight_gradient).value_or(0);
    stage.overlapped = medians[i].overlapped;
    stage.activation = activation_bytes(placement, steps, static_cast<int>(i));
    stage.message = stages[i].message;
    stage.parameters = stages[i].parameters;
    stage.gradients = stages[i].gradients;
    stage.optimizer = stages[i].optimizer;
    costs.stages.push_back(stage);
  }
  return costs;
}

}  // namespace dualpipe
