#include "dualpipe/sim/costs/costs.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <istream>
#include <ostream>
#include <string_view>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/input_file.h"
#include "dualpipe/sim/schedule/json_reader.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {

using detail::schedule::JsonValue;
using detail::schedule::quote;
using detail::schedule::read_json_document;

namespace {

constexpr double speed_max = 1e6;
constexpr double speed_min = 1e-6;

constexpr std::string_view format_name = "dualpipe-costs";
constexpr int format_version = 1;
constexpr std::array<std::string_view, 11> top_level_keys = {
    "format",    "version", "stages", "communication", "latency_ns",   "bandwidth_bytes_per_s",
    "launch_ns", "speed",   "jitter", "seed",          "release_early"};
constexpr std::array<std::string_view, 3> model_names = {"latency", "links", "stream"};  // as CommunicationModel

// A member of StageCosts, and its name in the file.
struct Field {
  std::string_view key;
  std::int64_t StageCosts::*member;
};
constexpr std::array<Field, 4> required_durations = {{{"forward_ns", &StageCosts::forward},
                                                      {"backward_ns", &StageCosts::backward},
                                                      {"input_gradient_ns", &StageCosts::input_gradient},
                                                      {"weight_gradient_ns", &StageCosts::weight_gradient}}};
constexpr Field recompute = {"recompute_ns", &StageCosts::recompute};
constexpr std::array<Field, 10> sizes = {{{"activation_bytes", &StageCosts::activation},
                                          {"weight_stash_bytes", &StageCosts::weight_stash},
                                          {"message_bytes", &StageCosts::message},
                                          {"forward_workspace_bytes", &StageCosts::forward_workspace},
                                          {"backward_workspace_bytes", &StageCosts::backward_workspace},
                                          {"input_gradient_workspace_bytes", &StageCosts::input_gradient_workspace},
                                          {"weight_gradient_workspace_bytes", &StageCosts::weight_gradient_workspace},
                                          {"parameter_bytes", &StageCosts::parameters},
                                          {"gradient_bytes", &StageCosts::gradients},
                                          {"optimizer_bytes", &StageCosts::optimizer}}};
constexpr std::string_view overlapped_key = "overlapped_ns";
constexpr std::string_view overlapped_workspace_key = "overlapped_workspace_bytes";

constexpr auto stage_keys = [] {
  std::array<std::string_view, required_durations.size() + sizes.size() + 3> keys;
  auto* end = std::ranges::transform(required_durations, keys.begin(), &Field::key).out;
  *end++ = recompute.key;
  *end++ = overlapped_key;
  end = std::ranges::transform(sizes, end, &Field::key).out;
  *end++ = overlapped_workspace_key;
  return keys;
}();

bool is_speed(double speed) { return speed >= speed_min && speed <= speed_max; }
bool is_jitter(double jitter) { return jitter >= 0 && jitter < 1; }
bool is_bandwidth(double bandwidth) { return bandwidth >= 0 && std::isfinite(bandwidth); }

constexpr std::string_view speed_rule = "a speed must be from 1e-6 to 1e6";
constexpr std::string_view jitter_rule = "the jitter must be at least 0 and below 1";
constexpr std::string_view bandwidth_rule =
    "the bandwidth must be a finite number of bytes per second, or 0 for infinite";

void check_time(std::string_view what, Time time) {
  if (time < 0 || time > time_max) {
    throw InputError(fmt::format("{} is {} ns; it must be from 0 to {} ns, a day", what, time, time_max));
  }
}

void check_stage(const StageCosts& costs, std::size_t stage) {
  const auto check_duration = [&](std::string_view key, Time time) {
    check_time(fmt::format("stage {}: {}", stage, key), time);
  };
  const auto check_bytes = [&](std::string_view key, Bytes bytes, Bytes least, std::string_view least_text) {
    if (bytes >= least && bytes <= bytes_max) return;
    throw InputError(
        fmt::format("stage {}: {} is {}; it must be from {} to 2^60 bytes", stage, key, bytes, least_text));
  };
  for (const Field& field : required_durations) check_duration(field.key, costs.*field.member);
  check_duration(recompute.key, costs.recompute);
  if (costs.overlapped) check_duration(overlapped_key, *costs.overlapped);
  for (const Field& field : sizes) check_bytes(field.key, costs.*field.member, 0, "0");
  if (costs.overlapped_workspace) {
    check_bytes(overlapped_workspace_key, *costs.overlapped_workspace, -bytes_max, "-2^60");
  }
}

StageCosts read_stage(const JsonValue& object) {
  object.allow_keys(stage_keys);
  StageCosts costs;
  for (const Field& field : required_durations) costs.*field.member = object.at(field.key).integer(0, time_max);
  if (const auto value = object.find(recompute.key)) costs.*recompute.member = value->integer(0, time_max);
  if (const auto value = object.find(overlapped_key)) costs.overlapped = value->integer(0, time_max);
  if (const auto value = object.find(overlapped_workspace_key)) {
    costs.overlapped_workspace = value->integer(-bytes_max, bytes_max);
  }
  for (const Field& field : sizes) {
    if (const auto value = object.find(field.key)) costs.*field.member = value->integer(0, bytes_max);
  }
  return costs;
}

std::vector<StageCosts> read_stages(const JsonValue& list) {
  if (list.list_size() == 0) list.fail("it is empty; give one entry for all stages, or one for each");
  if (list.list_size() > stage_count_max) list.fail(fmt::format("more than {} stages", stage_count_max));
  std::vector<StageCosts> stages;
  for (std::size_t i = 0; i < list.list_size(); ++i) stages.push_back(read_stage(list[i]));
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

}  // namespace

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
  switch (pass) {
    case Kind::forward:
      return forward_workspace;
    case Kind::backward:
      return backward_workspace;
    case Kind::input_gradient:
      return input_gradient_workspace;
    default:
      assert(pass == Kind::weight_gradient);
      return weight_gradient_workspace;
  }
}

void check(const Costs& costs) {
  if (costs.stages.empty()) throw InputError("costs are given for no stage; give one entry for all, or one for each");
  for (std::size_t stage = 0; stage < costs.stages.size(); ++stage) check_stage(costs.stages[stage], stage);
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

Costs read_costs(std::istream& in, const std::string& source) {
  const nlohmann::json json = read_json_document(in, source, {format_name, format_version, top_level_keys});
  const JsonValue document(json, source);
  Costs costs;
  costs.stages = read_stages(document.at("stages"));
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
  return costs;
}

Costs load_costs(const std::string& path) {
  auto in = open_input_file(path);
  return read_costs(in, path);
}

void write_costs(std::ostream& out, const Costs& costs) {
  out << fmt::format("{{\n  \"format\": \"{}\", \"version\": {},\n  \"stages\": [", format_name, format_version);
  std::string_view separator = "\n    {";
  for (const StageCosts& stage : costs.stages) {
    out << separator;
    for (const Field& field : required_durations) out << fmt::format("\"{}\": {}, ", field.key, stage.*field.member);
    out << fmt::format("\"{}\": {}", recompute.key, stage.recompute);
    if (stage.overlapped) out << fmt::format(", \"{}\": {}", overlapped_key, *stage.overlapped);
    for (const Field& field : sizes) out << fmt::format(", \"{}\": {}", field.key, stage.*field.member);
    if (stage.overlapped_workspace) {
      out << fmt::format(", \"{}\": {}", overlapped_workspace_key, *stage.overlapped_workspace);
    }
    out << '}';
    separator = ",\n    {";
  }
  // fmt's {} of a double is the shortest text that reads back as the same one, in any locale.
  out << fmt::format("\n  ],\n  \"communication\": \"{}\", \"latency_ns\": {}, \"bandwidth_bytes_per_s\": {},",
                     model_names[static_cast<std::size_t>(costs.model)], costs.latency, costs.bandwidth);
  out << fmt::format(
      " \"launch_ns\": {},\n  \"speed\": [{}], \"jitter\": {}, \"seed\": {}, \"release_early\": {}\n}}\n", costs.launch,
      fmt::join(costs.speed, ", "), costs.jitter, costs.seed, costs.release_early);
}

}  // namespace dualpipe
