#include "dualpipe/sim/report/explain_report.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <ostream>
#include <tuple>
#include <utility>

#include "dualpipe/sim/costs/costs_json.h"
#include "dualpipe/sim/explain/cells.h"
#include "dualpipe/sim/report/json_text.h"
#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/simulate/memory.h"

namespace dualpipe {

using detail::explain::Cells;
using detail::report::class_names;

namespace {

Time duration_of(Span span) { return span.end - span.start; }

bool is_message(Op op) { return !is_compute(op.kind); }

// Sums of segments, by what they are due to.
class Sums {
 public:
  Sums(const Program& program, const Cells& cells) : program_(program), cells_(cells) {}

  void add(const IdleSegment& segment) {
    const Time time = duration_of(segment.span);
    Source& source = sources_[{segment.cause, segment.from, to_of(segment.op)}];
    source.time += time;
    source.ops[key(segment.op)].time += time;
    source.ops[key(segment.op)].op = segment.op;
    if (is_message(segment.op) || segment.cause == Cause::launch || segment.cause == Cause::warm_up) return;
    Awaited& awaited = awaited_[key(segment.op)];
    awaited.op = segment.op;
    awaited.rank = segment.from;
    awaited.idle += time;
    if (segment.cause == Cause::straggler) awaited.excess += time;
  }

  [[nodiscard]] std::vector<CauseReport> causes() const {
    std::map<Cause, CauseReport> causes;
    for (const auto& [place, source] : sources_) {
      const auto& [cause, rank, to] = place;
      const auto& most = std::ranges::max_element(source.ops, {}, [](const auto& each) { return each.second.time; });
      CauseReport& report = causes[cause];
      report.cause = cause;
      report.time += source.time;
      report.sources.push_back(
          {rank, to < 0 ? std::nullopt : std::optional(to), source.time, cells_.text(most->second.op)});
    }
    std::vector<CauseReport> sorted;
    for (auto& [cause, report] : causes) {
      std::ranges::stable_sort(report.sources, std::ranges::greater{}, &CauseSource::time);
      sorted.push_back(std::move(report));
    }
    std::ranges::stable_sort(sorted, std::ranges::greater{}, &CauseReport::time);
    return sorted;
  }

  [[nodiscard]] std::vector<AwaitedOp> awaited() const {
    constexpr std::size_t shown_max = 20;
    std::vector<AwaitedOp> ops;
    for (const auto& [id, each] : awaited_) ops.push_back({cells_.text(each.op), each.rank, each.idle, each.excess});
    std::ranges::stable_sort(ops, std::ranges::greater{}, &AwaitedOp::idle);
    if (ops.size() > shown_max) ops.resize(shown_max);
    return ops;
  }

 private:
  using Key = std::tuple<std::uint16_t, std::uint32_t, Kind>;
  struct OpTime {
    Op op;
    Time time = 0;
  };
  struct Source {
    Time time = 0;
    std::map<Key, OpTime> ops;
  };
  struct Awaited {
    Op op;
    int rank = 0;
    Time idle = 0;
    Time excess = 0;
  };

  [[nodiscard]] static Key key(Op op) { return {op.stage, op.micro_batch, op.kind}; }
  [[nodiscard]] int to_of(Op op) const { return is_message(op) ? program_.schedule.placement.rank_of[op.stage] : -1; }

  const Program& program_;
  const Cells& cells_;
  std::map<std::tuple<Cause, int, int>, Source> sources_;
  std::map<Key, Awaited> awaited_;
};

ReportedStep reported(const PathStep& step, const Cells& cells, Time origin) {
  ReportedStep result;
  result.kind = step.kind;
  result.op = cells.text(step.op);
  const bool is_op = step.kind == PathStep::Kind::op;
  const auto pair_class = static_cast<int>(class_names.size()) - 1;
  if (is_op) result.op_class = cells.second(step.op) ? pair_class : static_cast<int>(step.op.kind);
  result.micro_batch = step.op.micro_batch;
  result.rank = step.rank;
  result.span = {step.span.start - origin, step.span.end - origin};
  return result;
}

}  // namespace

ExplainReport explain_report(const Program& program, const std::optional<Costs>& costs, const Timeline& timeline,
                             const Explanation& explanation) {
  ExplainReport report;
  static_cast<ReportTitle&>(report) = title_of(program.schedule);
  report.costs = costs;
  report.has_pairs = has_pairs(program.schedule);
  report.makespan = timeline.makespan();
  report.ideal = explanation.ideal;
  report.bubble_rate_makespan = timeline.bubble_rate_makespan();
  report.bubble_rate_span = timeline.bubble_rate_span();
  const std::vector<Causes> causes = causes_by_rank(explanation, program.schedule.ranks());
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const auto place = static_cast<std::size_t>(rank);
    RankCauses of_rank{rank, timeline.ranks[place].busy, {}, timeline.idle(rank), causes[place]};
    for (const auto& unit : detail::report::units_of(program, timeline, rank)) {
      of_rank.passes[detail::report::class_of(unit)] += unit.duration();
    }
    report.busy += of_rank.busy;
    report.idle += of_rank.idle;
    report.per_rank.push_back(of_rank);
  }
  if (costs) {
    for (const RankMemory& memory : memory_of_ranks(program, *costs)) {
      report.peak_memory = std::max(report.peak_memory, memory.peak);
    }
  }
  const Cells cells(program);
  Sums sums(program, cells);
  for (const IdleSegment& segment : explanation.segments) {
    sums.add(segment);
    report.readiness[static_cast<std::size_t>(segment.readiness)] += duration_of(segment.span);
  }
  report.causes = sums.causes();
  report.awaited = sums.awaited();
  const Time origin = explanation.path.empty() ? 0 : explanation.path.front().span.start;
  for (const PathStep& step : explanation.path) report.path.push_back(reported(step, cells, origin));
  return report;
}

std::vector<ReportedOp> reported_ops(const Program& program, const Timeline& timeline) {
  std::vector<ReportedOp> ops;
  const Time origin = detail::report::bounds_of(timeline).start;
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    for (const auto& unit : detail::report::units_of(program, timeline, rank)) {
      ops.push_back({cell_text(unit.ops), rank, {unit.span.start - origin, unit.span.end - origin}});
    }
  }
  return ops;
}

namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<std::string_view, 3> step_names = {"op", "transfer", "launch"};

Json to_json(const CauseReport& cause) {
  Json json{{"cause", name(cause.cause)}, {"ns", cause.time}, {"from", Json::array()}};
  for (const CauseSource& source : cause.sources) {
    Json each{{"rank", source.rank}};
    if (source.to) each["to_rank"] = *source.to;
    each["ns"] = source.time;
    each["op"] = source.op;
    json["from"].push_back(std::move(each));
  }
  return json;
}

Json to_json(const RankCauses& rank) {
  Json json{{"rank", rank.rank}, {"busy_ns", rank.busy}, {"passes", Json::array()}, {"idle_ns", rank.idle}};
  for (std::size_t i = 0; i < class_names.size(); ++i) {
    if (rank.passes[i] > 0) json["passes"].push_back(Json{{"pass", class_names[i]}, {"ns", rank.passes[i]}});
  }
  json["causes"] = detail::report::causes_json(rank.causes);
  return json;
}

template <typename List, typename ToJson>
Json list_json(const List& list, ToJson to_json) {
  Json json = Json::array();
  for (const auto& each : list) json.push_back(to_json(each));
  return json;
}

}  // namespace

void write_json(std::ostream& out, const ExplainReport& report) {
  Json json = detail::report::json_title(report);
  json["remarks"] = report.remarks;
  json["makespan_ns"] = report.makespan;
  json["ideal_ns"] = report.ideal;
  json["busy_ns"] = report.busy;
  json["idle_ns"] = report.idle;
  json["bubble_rate_makespan"] = report.bubble_rate_makespan;
  json["bubble_rate_span"] = report.bubble_rate_span;
  json["peak_memory_bytes"] = report.peak_memory;
  if (report.costs) json["costs"] = detail::costs::costs_json(*report.costs);
  json["causes"] = list_json(report.causes, [](const CauseReport& each) { return to_json(each); });
  json["readiness"] = Json::array();
  for (std::size_t i = 0; i < readiness_names.size(); ++i) {
    json["readiness"].push_back(Json{{"readiness", readiness_names[i]}, {"ns", report.readiness[i]}});
  }
  json["per_rank"] = list_json(report.per_rank, [](const RankCauses& each) { return to_json(each); });
  json["path"] = list_json(report.path, [](const ReportedStep& each) {
    return Json{{"kind", step_names[static_cast<std::size_t>(each.kind)]},
                {"op", each.op},
                {"rank", each.rank},
                {"start_ns", each.span.start},
                {"end_ns", each.span.end}};
  });
  json["awaited"] = list_json(report.awaited, [](const AwaitedOp& each) {
    return Json{{"op", each.op}, {"rank", each.rank}, {"idle_ns", each.idle}, {"excess_ns", each.excess}};
  });
  json["what_if"] = list_json(report.what_if, [](const WhatIf& each) {
    return Json{{"change", each.change}, {"makespan_ns", each.makespan}, {"gain", each.gain}};
  });
  if (report.clock_width) json["clock_width_ns"] = *report.clock_width;
  if (!report.costs) {
    json["ops"] = list_json(report.ops, [](const ReportedOp& each) {
      return Json{{"op", each.op}, {"rank", each.rank}, {"start_ns", each.span.start}, {"end_ns", each.span.end}};
    });
  }
  out << detail::report::json_text(json);
}

}  // namespace dualpipe
