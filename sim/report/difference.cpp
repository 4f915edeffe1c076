#include "sim/report/difference.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string_view>
#include <utility>

#include "sim/report/gantt_layout.h"
#include "sim/report/text_table.h"

namespace dualpipe {
namespace {

constexpr std::array<std::string_view, 5> class_names = {"F", "B", "I", "W", "F&B"};

std::size_t class_of(const Unit& unit) { return unit.is_pair() ? 4 : static_cast<std::size_t>(unit.ops[0].kind); }

// The lower one of two in the middle.
Time median(std::vector<Time> times) {
  if (times.empty()) return 0;
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>((times.size() - 1) / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

// Calls back with each unit of a rank, as planned and as measured.
template <typename Visit>
void for_each_unit(const Program& program, const Timeline& planned, const Timeline& measured, Visit visit) {
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const auto plan = units_of(program, planned, rank);
    const auto real = units_of(program, measured, rank);
    for (std::size_t i = 0; i < plan.size(); ++i) visit(rank, plan[i], real[i]);
  }
}

std::vector<ClassDifference> classes_of(const Program& program, const Timeline& planned, const Timeline& measured) {
  std::array<PlannedMeasured<std::vector<Time>>, class_names.size()> durations;
  for_each_unit(program, planned, measured, [&](int, const Unit& plan, const Unit& real) {
    durations[class_of(plan)].planned.push_back(plan.duration());
    durations[class_of(plan)].measured.push_back(real.duration());
  });
  std::vector<ClassDifference> classes;
  for (std::size_t i = 0; i < class_names.size(); ++i) {
    const std::size_t count = durations[i].planned.size();
    if (count == 0) continue;
    classes.push_back({std::string(class_names[i]),
                       count,
                       {median(std::move(durations[i].planned)), median(std::move(durations[i].measured))}});
  }
  return classes;
}

StartError starts_of(const Program& program, const Timeline& planned, const Timeline& measured) {
  const Time planned_begin = bounds_of(planned).start;
  const Time measured_begin = bounds_of(measured).start;
  StartError error;
  std::vector<Time> errors;
  for_each_unit(program, planned, measured, [&](int rank, const Unit& plan, const Unit& real) {
    const Time off = std::abs((real.span.start - measured_begin) - (plan.span.start - planned_begin));
    errors.push_back(off);
    if (!error.op.empty() && off <= error.largest) return;
    error.largest = off;
    error.op = cell_text(plan.ops);
    error.rank = rank;
  });
  error.median = median(std::move(errors));
  return error;
}

std::string ratio_text(const PlannedMeasured<Time>& times) {
  if (times.planned == 0) return "";
  return format_rate(static_cast<double>(times.measured) / static_cast<double>(times.planned));
}

std::string whole_text(const Difference& difference) {
  TextTable table({{"", Align::left}, {"planned"}, {"measured"}, {"measured / planned"}, {"", Align::left}});
  const auto add = [&](const std::string& what, const PlannedMeasured<Time>& times, const std::string& remark) {
    table.add_row({what, format_time(times.planned), format_time(times.measured), ratio_text(times), remark});
  };
  add("makespan", difference.makespan, "");
  for (const ClassDifference& each : difference.classes) {
    add(each.op_class, each.median, fmt::format("median of {}", each.count));
  }
  std::string text = table.to_text();
  if (!difference.starts.op.empty()) {
    text += fmt::format("starts    off by {} in the median, {} at most: {} of rank {}\n",
                        format_time(difference.starts.median), format_time(difference.starts.largest),
                        difference.starts.op, difference.starts.rank);
  }
  return text;
}

std::string ranks_text(const Difference& difference) {
  TextTable table({{"rank"},
                   {"busy planned"},
                   {"measured"},
                   {"idle planned"},
                   {"measured"},
                   {"peak act. planned"},
                   {"measured"},
                   {"peak memory planned"},
                   {"measured"}});
  for (const RankDifference& rank : difference.per_rank) {
    table.add_row({std::to_string(rank.rank), format_time(rank.busy.planned), format_time(rank.busy.measured),
                   format_time(rank.idle.planned), format_time(rank.idle.measured),
                   std::to_string(rank.peak.planned.activations), std::to_string(rank.peak.measured.activations),
                   format_bytes(rank.peak.planned.memory), format_bytes(rank.peak.measured.memory)});
  }
  return table.to_text();
}

using Json = nlohmann::ordered_json;

Json to_json(const RankDifference& rank) {
  return {{"rank", rank.rank},
          {"planned_busy_ns", rank.busy.planned},
          {"measured_busy_ns", rank.busy.measured},
          {"planned_idle_ns", rank.idle.planned},
          {"measured_idle_ns", rank.idle.measured},
          {"planned_peak_activations", rank.peak.planned.activations},
          {"measured_peak_activations", rank.peak.measured.activations},
          {"planned_peak_memory_bytes", rank.peak.planned.memory},
          {"measured_peak_memory_bytes", rank.peak.measured.memory}};
}

}  // namespace

Difference difference(const Program& program, const PlannedMeasured<const Timeline&>& timelines,
                      const PlannedMeasured<std::span<const RankPeak>>& peaks) {
  const auto& [planned, measured] = timelines;
  Difference result;
  result.makespan = {planned.makespan(), measured.makespan()};
  result.classes = classes_of(program, planned, measured);
  result.starts = starts_of(program, planned, measured);
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const auto i = static_cast<std::size_t>(rank);
    result.per_rank.push_back({rank,
                               {planned.ranks[i].busy, measured.ranks[i].busy},
                               {planned.idle(rank), measured.idle(rank)},
                               {peaks.planned[i], peaks.measured[i]}});
  }
  return result;
}

std::string to_text(const Difference& difference) { return whole_text(difference) + "\n" + ranks_text(difference); }

void write_json(std::ostream& out, const Difference& difference) {
  Json json;
  json["planned_makespan_ns"] = difference.makespan.planned;
  json["measured_makespan_ns"] = difference.makespan.measured;
  json["classes"] = Json::array();
  for (const ClassDifference& each : difference.classes) {
    json["classes"].push_back(Json{{"class", each.op_class},
                                   {"count", each.count},
                                   {"planned_median_ns", each.median.planned},
                                   {"measured_median_ns", each.median.measured}});
  }
  json["start_error"] = {{"median_ns", difference.starts.median},
                         {"largest_ns", difference.starts.largest},
                         {"largest_at", difference.starts.op},
                         {"rank", difference.starts.rank}};
  json["per_rank"] = Json::array();
  for (const RankDifference& rank : difference.per_rank) json["per_rank"].push_back(to_json(rank));
  out << json.dump(2, ' ', false, Json::error_handler_t::replace) << '\n';
}

}  // namespace dualpipe
