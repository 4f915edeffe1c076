#include "dualpipe/sim/costs/costs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <string_view>

#include "dualpipe/sim/costs/fields.h"
#include "dualpipe/sim/costs/rules.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace detail::costs {
namespace {

constexpr double speed_max = 1e6;
constexpr double speed_min = 1e-6;

void check_time(std::string_view what, Time time) {
  if (time < 0 || time > time_max) {
    throw InputError(fmt::format("{} is {} ns; it must be from 0 to {} ns, a day", what, time, time_max));
  }
}

void check_field(std::string_view what, std::string_view key, std::int64_t value) {
  const Limits limits = limits_of(key);
  if (value >= limits.least && value <= limits.most) return;
  if (limits.most == time_max) check_time(fmt::format("{}: {}", what, key), value);
  throw InputError(fmt::format("{}: {} is {}; it must be from {} to 2^60 bytes", what, key, value,
                               limits.least < 0 ? "-2^60" : "0"));
}

}  // namespace

bool is_speed(double speed) { return speed >= speed_min && speed <= speed_max; }
bool is_jitter(double jitter) { return jitter >= 0 && jitter < 1; }
bool is_bandwidth(double bandwidth) { return bandwidth >= 0 && std::isfinite(bandwidth); }

Limits limits_of(std::string_view key) {
  if (key.ends_with("_ns")) return {0, time_max};
  return {key == overlapped_workspace.key ? -bytes_max : 0, bytes_max};
}

std::optional<std::string> flaw_of_recompute(const StageCosts& costs) {
  if (!costs.recompute_activation) return std::nullopt;
  if (costs.recompute == 0) {
    return fmt::format("{} is what is held where the forward runs again, but {} is 0; give that, too",
                       recompute_activation.key, recompute.key);
  }
  if (*costs.recompute_activation <= costs.activation) return std::nullopt;
  return fmt::format("{} is {}, more than {}, which it is a part of: {}", recompute_activation.key,
                     *costs.recompute_activation, "activation_bytes", costs.activation);
}

void check_each(const StageCosts& costs, std::string_view what) {
  visit_fields([&](const auto& field) {
    const auto value = value_of(costs, field);
    if (value) check_field(what, field.key, *value);
  });
  if (const auto flaw = flaw_of_recompute(costs)) throw InputError(fmt::format("{}: {}", what, *flaw));
}

bool counts_bytes(const StageCosts& costs) {
  return std::ranges::any_of(sizes, [&](const Field& each) { return costs.*each.member > 0; });
}

void check_machine(const MachineCosts& costs) {
  check_time("the latency", costs.latency);
  check_time("the launch overhead", costs.launch);
  if (!is_bandwidth(costs.bandwidth)) throw InputError(fmt::format("{}; {} is not", bandwidth_rule, costs.bandwidth));
  if (!is_jitter(costs.jitter)) throw InputError(fmt::format("{}; {} is not", jitter_rule, costs.jitter));
  for (std::size_t rank = 0; rank < costs.speed.size(); ++rank) {
    if (!is_speed(costs.speed[rank])) {
      throw InputError(fmt::format("rank {}: {}; {} is not", rank, speed_rule, costs.speed[rank]));
    }
  }
}

}  // namespace detail::costs

Time StageCosts::duration(Kind pass) const {
  switch (pass) {
    case Kind::forward:
      return forward;
    case Kind::backward:
      return recompute + backward;
    case Kind::input_gradient:
      return recompute + input_gradient;
    default:
      assert(pass == Kind::weight_gradient);
      return weight_gradient;
  }
}

Bytes StageCosts::workspace(Kind pass) const {
  const Bytes made_anew = activation - held_activation();
  switch (pass) {
    case Kind::forward:
      return forward_workspace;
    case Kind::backward:
      return backward_workspace + made_anew;
    case Kind::input_gradient:
      return input_gradient_workspace + made_anew;
    default:
      assert(pass == Kind::weight_gradient);
      return weight_gradient_workspace;
  }
}

bool knows_both_recomputes(std::span<const StageCosts> stages) {
  const auto recomputes = [](const StageCosts& stage) { return stage.recompute > 0; };
  const auto knows_both = [&](const StageCosts& stage) {
    return !recomputes(stage) || stage.recompute_activation || stage.activation == 0;
  };
  return std::ranges::any_of(stages, recomputes) && std::ranges::all_of(stages, knows_both);
}

StageCosts without_recompute(StageCosts costs) {
  if (costs.recompute == 0) return costs;
  costs.recompute = 0;
  costs.recompute_activation.reset();
  costs.overlapped.reset();
  costs.overlapped_workspace.reset();
  return costs;
}

bool has_overlapped(const Costs& costs) {
  return std::ranges::all_of(costs.stages, [](const StageCosts& stage) { return stage.overlapped.has_value(); });
}

void check(const Costs& costs) {
  if (costs.stages.empty()) throw InputError("costs are given for no stage; give one entry for all, or one for each");
  for (std::size_t stage = 0; stage < costs.stages.size(); ++stage) {
    detail::costs::check_each(costs.stages[stage], fmt::format("stage {}", stage));
  }
  detail::costs::check_machine(costs);
}

void check(const Costs& costs, const Placement& placement) {
  check(costs);
  const auto stages = placement.rank_of.size();
  if (costs.stages.size() != 1 && costs.stages.size() != stages) {
    throw InputError(
        fmt::format("costs are given for {} stages, but the schedule has {}; give one entry for all, or {}",
                    costs.stages.size(), stages, stages));
  }
  if (!costs.speed.empty() && costs.speed.size() != static_cast<std::size_t>(placement.ranks)) {
    throw InputError(fmt::format("speeds are given for {} ranks, but the schedule has {}; give one for each, or none",
                                 costs.speed.size(), placement.ranks));
  }
}

}  // namespace dualpipe
