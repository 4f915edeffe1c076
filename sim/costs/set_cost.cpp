#include "dualpipe/sim/costs/set_cost.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/costs/rules.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/nearest.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {
namespace {

using detail::schedule::quote;

constexpr std::array<std::string_view, 3> model_names = {"latency", "links", "stream"};  // as CommunicationModel

// A value: as it is, or a multiple of what was there before.
class Setting {
 public:
  explicit Setting(std::string_view text) : text_(text) {
    if (!text.ends_with('x')) return;
    factor_ = parse_real(text.substr(0, text.size() - 1));
    if (*factor_ < 0) throw InputError(fmt::format("{} is negative", quote(text)));
  }

  [[nodiscard]] std::string_view text() const { return text_; }
  [[nodiscard]] bool is_multiple() const { return factor_.has_value(); }
  [[nodiscard]] double times(double value) const { return value * *factor_; }
  // Half up.
  [[nodiscard]] std::int64_t times(std::int64_t value) const {
    const double product = times(static_cast<double>(value));
    if (product >= 9e18) throw InputError(fmt::format("{} of {} is too large", text_, value));
    return *factor_ == 1 ? value : static_cast<std::int64_t>(std::floor(product + 0.5));
  }

  template <typename Parse>
  [[nodiscard]] std::int64_t of(std::int64_t before, Parse parse) const {
    return is_multiple() ? times(before) : parse(text_);
  }

 private:
  std::string_view text_;
  std::optional<double> factor_;
};

void set_backward(StageCosts& costs, const Setting& setting) {
  costs.backward = setting.of(costs.backward, parse_duration);
  if (setting.is_multiple()) costs.weight_gradient = setting.times(costs.weight_gradient);
  costs.input_gradient =
      setting.is_multiple() ? setting.times(costs.input_gradient) : costs.backward - costs.weight_gradient;
}

void set_weight(StageCosts& costs, const Setting& setting) {
  const Time before = costs.weight_gradient;
  costs.weight_gradient = setting.of(before, parse_duration);
  if (setting.is_multiple()) {
    costs.backward += costs.weight_gradient - before;
  } else {
    costs.input_gradient = costs.backward - costs.weight_gradient;
  }
}

template <auto... Members>
void set_time(StageCosts& costs, const Setting& setting) {
  ((costs.*Members = setting.of(costs.*Members, parse_duration)), ...);
}
template <auto... Members>
void set_bytes(StageCosts& costs, const Setting& setting) {
  ((costs.*Members = setting.of(costs.*Members, parse_bytes)), ...);
}

// What is not known has no multiple.
template <auto Member, typename Parse>
void set_optional(StageCosts& costs, const Setting& setting, Parse parse) {
  auto& value = costs.*Member;
  if (value || !setting.is_multiple()) value = setting.of(value.value_or(0), parse);
}

struct EntryCost {
  std::string_view name;
  void (*set)(StageCosts& costs, const Setting& setting);
};
constexpr std::array entry_costs{
    EntryCost{"forward", set_time<&StageCosts::forward>},
    EntryCost{"backward", set_backward},
    EntryCost{"weight", set_weight},
    EntryCost{"recompute-time", set_time<&StageCosts::recompute>},
    EntryCost{"overlapped",
              [](StageCosts& costs, const Setting& setting) {
                set_optional<&StageCosts::overlapped>(costs, setting, parse_duration);
              }},
    EntryCost{"activation-bytes", set_bytes<&StageCosts::activation>},
    EntryCost{"recompute-activation-bytes",
              [](StageCosts& costs, const Setting& setting) {
                set_optional<&StageCosts::recompute_activation>(costs, setting, parse_bytes);
              }},
    EntryCost{"weight-stash-bytes", set_bytes<&StageCosts::weight_stash>},
    EntryCost{"workspace-bytes",
              set_bytes<&StageCosts::forward_workspace, &StageCosts::backward_workspace,
                        &StageCosts::input_gradient_workspace, &StageCosts::weight_gradient_workspace>},
    EntryCost{"parameter-bytes", set_bytes<&StageCosts::parameters>},
    EntryCost{"gradient-bytes", set_bytes<&StageCosts::gradients>},
    EntryCost{"optimizer-bytes", set_bytes<&StageCosts::optimizer>},
    EntryCost{"bytes", set_bytes<&StageCosts::message>}};

void set_model(MachineCosts& costs, const Setting& setting) {
  const auto* const found = std::ranges::find(model_names, setting.text());
  if (found == model_names.end()) {
    throw InputError(fmt::format("it is one of {}, and not {}", fmt::join(model_names, ", "), quote(setting.text())));
  }
  costs.model = static_cast<CommunicationModel>(found - model_names.begin());
}

void set_seed(MachineCosts& costs, const Setting& setting) {
  costs.seed = static_cast<std::uint64_t>(parse_integer(setting.text(), 0, std::numeric_limits<std::int64_t>::max()));
}

struct MachineCost {
  std::string_view name;
  void (*set)(MachineCosts& costs, const Setting& setting);
};
constexpr std::array machine_costs{
    MachineCost{"comm", set_model},
    MachineCost{"latency", [](MachineCosts& costs,
                              const Setting& setting) { costs.latency = setting.of(costs.latency, parse_duration); }},
    MachineCost{"bandwidth",
                [](MachineCosts& costs, const Setting& setting) {
                  costs.bandwidth =
                      setting.is_multiple() ? setting.times(costs.bandwidth) : parse_bandwidth(setting.text());
                }},
    MachineCost{"launch", [](MachineCosts& costs,
                             const Setting& setting) { costs.launch = setting.of(costs.launch, parse_duration); }},
    MachineCost{"jitter",
                [](MachineCosts& costs, const Setting& setting) {
                  costs.jitter = setting.is_multiple() ? setting.times(costs.jitter) : parse_real(setting.text());
                }},
    MachineCost{"seed", set_seed}};

const MachineCost* machine_cost(std::string_view name) {
  const auto* const found = std::ranges::find(machine_costs, name, &MachineCost::name);
  return found == machine_costs.end() ? nullptr : found;
}

void set_entry(StageCosts& costs, const EntryCost& cost, const Setting& setting) {
  cost.set(costs, setting);
  if (costs.weight_gradient > costs.backward) {
    throw InputError(
        fmt::format("W would be {} ns, and part of the full backward B, which is only {} ns; give a longer backward "
                    "(I = B - W)",
                    costs.weight_gradient, costs.backward));
  }
  detail::costs::check_each(costs, "an entry");
}

}  // namespace

std::vector<std::string> cost_names() {
  std::vector<std::string> names;
  for (const EntryCost& each : entry_costs) names.emplace_back(each.name);
  for (const MachineCost& each : machine_costs) names.emplace_back(each.name);
  return names;
}

bool is_machine_cost(std::string_view name) { return machine_cost(name) != nullptr; }

void set_cost(GivenCosts& costs, std::string_view name, std::string_view value) {
  const auto* const entry = std::ranges::find(entry_costs, name, &EntryCost::name);
  const MachineCost* const machine = machine_cost(name);
  if (entry == entry_costs.end() && machine == nullptr) {
    const std::vector<std::string> names = cost_names();
    throw InputError(fmt::format("there is no cost named {}{}; there are {}", quote(name), did_you_mean(name, names),
                                 fmt::join(names, ", ")));
  }
  try {
    const Setting setting(value);
    if (machine != nullptr) {
      std::visit(
          [&](MachineCosts& each) {
            machine->set(each, setting);
            detail::costs::check_machine(each);
          },
          costs);
      return;
    }
    for (StageCosts& each : entries_of(costs)) set_entry(each, *entry, setting);
  } catch (const InputError& error) {
    throw InputError(fmt::format("{}: {}", name, error.what()));
  }
}

}  // namespace dualpipe
