#include "dualpipe/sim/simulate/tasks.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/flow.h"
#include "dualpipe/sim/simulate/splitmix.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::detail::simulate {
namespace {

constexpr int width_bits = 30;  // of a jitter, behind the point

// As nanoseconds, which must be known to be few enough.
Time slowed(Time duration, double speed, int stage, int rank) {
  const double nanoseconds = static_cast<double>(duration) / speed;
  if (nanoseconds < static_cast<double>(run_time_max)) return std::llround(nanoseconds);
  throw InputError(
      fmt::format("stage {}: {} ns at the speed {} of rank {} are more than 73 years, the longest run that can be "
                  "simulated; use a shorter duration or a higher speed",
                  stage, duration, speed, rank));
}

Time transfer_time(const Costs& costs, Bytes bytes) {
  if (costs.model == CommunicationModel::latency || costs.bandwidth == 0) return costs.latency;
  const double nanoseconds = static_cast<double>(bytes) * 1e9 / costs.bandwidth;
  if (nanoseconds > static_cast<double>(time_max)) {
    throw InputError(fmt::format(
        "a message of {} bytes takes more than a day at {:.3g} bytes per second; is the bandwidth in bytes per "
        "second?",
        bytes, costs.bandwidth));
  }
  return costs.latency + std::llround(nanoseconds);
}

// The sum of all reductions of shared gradients, or more.
double longest_reductions(const Placement& placement, const Costs& costs) {
  struct Weights {
    int users = 0;
    double bytes = 0;
  };
  std::vector<Weights> weights(placement.rank_of.size());
  for (int stage = 0; stage < placement.stages(); ++stage) {
    Weights& used = weights[placement.weights_of[static_cast<std::size_t>(stage)]];
    ++used.users;
    used.bytes = std::max(used.bytes, 2 * static_cast<double>(costs.of(stage).gradients));
  }
  const bool free = costs.model == CommunicationModel::latency || costs.bandwidth == 0;
  double total = 0;
  for (const Weights& each : weights) {
    if (each.users < 2) continue;
    total += static_cast<double>(costs.latency) + (free ? 0 : each.bytes * 1e9 / costs.bandwidth);
  }
  return total;
}

std::size_t box_index(int stage, bool gradients) { return 2 * static_cast<std::size_t>(stage) + (gradients ? 1 : 0); }

}  // namespace

Tasks::Tasks(const Program& program, const Costs& costs) {
  const Placement& placement = program.schedule.placement;
  check(costs, placement);

  boxes_.resize(2 * placement.rank_of.size());
  of_stage_.resize(placement.rank_of.size());
  const auto rank_of = [&](int stage) { return placement.rank_of[static_cast<std::size_t>(stage)]; };
  for (int stage = 0; stage < placement.stages(); ++stage) {
    for (const bool gradients : {false, true}) boxes_[box_index(stage, gradients)].rank = rank_of(stage);

    const StageCosts& cost = costs.of(stage);
    const double speed = costs.speed.empty() ? 1.0 : costs.speed[rank_of(stage)];
    StageTasks& tasks = of_stage_[static_cast<std::size_t>(stage)];
    for (const Kind pass : {Kind::forward, Kind::backward, Kind::input_gradient, Kind::weight_gradient}) {
      const Op op{0, static_cast<std::uint16_t>(stage), pass, false};
      Task& task = tasks.of_kind[static_cast<std::size_t>(pass)];
      task.duration = slowed(cost.duration(pass), speed, stage, rank_of(stage));
      const bool gradients = !is_forward(pass);
      if (const auto from = producer_of(op, placement); from && from->is_remote) {
        task.in = &boxes_[box_index(stage, gradients)];
        task.in->transfer = transfer_time(costs, costs.of(output_stage_of(receive_for(op), placement)).message);
      }
      if (const auto to = consumer_of(op, placement); to && to->is_remote) {
        task.out = &boxes_[box_index(to->stage, gradients)];
      }
    }
    tasks.overlaps = cost.overlapped.has_value();
    tasks.overlapped = slowed(cost.overlapped.value_or(0), speed, stage, rank_of(stage));
  }
  check_total_time(program, costs);
}

// The engine adds without looking: this is why it may. Each time in a run is the end of a chain of ops, launches,
// messages and reductions, each of which begins where the one before it ends. So none is in the chain twice, and all
// together bound every time; and with the times what a rank is busy, idle, or waits for.
void Tasks::check_total_time(const Program& program, const Costs& costs) const {
  constexpr double limit = 0.999 * static_cast<double>(run_time_max);  // the sums are rounded, by much less than that
  if (longest_time(program, costs) < limit) return;
  throw InputError(
      "the simulated run could take more than 73 years, the most that is supported; use shorter durations");
}

double Tasks::longest_time(const Program& program, const Costs& costs) const {
  double durations = 0;  // of one micro-batch: an F by itself, or for a pair; a B, or an I and a W
  for (const StageTasks& tasks : of_stage_) {
    const auto duration = [&](Kind pass) {
      return static_cast<double>(tasks.of_kind[static_cast<std::size_t>(pass)].duration);
    };
    durations += std::max(duration(Kind::forward), static_cast<double>(tasks.overlapped));
    durations += std::max(duration(Kind::backward), duration(Kind::input_gradient) + duration(Kind::weight_gradient));
  }
  double transfers = 0;  // one message through each mailbox
  for (const Mailbox& box : boxes_) transfers += static_cast<double>(box.transfer);
  const Schedule& schedule = program.schedule;
  return (durations * (1 + costs.jitter) + transfers) * static_cast<double>(schedule.micro_batches) +
         static_cast<double>(costs.launch) * static_cast<double>(schedule.ops.size()) +
         longest_reductions(schedule.placement, costs);
}

Time Tasks::reduction_time(const Costs& costs, int stage, std::size_t ranks) {
  if (ranks < 2) return 0;
  const double share = 2.0 * static_cast<double>(ranks - 1) / static_cast<double>(ranks);
  return transfer_time(costs, std::llround(share * static_cast<double>(costs.of(stage).gradients)));
}

Jitter::Jitter(const Costs& costs)
    : width_(std::llround(costs.jitter * static_cast<double>(1 << width_bits))), seed_(costs.seed) {}

Time Jitter::scale(Time duration, Op op) const {
  const std::uint64_t own =
      1 + (std::uint64_t{op.micro_batch} << 20U | std::uint64_t{op.stage} << 2U | static_cast<std::uint64_t>(op.kind));
  const std::uint64_t random = splitmix(seed_ + splitmix_step * own);
  const auto draw = static_cast<std::int32_t>(random >> 32U);  // in [-2^31, 2^31)

  // duration * (1 + width * draw), in steps that stay within 64 bits: the factor has 30 bits behind the point.
  const std::int64_t factor = (std::int64_t{1} << width_bits) + ((width_ * draw) >> 31);
  const std::int64_t whole = duration >> width_bits;
  const std::int64_t rest = duration & ((std::int64_t{1} << width_bits) - 1);
  return whole * factor + ((rest * factor) >> width_bits);
}

}  // namespace dualpipe::detail::simulate
