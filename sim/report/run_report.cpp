#include "dualpipe/sim/report/run_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <ostream>
#include <span>

#include "dualpipe/sim/costs/costs_json.h"
#include "dualpipe/sim/report/costs_text.h"
#include "dualpipe/sim/report/json_text.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/simulate/memory.h"

namespace dualpipe {
namespace {

double share_idle(Time busy, Time cost) {
  return cost == 0 ? 0 : 1 - static_cast<double>(busy) / static_cast<double>(cost);
}

std::vector<HeldOfStage> by_stage(const std::vector<Op>& ops) {
  std::map<int, HeldOfStage> stages;
  for (const Op op : ops) {
    HeldOfStage& held = stages[op.stage];
    held.stage = op.stage;
    ++(op.kind == Kind::forward ? held.activations : held.weight_gradients);
  }
  std::vector<HeldOfStage> held;
  for (const auto& [stage, each] : stages) held.push_back(each);
  return held;
}

// When the rank first holds `bytes`. (The peak may come before its op starts: a receive buffer is held already.)
std::optional<Time> when_first(Bytes bytes, const RankMemories& memories, const Timeline& timeline, int rank) {
  const auto points = memories.over_time(timeline, rank);
  const auto first =
      std::find_if(points.begin(), points.end(), [&](const auto& point) { return point.bytes == bytes; });
  return first == points.end() ? std::nullopt : std::optional(first->time);
}

Peak peak_of(const Program& program, const RankMemories& memories, const Timeline& timeline, int rank,
             const RankMemory& memory) {
  const auto ops = program.schedule.rank(rank);
  if (ops.empty()) return {};
  const bool counts_bytes = memory.peak > memory.resident;
  std::size_t position = counts_bytes ? memory.peak_position : memory.peak_activations_position;
  position = std::min(position, ops.size() - 1);  // the slot after the last op
  if (position > 0 && ops[position - 1].with_next) --position;

  Peak peak;
  peak.op = cell_text(ops.subspan(position));
  peak.ops = held_at(program, rank, position);
  peak.stages = by_stage(peak.ops);
  if (timeline.ops.empty()) return peak;
  if (counts_bytes) peak.at = when_first(memory.peak, memories, timeline, rank);
  if (!peak.at) peak.at = timeline.ops[program.schedule.rank_begin[static_cast<std::size_t>(rank)] + position].start;
  return peak;
}

RankReport rank_report(const RunReport& run, const Program& program, const RankMemories& memories,
                       const Timeline& timeline, int rank) {
  const RankMemory memory = memories.of(rank);
  const RankTimes& times = timeline.ranks[static_cast<std::size_t>(rank)];
  RankReport report;
  report.rank = rank;
  report.busy = times.busy;
  report.idle = run.makespan - times.busy;
  report.span = times.span();
  report.bubble_rate_makespan = share_idle(times.busy, run.makespan);
  report.bubble_rate_span = share_idle(times.busy, run.span);
  report.parameters = memory.parameters;
  report.peak_activations = memory.peak_activations;
  report.peak_memory = memory.peak;
  report.peak = peak_of(program, memories, timeline, rank, memory);
  return report;
}

// "3 x 0F, 1 x 0W": activations, and weight gradients still to come, per stage. Of many stages the first ones.
std::string held_text(const Peak& peak) {
  constexpr std::size_t stages_max = 6;
  std::string text;
  const auto append = [&](std::size_t count, int stage, std::string_view pass) {
    if (count > 0) text += fmt::format("{}{} x {}{}", text.empty() ? "" : ", ", count, stage, pass);
  };
  for (const HeldOfStage& held : std::span(peak.stages).first(std::min(peak.stages.size(), stages_max))) {
    append(held.activations, held.stage, "F");
    append(held.weight_gradients, held.stage, "W");
  }
  if (peak.stages.size() > stages_max) text += fmt::format(" and {} more stages", peak.stages.size() - stages_max);
  return text;
}

std::string header(const RunReport& report, ByteUnits units) {
  std::string text = title_text(report) + "\n";
  for (const std::string& remark : report.remarks) text += printable_lines(remark) + "\n";
  text += costs_text(report.costs, report.has_pairs, units) + "\n";
  const auto append = [&](std::string_view term, const std::string& value, std::string_view meaning) {
    const std::string padding(display_width(value) < 10 ? 10 - display_width(value) : 0, ' ');
    text += fmt::format("{:<8}  {}{}   {}\n", term, padding, value, meaning);
  };
  append("makespan", format_time(report.makespan), "first start to last end, over all ranks");
  append("span", format_time(report.span), "the longest first-op-to-last-op span of any one rank");
  append("bubble", format_rate(report.bubble_rate_makespan),
         "by makespan: idle share of ranks x makespan (DeepSeek's)");
  append("", format_rate(report.bubble_rate_span), "by span: the same with the span (the zero-bubble papers')");
  if (report.reduced > 0) append("reduced", format_time(report.reduced), "the last gradient reduction ends");
  return text;
}

// The figures of all ranks, column by column.
class RankColumns {
 public:
  RankColumns(const RunReport& report, ByteUnits units) : report_(report), units_(units) {}

  [[nodiscard]] TextTable take() {
    add({"rank"}, [](const RankReport& rank) { return std::to_string(rank.rank); });
    add_time({"busy"}, [](const RankReport& rank) { return std::optional(rank.busy); });
    add_time({"idle"}, [](const RankReport& rank) { return std::optional(rank.idle); });
    add_time({"span", Align::right, 2}, [](const RankReport& rank) { return std::optional(rank.span); });
    add({"bubble"}, [](const RankReport& rank) { return format_rate(rank.bubble_rate_makespan); });
    add({"by span", Align::right, 3}, [](const RankReport& rank) { return format_rate(rank.bubble_rate_span); });
    add({"parameters", Align::right, 4},
        [](const RankReport& rank) { return format_count(static_cast<std::uint64_t>(rank.parameters), "stage"); });
    add({"peak act."}, [](const RankReport& rank) { return std::to_string(rank.peak_activations); });
    if (any([](const RankReport& rank) { return rank.peak_memory > 0; })) {
      add({"peak memory"}, [this](const RankReport& rank) { return format_bytes(rank.peak_memory, units_); });
    }
    add({"in op", Align::left, 5}, [](const RankReport& rank) { return rank.peak.op; });
    if (any([](const RankReport& rank) { return rank.peak.at.has_value(); })) {
      add_time({"at", Align::right, 6}, [](const RankReport& rank) { return rank.peak.at; });
    }
    add({"held then", Align::left, 7}, [](const RankReport& rank) { return held_text(rank.peak); });
    return std::move(text_);
  }

 private:
  template <typename Predicate>
  [[nodiscard]] bool any(Predicate predicate) const {
    return std::ranges::any_of(report_.per_rank, predicate);
  }
  template <typename Cell>
  void add(Column column, Cell cell) {
    std::vector<std::string> cells;
    for (const RankReport& rank : report_.per_rank) cells.push_back(cell(rank));
    text_.add_column(std::move(column), std::move(cells));
  }
  template <typename When>
  void add_time(Column column, When when) {
    std::vector<std::optional<Time>> times;
    for (const RankReport& rank : report_.per_rank) times.push_back(when(rank));
    text_.add_column(std::move(column), format_times(times));
  }

  const RunReport& report_;
  ByteUnits units_;
  TextTable text_{{}};
};

using Json = nlohmann::ordered_json;

Json to_json(const Peak& peak) {
  Json json;
  json["at_ns"] = peak.at ? Json(*peak.at) : Json(nullptr);
  json["op"] = peak.op;
  json["stages"] = Json::array();
  for (const HeldOfStage& held : peak.stages) {
    json["stages"].push_back(
        Json{{"stage", held.stage}, {"activations", held.activations}, {"weight_gradients", held.weight_gradients}});
  }
  json["held"] = Json::array();
  for (const Op op : peak.ops) json["held"].push_back(to_text(op));
  return json;
}

Json to_json(const RankReport& rank) {
  Json json;
  json["rank"] = rank.rank;
  json["busy_ns"] = rank.busy;
  json["idle_ns"] = rank.idle;
  json["span_ns"] = rank.span;
  json["bubble_rate_makespan"] = rank.bubble_rate_makespan;
  json["bubble_rate_span"] = rank.bubble_rate_span;
  json["peak_activations"] = rank.peak_activations;
  json["peak_memory_bytes"] = rank.peak_memory;
  json["parameters"] = rank.parameters;
  json["peak"] = to_json(rank.peak);
  return json;
}

}  // namespace

RunReport run_report(const Program& program, const Costs& costs, const Timeline& timeline) {
  const Placement& placement = program.schedule.placement;
  RunReport report;
  static_cast<ReportTitle&>(report) = title_of(program.schedule);
  report.makespan = timeline.makespan();
  report.span = timeline.span();
  report.bubble_rate_makespan = timeline.bubble_rate_makespan();
  report.bubble_rate_span = timeline.bubble_rate_span();
  report.reduced = timeline.reduced;
  report.costs = costs;
  report.has_pairs = has_pairs(program.schedule);
  const RankMemories memories(program, costs);
  for (int rank = 0; rank < placement.ranks; ++rank) {
    report.per_rank.push_back(rank_report(report, program, memories, timeline, rank));
  }
  return report;
}

std::string to_text(const RunReport& report, const TextLayout& layout) {
  TextTable ranks = RankColumns(report, layout.bytes).take();
  std::vector<std::string> left_out;
  if (layout.width > 0) left_out = ranks.narrow_to(layout.width);
  std::string text = header(report, layout.bytes) + "\n" + ranks.to_text();
  if (!left_out.empty()) text += "\n" + wrapped_list(no_room_text(layout.width), left_out);
  return text;
}

std::string to_csv(const RunReport& report) {
  TextTable table({{"rank"},
                   {"busy_ns"},
                   {"idle_ns"},
                   {"span_ns"},
                   {"bubble_rate_makespan"},
                   {"bubble_rate_span"},
                   {"peak_activations"},
                   {"peak_memory_bytes"},
                   {"parameters"},
                   {"peak_op"},
                   {"peak_at_ns"}});
  for (const RankReport& rank : report.per_rank) {
    table.add_row({std::to_string(rank.rank), std::to_string(rank.busy), std::to_string(rank.idle),
                   std::to_string(rank.span), fmt::format("{}", rank.bubble_rate_makespan),
                   fmt::format("{}", rank.bubble_rate_span), std::to_string(rank.peak_activations),
                   std::to_string(rank.peak_memory), std::to_string(rank.parameters), rank.peak.op,
                   rank.peak.at ? std::to_string(*rank.peak.at) : ""});
  }
  return table.to_csv();
}

void write_json(std::ostream& out, const RunReport& report) {
  Json json = detail::report::json_title(report);
  json["remarks"] = report.remarks;
  json["makespan_ns"] = report.makespan;
  json["span_ns"] = report.span;
  json["bubble_rate_makespan"] = report.bubble_rate_makespan;
  json["bubble_rate_span"] = report.bubble_rate_span;
  json["reduced_ns"] = report.reduced;
  json["costs"] = detail::costs::costs_json(report.costs);
  json["per_rank"] = Json::array();
  for (const RankReport& rank : report.per_rank) json["per_rank"].push_back(to_json(rank));
  out << detail::report::json_text(json);
}

}  // namespace dualpipe
