#include "dualpipe/sim/options/cost_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "dualpipe/sim/costs/costs_file.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/options/value.h"

namespace dualpipe {
namespace {

// Per-stage lists of one field: their common length, 1 where nothing was given.
class StageLists {
 public:
  explicit StageLists(Costs& costs) : costs_(costs) { costs_.stages.resize(1); }

  // `set` is called for every stage with its value.
  template <typename Parse, typename Set>
  void apply(std::string_view option, const std::vector<std::string>& list, Parse parse, Set set) {
    if (list.empty()) return;
    if (list.size() > 1 && costs_.stages.size() == 1) costs_.stages.resize(list.size(), costs_.stages[0]);
    if (list.size() > 1 && list.size() != costs_.stages.size()) {
      throw InputError(
          fmt::format("{}: {} values, but another option has {}; a list has one value for all stages, or one "
                      "per stage",
                      option, list.size(), costs_.stages.size()));
    }
    for (std::size_t i = 0; i < costs_.stages.size(); ++i) {
      set(costs_.stages[i], value_of(option, list.size() == 1 ? list[0] : list[i], parse));
    }
  }

 private:
  Costs& costs_;
};

const std::vector<std::string> communication_models{"latency", "links", "stream"};

CommunicationModel model_of(const std::string& name) {
  check_choice("--comm", name, communication_models);
  return name == "links"    ? CommunicationModel::links
         : name == "stream" ? CommunicationModel::stream
                            : CommunicationModel::latency;
}

// Whether anything moves over links that has a size.
bool has_bytes_to_send(std::span<const StageCosts> stages, bool reduces) {
  return std::ranges::any_of(
      stages, [=](const StageCosts& stage) { return stage.message > 0 || (reduces && stage.gradients > 0); });
}

[[noreturn]] void refuse(const char* option, const std::string& why) { throw UsageError(option, why); }

std::string without_pairs() {
  return fmt::format("nothing that runs has F&B pairs; leave it out, or take {}", families_with(&Family::has_pairs));
}

}  // namespace

std::vector<std::pair<const char*, const std::vector<std::string>*>> CostOptions::lists() const {
  return {{"--forward", &forward},
          {"--backward", &backward},
          {"--weight", &weight},
          {"--recompute-time", &recompute},
          {"--overlapped", &overlapped},
          {"--activation-bytes", &activation},
          {"--recompute-activation-bytes", &recompute_activation},
          {"--weight-stash-bytes", &weight_stash},
          {"--workspace-bytes", &workspace},
          {"--parameter-bytes", &parameters},
          {"--gradient-bytes", &gradients},
          {"--optimizer-bytes", &optimizer},
          {"--bytes", &message}};
}

void CostOptions::check_usage() const {
  for (const auto& [name, values] : lists()) {
    if (!file.empty() && !values->empty()) throw UsageError(fmt::format("--costs excludes {}", name));
  }
}

ByteUnits CostOptions::byte_units(const std::string& first) const {
  const auto units_of = [](const std::string& text) -> std::optional<ByteUnits> {
    if (text.find_first_of("kKMGTP") == std::string::npos) return std::nullopt;
    return text.find('i') == std::string::npos ? ByteUnits::decimal : ByteUnits::binary;
  };
  if (const auto units = units_of(first)) return *units;
  for (const auto* values :
       {&activation, &recompute_activation, &weight_stash, &workspace, &parameters, &gradients, &optimizer, &message}) {
    for (const std::string& value : *values) {
      if (const auto units = units_of(value)) return *units;
    }
  }
  return ByteUnits::binary;
}

std::string CostOptions::given() const {
  for (const auto& [name, values] : lists()) {
    if (!values->empty()) return name;
  }
  const std::initializer_list<std::pair<const char*, bool>> others{
      {"--costs", !file.empty()},          {"--comm", !communication.empty()}, {"--latency", !latency.empty()},
      {"--bandwidth", !bandwidth.empty()}, {"--speed", !speed.empty()},        {"--launch", !launch.empty()}};
  for (const auto& [name, is_given] : others) {
    if (is_given) return name;
  }
  return {};
}

GivenCosts CostOptions::costs() const {
  check_usage();
  GivenCosts costs;
  if (file.empty()) {
    costs = of_stages();
  } else {
    costs = load_costs(file);
  }
  std::visit([&](MachineCosts& machine) { apply_to(machine); }, costs);
  return costs;
}

Costs CostOptions::of_stages() const {
  Costs costs;
  StageLists lists(costs);
  constexpr Time default_ms = 1'000'000;
  costs.stages[0].forward = costs.stages[0].weight_gradient = default_ms;
  costs.stages[0].backward = 2 * default_ms;
  lists.apply("--forward", forward, parse_duration, [](StageCosts& s, Time t) { s.forward = t; });
  lists.apply("--backward", backward, parse_duration, [](StageCosts& s, Time t) { s.backward = t; });
  lists.apply("--weight", weight, parse_duration, [](StageCosts& s, Time t) { s.weight_gradient = t; });
  lists.apply("--recompute-time", recompute, parse_duration, [](StageCosts& s, Time t) { s.recompute = t; });
  lists.apply("--overlapped", overlapped, parse_duration, [](StageCosts& s, Time t) { s.overlapped = t; });
  lists.apply("--activation-bytes", activation, parse_bytes, [](StageCosts& s, Bytes b) { s.activation = b; });
  lists.apply("--recompute-activation-bytes", recompute_activation, parse_bytes,
              [](StageCosts& s, Bytes b) { s.recompute_activation = b; });
  lists.apply("--weight-stash-bytes", weight_stash, parse_bytes, [](StageCosts& s, Bytes b) { s.weight_stash = b; });
  lists.apply("--workspace-bytes", workspace, parse_bytes, [](StageCosts& s, Bytes b) {
    s.forward_workspace = s.backward_workspace = s.input_gradient_workspace = s.weight_gradient_workspace = b;
  });
  lists.apply("--parameter-bytes", parameters, parse_bytes, [](StageCosts& s, Bytes b) { s.parameters = b; });
  lists.apply("--gradient-bytes", gradients, parse_bytes, [](StageCosts& s, Bytes b) { s.gradients = b; });
  lists.apply("--optimizer-bytes", optimizer, parse_bytes, [](StageCosts& s, Bytes b) { s.optimizer = b; });
  lists.apply("--bytes", message, parse_bytes, [](StageCosts& s, Bytes b) { s.message = b; });
  for (StageCosts& stage : costs.stages) {
    if (stage.weight_gradient > stage.backward) {
      throw InputError(
          fmt::format("--weight: W is {} ns and part of the full backward B, which is only {} ns; give a "
                      "longer --backward (I = B - W)",
                      stage.weight_gradient, stage.backward));
    }
    stage.input_gradient = stage.backward - stage.weight_gradient;
  }
  return costs;
}

void CostOptions::apply_to(MachineCosts& costs) const {
  if (!communication.empty()) costs.model = model_of(communication);
  if (!latency.empty()) costs.latency = value_of("--latency", latency, parse_duration);
  if (!bandwidth.empty()) costs.bandwidth = value_of("--bandwidth", bandwidth, parse_bandwidth);
  if (!launch.empty()) costs.launch = value_of("--launch", launch, parse_duration);
  if (!jitter.empty()) costs.jitter = value_of("--jitter", jitter, parse_real);
  if (!seed.empty()) {
    const auto any = [](std::string_view text) {
      return parse_integer(text, 0, std::numeric_limits<std::int64_t>::max());
    };
    costs.seed = static_cast<std::uint64_t>(value_of("--seed", seed, any));
  }
  if (!speed.empty()) costs.speed.clear();
  for (const std::string& each : speed) costs.speed.push_back(value_of("--speed", each, parse_real));
  costs.release_early = costs.release_early || release_early;
}

void CostOptions::check_used(const Used& used, const GivenCosts& costs) const {
  const MachineCosts& machine = machine_of(costs);
  if (!overlapped.empty() && !used.pairs) {
    refuse("--overlapped", without_pairs());
  }
  if (!weight_stash.empty() && !used.weight_gradients) {
    refuse("--weight-stash-bytes", "nothing that runs has W apart from B, and so holds anything for it; leave it out");
  }
  if (!bandwidth.empty() && machine.model == CommunicationModel::latency) {
    refuse("--bandwidth", "it does nothing with --comm latency; add --comm links or --comm stream");
  }
  if (!bandwidth.empty() && !has_bytes_to_send(entries_of(costs), used.reduces)) {
    refuse("--bandwidth", "messages have no bytes; add --bytes");
  }
  if (!seed.empty() && machine.jitter == 0) refuse("--seed", "nothing is drawn; add --jitter");
  if (release_early && !used.pairs) {
    refuse("--release-early", without_pairs());
  }
  if (release_early && machine.model == CommunicationModel::stream) {
    refuse("--release-early",
           "with --comm stream a batch of messages goes as a whole, at the pair's end; leave it out");
  }
}

}  // namespace dualpipe
