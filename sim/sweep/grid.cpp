#include "dualpipe/sim/sweep/grid.h"

#include <array>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>
#include <utility>

#include "dualpipe/sim/costs/costs_file.h"
#include "dualpipe/sim/costs/costs_json.h"
#include "dualpipe/sim/costs/set_cost.h"
#include "dualpipe/sim/estimate/estimate_file.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/json.h"
#include "dualpipe/sim/schedule/json_reader.h"
#include "dualpipe/sim/schedule/op.h"

namespace dualpipe {

using detail::schedule::JsonValue;
using Json = nlohmann::ordered_json;

namespace {

std::vector<std::string> texts_of(const JsonValue& list) {
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < list.list_size(); ++i) texts.push_back(list[i].text());
  return texts;
}

template <typename Number>
std::vector<Number> numbers_of(const JsonValue& list, std::int64_t most) {
  std::vector<Number> numbers;
  for (std::size_t i = 0; i < list.list_size(); ++i) numbers.push_back(static_cast<Number>(list[i].integer(1, most)));
  return numbers;
}

std::vector<SweepAxis> axes_of(const JsonValue& list) {
  constexpr std::array<std::string_view, 2> keys{"name", "values"};
  std::vector<SweepAxis> axes;
  for (std::size_t i = 0; i < list.list_size(); ++i) {
    list[i].allow_keys(keys);
    axes.push_back({list[i].at("name").text(), texts_of(list[i].at("values"))});
  }
  return axes;
}

// A schedule's own JSON is a text in this one, whose lists are not as deep.
std::vector<SweepSchedule> files_of(const JsonValue& list, const std::string& source) {
  constexpr std::array<std::string_view, 2> keys{"name", "schedule"};
  std::vector<SweepSchedule> files;
  for (std::size_t i = 0; i < list.list_size(); ++i) {
    list[i].allow_keys(keys);
    const std::string& name = list[i].at("name").text();
    std::istringstream schedule(list[i].at("schedule").text());
    files.push_back({name, read_json(schedule, source + ": " + name)});
  }
  return files;
}

Json files_json(const std::vector<SweepSchedule>& files) {
  Json list = Json::array();
  for (const SweepSchedule& each : files) {
    std::ostringstream schedule;
    std::visit([&](const auto& loaded) { write_json(schedule, loaded); }, each.schedule);
    list.push_back(Json{{"name", each.name}, {"schedule", Json::parse(schedule.str()).dump()}});
  }
  return list;
}

SweepCluster cluster_of(const JsonValue& object, const nlohmann::json& json, const std::string& source) {
  constexpr std::array<std::string_view, 3> keys{"gpus", "global_batch", "estimate"};
  object.allow_keys(keys);
  SweepCluster cluster;
  cluster.gpus = static_cast<int>(object.at("gpus").integer(1, 1'000'000));
  cluster.global_batch = object.at("global_batch").integer(1, 1'000'000'000);
  (void)object.at("estimate");
  cluster.estimate = estimate_of_json(json.at("estimate").dump(), source);
  return cluster;
}

std::vector<std::string_view> top_level_keys() {
  std::vector<std::string_view> keys{"schedules", "files", "ranks",  "microbatches",
                                     "axes",      "costs", "tokens", "cluster"};
  for (const Parameter& each : parameters()) keys.push_back(each.name);
  return keys;
}

SweepGrid grid_of(const nlohmann::json& json, const std::string& source) {
  const JsonValue document(json, source);
  document.allow_keys(top_level_keys());
  SweepGrid grid;
  if (const auto list = document.find("schedules")) grid.schedules = texts_of(*list);
  if (const auto list = document.find("files")) grid.files = files_of(*list, source);
  if (const auto list = document.find("ranks")) grid.ranks = numbers_of<int>(*list, stage_count_max);
  if (const auto list = document.find("microbatches")) {
    grid.micro_batches = numbers_of<std::int64_t>(*list, micro_batch_count_max);
  }
  for (const Parameter& each : parameters()) {
    const auto list = document.find(each.name);
    grid.parameters.push_back(list ? numbers_of<int>(*list, each.most) : std::vector<int>());
  }
  if (const auto list = document.find("axes")) grid.axes = axes_of(*list);
  if (const auto tokens = document.find("tokens")) grid.tokens = tokens->number();
  if (const auto object = document.find("cluster")) grid.cluster = cluster_of(*object, json.at("cluster"), source);
  (void)document.at("costs");
  std::istringstream costs(json.at("costs").dump());
  grid.costs = read_costs(costs, source);
  return grid;
}

}  // namespace

std::vector<std::string> sweep_axis_names() { return {"memory-limit", "recompute", "cut", "speed", "straggler"}; }

std::string to_json_line(const SweepGrid& grid) {
  Json json{{"schedules", grid.schedules}};
  if (!grid.files.empty()) json["files"] = files_json(grid.files);
  json["ranks"] = grid.ranks;
  json["microbatches"] = grid.micro_batches;
  for (std::size_t i = 0; i < grid.parameters.size(); ++i) {
    if (!grid.parameters[i].empty()) json[std::string(parameters()[i].name)] = grid.parameters[i];
  }
  json["axes"] = Json::array();
  for (const SweepAxis& each : grid.axes) json["axes"].push_back(Json{{"name", each.name}, {"values", each.values}});
  if (grid.tokens) json["tokens"] = *grid.tokens;
  if (grid.cluster) {
    json["cluster"] = Json{{"gpus", grid.cluster->gpus},
                           {"global_batch", grid.cluster->global_batch},
                           {"estimate", Json::parse(to_json_line(grid.cluster->estimate))}};
  }
  json["costs"] = detail::costs::costs_json(grid.costs);
  return json.dump(-1, ' ', true, Json::error_handler_t::replace);
}

SweepGrid grid_of_json(const std::string& text, const std::string& source) {
  std::istringstream in(text);
  return grid_of(detail::schedule::read_json_document(in, source, {.depth_max = 6}), source);
}

}  // namespace dualpipe
