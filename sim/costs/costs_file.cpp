#include "dualpipe/sim/costs/costs_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <istream>
#include <ostream>
#include <string_view>
#include <vector>

#include "dualpipe/sim/costs/fields.h"
#include "dualpipe/sim/costs/rules.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/input_file.h"
#include "dualpipe/sim/schedule/json_reader.h"
#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {

using detail::schedule::JsonValue;
using detail::schedule::quote;
using detail::schedule::read_json_document;

namespace detail::costs {
namespace {

constexpr std::string_view format_name = "dualpipe-costs";
constexpr int format_version = 1;
constexpr std::size_t depth_max = 5;  // of the parts of an estimate that were measured
constexpr std::array<std::string_view, 14> top_level_keys = {"format",        "version",      "estimate",
                                                             "stages",        "parts",        "cut",
                                                             "communication", "latency_ns",   "bandwidth_bytes_per_s",
                                                             "launch_ns",     "speed",        "jitter",
                                                             "seed",          "release_early"};
constexpr std::array<std::string_view, 3> model_names = {"latency", "links", "stream"};  // as CommunicationModel

constexpr std::string_view count_key = "count";  // of a list's entry
constexpr auto stage_keys = [] {
  std::array<std::string_view, required_durations.size() + sizes.size() + 5> keys;
  keys[0] = count_key;
  std::size_t count = 1;
  visit_fields([&](const auto& field) { keys[count++] = field.key; });
  return keys;
}();

StageCosts read_stage(const JsonValue& object) {
  object.allow_keys(stage_keys);
  StageCosts costs;
  for (const Field& field : required_durations) costs.*field.member = object.at(field.key).integer(0, time_max);
  visit_fields([&](const auto& field) {
    const Limits limits = limits_of(field.key);
    if (const auto value = object.find(field.key)) costs.*field.member = value->integer(limits.least, limits.most);
  });
  if (const auto flaw = flaw_of_recompute(costs)) object.fail(*flaw);
  return costs;
}

std::vector<StageCosts> read_stages(const JsonValue& list) {
  std::vector<StageCosts> stages;
  for (std::size_t i = 0; i < list.list_size(); ++i) {
    const StageCosts each = read_stage(list[i]);
    const auto count = list[i].find(count_key);
    stages.resize(stages.size() + static_cast<std::size_t>(count ? count->integer(1, stage_count_max) : 1), each);
    if (stages.size() > stage_count_max) list.fail(fmt::format("more than {} of them", stage_count_max));
  }
  return stages;
}

CommunicationModel read_model(const JsonValue& value) {
  const auto* const match = std::ranges::find(model_names, value.text());
  if (match == model_names.end()) {
    value.fail(
        fmt::format("{} is no communication model; there are {}", quote(value.text()), fmt::join(model_names, ", ")));
  }
  return static_cast<CommunicationModel>(match - model_names.begin());
}

// A number that `is_valid`, or the error that names the rule.
double read_number(const JsonValue& value, bool (*is_valid)(double), std::string_view rule) {
  const double number = value.number();
  if (!is_valid(number)) value.fail(fmt::format("{}; {} is not", rule, number));
  return number;
}

std::vector<double> read_speeds(const JsonValue& list) {
  if (list.list_size() > stage_count_max) list.fail(fmt::format("more than {} ranks", stage_count_max));
  std::vector<double> speeds;
  for (std::size_t i = 0; i < list.list_size(); ++i) speeds.push_back(read_number(list[i], is_speed, speed_rule));
  return speeds;
}

void read_machine(const JsonValue& document, MachineCosts& costs) {
  if (const auto value = document.find("communication")) costs.model = read_model(*value);
  if (const auto value = document.find("latency_ns")) costs.latency = value->integer(0, time_max);
  if (const auto value = document.find("bandwidth_bytes_per_s")) {
    costs.bandwidth = read_number(*value, is_bandwidth, bandwidth_rule);
  }
  if (const auto value = document.find("launch_ns")) costs.launch = value->integer(0, time_max);
  if (const auto value = document.find("speed")) costs.speed = read_speeds(*value);
  if (const auto value = document.find("jitter")) costs.jitter = read_number(*value, is_jitter, jitter_rule);
  if (const auto value = document.find("seed")) costs.seed = value->unsigned_integer();
  if (const auto value = document.find("release_early")) costs.release_early = value->boolean();
}

ModelCosts read_model_costs(const JsonValue& document) {
  ModelCosts costs;
  costs.parts = read_stages(document.at("parts"));
  if (const auto flaw = flaw_of_parts(costs.parts)) document.at("parts").fail(*flaw);
  if (const auto list = document.find("cut")) {
    if (list->list_size() > stage_count_max) list->fail(fmt::format("more than {} stages", stage_count_max));
    for (std::size_t i = 0; i < list->list_size(); ++i) {
      costs.cut.push_back(static_cast<int>((*list)[i].integer(1, stage_count_max)));
    }
    if (const auto flaw = flaw_of_cut(costs.cut, costs.parts.size())) list->fail(*flaw);
  }
  read_machine(document, costs);
  return costs;
}

Costs read_stage_costs(const JsonValue& document) {
  if (const auto cut = document.find("cut")) cut->fail("it says which parts a stage has; \"stages\" have none");
  Costs costs;
  costs.stages = read_stages(document.at("stages"));
  if (costs.stages.empty()) document.at("stages").fail("it is empty; give one entry for all stages, or one for each");
  read_machine(document, costs);
  return costs;
}

void write_list(std::ostream& out, std::string_view key, const std::vector<StageCosts>& list) {
  out << fmt::format("{{\n  \"format\": \"{}\", \"version\": {},\n  \"{}\": [", format_name, format_version, key);
  std::string_view separator = "\n    {";
  for (auto entry = list.begin(); entry != list.end();) {
    out << separator;
    separator = "";
    const auto other = std::find_if(entry, list.end(), [&](const StageCosts& each) { return each != *entry; });
    if (other - entry > 1) {
      out << fmt::format("\"{}\": {}", count_key, other - entry);
      separator = ", ";
    }
    visit_fields([&](const auto& field) {
      const auto value = value_of(*entry, field);
      if (!value) return;
      out << separator << fmt::format("\"{}\": {}", field.key, *value);
      separator = ", ";
    });
    out << '}';
    separator = ",\n    {";
    entry = other;
  }
  out << "\n  ],\n";
}

void write_machine(std::ostream& out, const MachineCosts& costs) {
  // fmt's {} of a double is the shortest text that reads back as the same one, in any locale.
  out << fmt::format("  \"communication\": \"{}\", \"latency_ns\": {}, \"bandwidth_bytes_per_s\": {},",
                     model_names[static_cast<std::size_t>(costs.model)], costs.latency, costs.bandwidth);
  out << fmt::format(
      " \"launch_ns\": {},\n  \"speed\": [{}], \"jitter\": {}, \"seed\": {}, \"release_early\": {}\n}}\n", costs.launch,
      fmt::join(costs.speed, ", "), costs.jitter, costs.seed, costs.release_early);
}

}  // namespace
}  // namespace detail::costs

GivenCosts read_costs(std::istream& in, const std::string& source) {
  using namespace detail::costs;
  const nlohmann::json json = read_json_document(in, source, {format_name, format_version, top_level_keys, depth_max});
  const JsonValue document(json, source);
  const bool has_parts = document.find("parts").has_value();
  const bool has_stages = document.find("stages").has_value();
  if (has_parts && has_stages) {
    document.fail("it has \"parts\" and \"stages\"; give what the parts of a model cost, or the stages of a schedule");
  }
  if (!has_parts && !has_stages) document.fail("\"parts\" or \"stages\" is missing");
  if (has_parts) return read_model_costs(document);
  return read_stage_costs(document);
}

GivenCosts load_costs(const std::string& path) {
  auto in = open_input_file(path);
  return read_costs(in, path);
}

void write_costs(std::ostream& out, const GivenCosts& costs) {
  using namespace detail::costs;
  if (const auto* stages = std::get_if<Costs>(&costs)) {
    write_list(out, "stages", stages->stages);
    return write_machine(out, *stages);
  }
  const auto& model = std::get<ModelCosts>(costs);
  write_list(out, "parts", model.parts);
  if (!model.cut.empty()) out << fmt::format("  \"cut\": [{}],\n", fmt::join(model.cut, ", "));
  write_machine(out, model);
}

}  // namespace dualpipe
