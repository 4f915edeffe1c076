#include "dualpipe/sim/costs/model_costs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <iterator>
#include <numeric>
#include <optional>
#include <span>

#include "dualpipe/sim/costs/fields.h"
#include "dualpipe/sim/costs/partition.h"
#include "dualpipe/sim/costs/rules.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace detail::costs {
namespace {

// A run of parts as one stage.
StageCosts joined(std::span<const StageCosts> parts) {
  const Bytes held = std::transform_reduce(parts.begin(), parts.end(), Bytes{0}, std::plus{},
                                           [](const StageCosts& part) { return part.held_activation(); });
  const bool is_less_held =
      std::ranges::any_of(parts, [](const StageCosts& part) { return part.recompute_activation.has_value(); });
  StageCosts stage = parts[0];
  for (const StageCosts& part : parts.subspan(1)) {
    visit_fields([&](const auto& field) {
      auto& value = stage.*field.member;
      const auto all = value_of(stage, field);
      const auto more = value_of(part, field);
      if (!all || !more) {
        value = {};  // of an optional one: unknown
      } else if (field.joined == Joined::sum) {
        value = *all + *more;
      } else if (field.joined == Joined::most) {
        value = std::max(*all, *more);
      } else {
        value = *more;
      }
    });
  }
  if (is_less_held) stage.recompute_activation = held;  // a part that does not recompute holds all
  return stage;
}

// The `index`th of `count` stages that a part is divided into; `message` is what goes between them.
StageCosts divided(const StageCosts& part, int index, int count, Bytes message) {
  StageCosts stage = part;
  visit_fields([&](const auto& field) {
    const auto value = value_of(part, field);
    if (value && field.joined == Joined::sum) stage.*field.member = share_of(*value, index, count);
  });
  // Rounded apart from each other, one may be a byte, or a nanosecond, off where the other is not.
  if (stage.recompute_activation) stage.recompute_activation = std::min(*stage.recompute_activation, stage.activation);
  if (stage.recompute == 0) stage.recompute_activation.reset();
  if (index + 1 < count) stage.message = message;
  return stage;
}

// A chain of as many stages.
std::vector<StageCosts> cut_parts(std::span<const StageCosts> parts, std::span<const int> counts) {
  std::vector<StageCosts> stages;
  std::size_t begin = 0;
  for (const int count : counts) {
    stages.push_back(joined(parts.subspan(begin, static_cast<std::size_t>(count))));
    begin += static_cast<std::size_t>(count);
  }
  return stages;
}

std::vector<StageCosts> divide_parts(std::span<const StageCosts> parts, std::span<const int> counts) {
  std::vector<StageCosts> stages;
  for (std::size_t part = 0; part < parts.size(); ++part) {
    const bool is_last = part + 1 == parts.size() && part > 0;
    const Bytes message = parts[is_last ? part - 1 : part].message;
    for (int i = 0; i < counts[part]; ++i) stages.push_back(divided(parts[part], i, counts[part], message));
  }
  return stages;
}

// Every chain is the whole model, and what shares weights is at the same place in it.
int stages_of_chain(const Placement& placement) {
  const auto begin_of = [&](int chain) { return int{placement.chain_begin[static_cast<std::size_t>(chain)]}; };
  const int stages = begin_of(1);
  for (int chain = 1; chain < placement.chains(); ++chain) {
    const int other = begin_of(chain + 1) - begin_of(chain);
    if (other == stages) continue;
    throw InputError(
        fmt::format("chain 0 of the schedule has {} stages and chain {} has {}; the parts of a model can be cut for "
                    "chains of one length only: give the costs of the stages",
                    stages, chain, other));
  }
  std::vector<std::optional<int>> place_of(placement.rank_of.size());  // by weights
  for (int stage = 0; stage < placement.stages(); ++stage) {
    auto& place = place_of[placement.weights_of[static_cast<std::size_t>(stage)]];
    if (place && *place != stage % stages) {
      throw InputError(fmt::format(
          "stage {} shares weights with one that is at another place of its chain, but the parts of a model "
          "are each at one; give the costs of the stages",
          stage));
    }
    place = stage % stages;
  }
  return stages;
}

// None: there are more stages than parts.
std::vector<int> cut_of_chain(const ModelCosts& costs, const Placement& placement, int stages) {
  if (!costs.cut.empty()) {
    if (costs.cut.size() == static_cast<std::size_t>(stages)) return costs.cut;
    throw ShapeError(fmt::format(
        "the model is cut for {} stages, but a chain of the schedule has {}; leave the cut out, or give one "
        "for {} stages",
        costs.cut.size(), stages, stages));
  }
  if (costs.parts.size() < static_cast<std::size_t>(stages)) return {};
  std::vector<Time> loads;
  for (const StageCosts& part : costs.parts) loads.push_back(part.forward + part.duration(Kind::backward));
  return parts_of_stages(loads, stages_of_ranks(placement), stages);
}

std::vector<StageCosts> chain_of(const ModelCosts& costs, const Placement& placement) {
  const int stages = stages_of_chain(placement);
  const std::vector<int> cut = cut_of_chain(costs, placement, stages);
  if (!cut.empty()) return cut_parts(costs.parts, cut);
  std::vector<LoadTimes> times;
  for (const StageCosts& part : costs.parts) times.push_back({part.forward, part.recompute, part.backward});
  return divide_parts(costs.parts, stages_of_parts(times, stages_of_ranks(placement), stages));
}

}  // namespace

std::optional<std::string> flaw_of_parts(std::span<const StageCosts> parts) {
  if (parts.empty()) return "it is empty; give what each part of the model costs";
  std::optional<std::string> flaw;
  visit_fields([&](const auto& field) {
    const std::int64_t most = limits_of(field.key).most;
    std::int64_t left = most;
    for (const StageCosts& part : parts) {
      if (field.joined != Joined::sum || flaw) return;
      left -= value_of(part, field).value_or(0);
      if (left >= 0) continue;
      flaw = fmt::format("{} is more than {} over all parts, the most that one stage may have", field.key, most);
    }
  });
  return flaw;
}

std::optional<std::string> flaw_of_cut(std::span<const int> cut, std::size_t parts) {
  if (std::ranges::any_of(cut, [](int count) { return count < 1; })) return "each stage must get a part";
  const auto all = std::accumulate(cut.begin(), cut.end(), std::int64_t{0});
  if (all == static_cast<std::int64_t>(parts)) return std::nullopt;
  return fmt::format("it has {} parts, but the model has {}", all, parts);
}

}  // namespace detail::costs

std::span<const StageCosts> entries_of(const GivenCosts& costs) {
  const auto* model = std::get_if<ModelCosts>(&costs);
  return model != nullptr ? model->parts : std::get<Costs>(costs).stages;
}

std::span<StageCosts> entries_of(GivenCosts& costs) {
  auto* model = std::get_if<ModelCosts>(&costs);
  return model != nullptr ? model->parts : std::get<Costs>(costs).stages;
}

const MachineCosts& machine_of(const GivenCosts& costs) {
  return std::visit([](const MachineCosts& machine) -> const MachineCosts& { return machine; }, costs);
}

void check(const ModelCosts& costs) {
  using namespace detail::costs;
  for (std::size_t part = 0; part < costs.parts.size(); ++part) {
    check_each(costs.parts[part], fmt::format("part {}", part));
  }
  if (const auto flaw = flaw_of_parts(costs.parts)) throw InputError("the parts of the model: " + *flaw);
  if (costs.cut.empty()) return check_machine(costs);
  if (const auto flaw = flaw_of_cut(costs.cut, costs.parts.size())) {
    throw InputError("the cut of the model: " + *flaw);
  }
  check_machine(costs);
}

Costs stage_costs(const ModelCosts& costs, const Placement& placement) {
  check(costs);
  const auto chain = detail::costs::chain_of(costs, placement);
  Costs result{static_cast<const MachineCosts&>(costs), {}};
  for (int i = 0; i < placement.chains(); ++i) result.stages.insert(result.stages.end(), chain.begin(), chain.end());
  check(result, placement);
  return result;
}

std::vector<int> cut_of(const ModelCosts& costs, const Placement& placement) {
  check(costs);
  return detail::costs::cut_of_chain(costs, placement, detail::costs::stages_of_chain(placement));
}

Costs stage_costs(const GivenCosts& costs, const Placement& placement) {
  if (const auto* model = std::get_if<ModelCosts>(&costs)) return stage_costs(*model, placement);
  check(std::get<Costs>(costs), placement);
  return std::get<Costs>(costs);
}

ModelCosts of_model(const GivenCosts& costs, int ranks) {
  if (const auto* model = std::get_if<ModelCosts>(&costs)) return *model;
  const Costs& of_stages = std::get<Costs>(costs);
  ModelCosts model{of_stages, of_stages.stages, {}};
  if (model.parts.size() == 1) model.parts.resize(static_cast<std::size_t>(ranks), of_stages.stages[0]);
  return model;
}

}  // namespace dualpipe
