#include "dualpipe/sim/report/search_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>
#include <sstream>
#include <variant>
#include <vector>

#include "dualpipe/sim/costs/costs_json.h"
#include "dualpipe/sim/report/costs_text.h"
#include "dualpipe/sim/report/json_text.h"
#include "dualpipe/sim/schedule/json.h"

namespace dualpipe {
namespace {

std::string limit_text(const MemoryLimit& limit, ByteUnits units) {
  return limit.unit == MemoryLimit::Unit::bytes ? format_bytes(limit.amount, units) : to_text(limit);
}

std::string heading(const SearchRequest& request, const SearchResult& result, ByteUnits units) {
  std::string text = fmt::format("one model on {}, {}", format_count(static_cast<std::uint64_t>(request.ranks), "rank"),
                                 format_count(static_cast<std::uint64_t>(request.micro_batches), "micro-batch", "es"));
  if (request.memory_limit) text += fmt::format(", {} per rank", limit_text(*request.memory_limit, units));
  const auto entries = entries_of(request.costs);
  const bool is_share = std::holds_alternative<Costs>(request.costs) && entries.size() == 1;
  const std::string of = is_share ? "a rank's share of the model" : fmt::format("the model's {} parts", entries.size());
  return text + '\n' + costs_text(entries, of, machine_of(request.costs), has_pairs(result.schedule), units);
}

std::string gap_text(Time value, Time bound) {
  if (value <= bound) return "optimal";
  const double gap = bound == 0 ? 0 : static_cast<double>(value - bound) / static_cast<double>(bound);
  return gap < 0.00005 ? "+0.01%" : "+" + format_rate(gap);
}

std::string_view objective_name(SearchObjective objective) {
  return objective == SearchObjective::span ? "span" : "makespan";
}

std::string verdict(const SearchRequest& request, const SearchResult& result) {
  const bool is_found = result.origin == "search";
  const std::string what = is_found ? "the best found" : fmt::format("the best, {} of the catalog,", result.origin);
  if (result.is_optimal(request.objective)) {
    return wrapped(fmt::format("{} is optimal: no schedule of {} is shorter than {}, the lower bound", what,
                               request.placement == SearchPlacement::any ? "the placements below" : "its placement",
                               format_time(result.lower_bound)));
  }
  return wrapped(fmt::format("{} is {} longer than the lower bound of {}, which nothing can be below; {}", what,
                             format_rate(result.gap(request.objective)), format_time(result.lower_bound),
                             result.evaluations == 0 ? "nothing was searched" : "it may or may not be optimal"));
}

// Where the best comes from the catalog its row has the mark; else a row is put in for it.
std::string schedules_text(const SearchRequest& request, const SearchResult& result, const TextLayout& layout) {
  const bool by_span = request.objective == SearchObjective::span;
  std::vector<SearchRow> rows = result.catalog;
  const SearchRow found{"search", result.makespan, result.span, result.peak_memory, true};
  if (result.origin == "search") rows.push_back(found);
  const auto value = [&](const SearchRow& row) { return by_span ? row.span : row.makespan; };
  std::ranges::stable_sort(rows, {}, value);
  std::vector<std::string> marks, names, gaps, memory, fits;
  std::vector<std::optional<Time>> times;
  for (const SearchRow& row : rows) {
    marks.emplace_back(row.schedule == result.origin ? "*" : "");
    names.push_back(row.schedule);
    times.emplace_back(value(row));
    const bool is_below = value(row) < result.lower_bound;
    gaps.push_back(is_below ? "" : gap_text(value(row), result.lower_bound));
    memory.push_back(format_bytes(row.peak_memory, layout.bytes));
    fits.emplace_back(row.fits ? "yes" : "no");
  }
  TextTable table{{}};
  table.add_column({"", Align::left}, marks);
  table.add_column({"schedule", Align::left}, names);
  table.add_column({std::string(objective_name(request.objective))}, format_times(times));
  table.add_column({"bound", Align::right, 1}, gaps);
  if (std::ranges::any_of(rows, [](const SearchRow& row) { return row.peak_memory > 0; })) {
    table.add_column({"memory", Align::right, 2}, memory);
  }
  if (request.memory_limit) table.add_column({"fits", Align::left}, fits);
  if (layout.width > 0) (void)table.narrow_to(layout.width);
  return table.to_text();
}

std::string placements_text(const SearchResult& result) {
  std::vector<std::string> names;
  std::vector<std::optional<Time>> bounds, best;
  for (const SearchedPlacement& each : result.placements) {
    names.emplace_back(name(each.placement));
    bounds.emplace_back(each.lower_bound);
    best.push_back(each.best);
  }
  std::vector<std::string> gaps;
  for (const SearchedPlacement& each : result.placements) {
    gaps.push_back(each.best ? gap_text(*each.best, each.lower_bound) : "nothing fits");
  }
  TextTable table{{}};
  table.add_column({"placement", Align::left}, names);
  table.add_column({"lower bound"}, format_times(bounds));
  table.add_column({"best"}, format_times(best));
  table.add_column({"gap"}, gaps);
  return table.to_text();
}

nlohmann::ordered_json schedule_json(const Schedule& schedule) {
  std::ostringstream text;
  write_json(text, schedule);
  return nlohmann::ordered_json::parse(text.str());
}

}  // namespace

std::string to_text(const SearchRequest& request, const SearchResult& result, const TextLayout& layout) {
  std::string text = heading(request, result, layout.bytes) + "\n" + verdict(request, result) + "\n";
  text += schedules_text(request, result, layout) + "\n" + placements_text(result) + "\n";
  for (const std::string& remark : result.remarks) text += wrapped(remark);
  text += fmt::format("*            what was written: {}, {} evaluations\n", result.origin, result.evaluations);
  text += "bound        how much longer than the lower bound of all placements\n";
  return text;
}

void write_json(std::ostream& out, const SearchRequest& request, const SearchResult& result) {
  using Json = nlohmann::ordered_json;
  Json placements = Json::array();
  for (const SearchedPlacement& each : result.placements) {
    placements.push_back({{"placement", name(each.placement)},
                          {"lower_bound_ns", each.lower_bound},
                          {"best_ns", each.best ? Json(*each.best) : Json(nullptr)}});
  }
  Json rows = Json::array();
  for (const SearchRow& row : result.catalog) {
    rows.push_back({{"schedule", row.schedule},
                    {"makespan_ns", row.makespan},
                    {"span_ns", row.span},
                    {"peak_memory_bytes", row.peak_memory},
                    {"fits", row.fits}});
  }
  Json limit = nullptr;
  if (request.memory_limit) {
    const bool in_bytes = request.memory_limit->unit == MemoryLimit::Unit::bytes;
    const auto micro_batches =
        static_cast<double>(request.memory_limit->amount) / static_cast<double>(MemoryLimit::per_micro_batch);
    limit = in_bytes ? Json{{"bytes", request.memory_limit->amount}} : Json{{"microbatches", micro_batches}};
  }
  const Json document{{"ranks", request.ranks},
                      {"microbatches", request.micro_batches},
                      {"memory_limit", limit},
                      {"objective", objective_name(request.objective)},
                      {"seed", request.seed},
                      {"makespan_ns", result.makespan},
                      {"span_ns", result.span},
                      {"lower_bound_ns", result.lower_bound},
                      {"gap", result.gap(request.objective)},
                      {"proven_optimal", result.is_optimal(request.objective)},
                      {"peak_memory_bytes", result.peak_memory},
                      {"evaluations", result.evaluations},
                      {"origin", result.origin},
                      {"placements", placements},
                      {"catalog", rows},
                      {"remarks", result.remarks},
                      {"costs", detail::costs::costs_json(request.costs)},
                      {"schedule", schedule_json(result.schedule)}};
  out << detail::report::json_text(document);
}

std::string to_text(const SearchProgress& progress, double per_second) {
  if (!progress.best) return fmt::format("{}: nothing fits yet", name(progress.placement));
  return fmt::format("{}: best {}, bound {}, {}, {:.0f} evaluations/s", name(progress.placement),
                     format_time(*progress.best), format_time(progress.lower_bound),
                     gap_text(*progress.best, progress.lower_bound), per_second);
}

}  // namespace dualpipe
