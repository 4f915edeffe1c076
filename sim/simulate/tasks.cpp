#include "dualpipe/sim/simulate/tasks.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

constexpr int width_bits = 30;  // of a jitter, behind the point

Time slowed(Time duration, double speed) { return std::llround(static_cast<double>(duration) / speed); }

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

    // A forward goes to the next stage's mailbox, and the gradient for it comes back into this one's.
    Mailbox* input = nullptr;
    Mailbox* input_gradient = nullptr;
    Mailbox* output = nullptr;
    Mailbox* output_gradient = nullptr;
    if (const auto previous = placement.previous(stage); previous && rank_of(*previous) != rank_of(stage)) {
      input = &boxes_[box_index(stage, false)];
      input_gradient = &boxes_[box_index(*previous, true)];
      input->transfer = input_gradient->transfer = transfer_time(costs, costs.of(*previous).message);
    }
    if (const auto next = placement.next(stage); next && rank_of(*next) != rank_of(stage)) {
      output = &boxes_[box_index(*next, false)];
      output_gradient = &boxes_[box_index(stage, true)];
    }

    const StageCosts& cost = costs.of(stage);
    const double speed = costs.speed.empty() ? 1.0 : costs.speed[rank_of(stage)];
    StageTasks& tasks = of_stage_[static_cast<std::size_t>(stage)];
    const auto set = [&](Kind pass, Mailbox* in, Mailbox* out) {
      tasks.of_kind[static_cast<std::size_t>(pass)] = {slowed(cost.duration(pass), speed), in, out};
    };
    set(Kind::forward, input, output);
    set(Kind::backward, output_gradient, input_gradient);
    set(Kind::input_gradient, output_gradient, input_gradient);
    set(Kind::weight_gradient, nullptr, nullptr);
    tasks.overlaps = cost.overlapped.has_value();
    tasks.overlapped = slowed(cost.overlapped.value_or(0), speed);
  }
  check_total_time(program, costs);
}

// No time can exceed the sum of all durations and transfers.
void Tasks::check_total_time(const Program& program, const Costs& costs) const {
  double longest = 0;
  for (const StageTasks& tasks : of_stage_) {
    for (const Task& task : tasks.of_kind) longest = std::max(longest, static_cast<double>(task.duration));
    longest = std::max(longest, static_cast<double>(tasks.overlapped));
  }
  double transfer = 0;
  for (const Mailbox& box : boxes_) transfer = std::max(transfer, static_cast<double>(box.transfer));
  const double per_op = longest * (1 + costs.jitter) + static_cast<double>(costs.launch) + 2 * transfer;
  if (per_op * static_cast<double>(program.schedule.ops.size()) < 9e18) return;
  throw InputError(
      "the simulated time could exceed 292 years, more than 64-bit nanoseconds hold; use shorter durations");
}

Time Tasks::reduction_time(const Costs& costs, int stage, std::size_t ranks) {
  if (ranks < 2) return 0;
  const double share = 2.0 * static_cast<double>(ranks - 1) / static_cast<double>(ranks);
  return transfer_time(costs, std::llround(share * static_cast<double>(costs.of(stage).gradients)));
}

Jitter::Jitter(const Costs& costs)
    : width_(std::llround(costs.jitter * static_cast<double>(1 << width_bits))), seed_(costs.seed) {}

Time Jitter::scale(Time duration, Op op) const {
  // SplitMix64 (Steele, Lea, Flood 2014), from the op's own state.
  std::uint64_t z =
      seed_ + 0x9e3779b97f4a7c15ULL * (1 + (std::uint64_t{op.micro_batch} << 20U | std::uint64_t{op.stage} << 2U |
                                            static_cast<std::uint64_t>(op.kind)));
  z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27U)) * 0x94d049bb133111ebULL;
  const auto draw = static_cast<std::int32_t>((z ^ (z >> 31U)) >> 32U);  // in [-2^31, 2^31)

  // duration * (1 + width * draw), in steps that stay within 64 bits: the factor has 30 bits behind the point.
  const std::int64_t factor = (std::int64_t{1} << width_bits) + ((width_ * draw) >> 31);
  const std::int64_t whole = duration >> width_bits;
  const std::int64_t rest = duration & ((std::int64_t{1} << width_bits) - 1);
  return whole * factor + ((rest * factor) >> width_bits);
}

}  // namespace dualpipe
