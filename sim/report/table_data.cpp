#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "dualpipe/sim/costs/costs_json.h"
#include "dualpipe/sim/report/json_text.h"
#include "dualpipe/sim/report/table.h"

namespace dualpipe {
namespace {

using Json = nlohmann::ordered_json;

const char* recompute_text(Recomputation recompute) { return recompute == Recomputation::full ? "full" : "none"; }

Json form_json(const ClosedForm& form) {
  return {{"formula", form.formula},
          {"by", form.by_span ? "span" : "makespan"},
          {"bubble_ns", form.bubble},
          {"holds", form.holds()},
          {"broken", form.broken}};
}

template <typename Value>
Json json_or_null(const std::optional<Value>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json row_json(const TableRow& row) {
  Json json{{"schedule", row.schedule},
            {"ranks", row.ranks},
            {"stages", row.stages},
            {"microbatches", row.micro_batches},
            {"makespan_ns", row.makespan},
            {"span_ns", row.span},
            {"lower_bound_ns", json_or_null(row.lower_bound)},
            {"bubble", row.bubble_rate_makespan},
            {"bubble_rate_makespan", row.bubble_rate_makespan},
            {"bubble_rate_span", row.bubble_rate_span},
            {"imbalance_rate", row.imbalance_rate},
            {"idle_per_ideal", row.idle_per_ideal},
            {"speedup_over_1f1b", json_or_null(row.speedup)},
            {"peak_activations_least", row.peak_activations_least},
            {"peak_activations_most", row.peak_activations_most},
            {"parameters", row.parameters * row.share},
            {"peak_memory_bytes", row.peak_memory},
            {"fits", row.room ? Json(row.fits()) : Json(nullptr)},
            {"room_bytes", json_or_null(row.room)},
            {"best", row.is_best},
            {"bubble_ns", row.bubble},
            {"closed_form", row.form ? form_json(*row.form) : Json(nullptr)}};
  if (row.recompute) json["recompute"] = recompute_text(*row.recompute);
  if (row.makespans) {
    json["makespan_p5_ns"] = row.makespans->low;
    json["makespan_median_ns"] = row.makespans->median;
    json["makespan_p95_ns"] = row.makespans->high;
    json["makespan_median_least_ns"] = row.makespans->median_least;
    json["makespan_median_most_ns"] = row.makespans->median_most;
    json["win_rate"] = json_or_null(row.win_rate);
  }
  if (row.tokens_per_second) json["tokens_per_second"] = *row.tokens_per_second;
  if (row.flops_utilization) json["flops_utilization"] = *row.flops_utilization;
  if (row.overlapped_is_assumed) json["overlapped_is_assumed"] = true;
  return json;
}

std::string note_of(const TableRow& row) {
  std::string note = row.form ? row.form->broken : "";
  if (row.overlapped_is_assumed) {
    note += fmt::format("{}F&B was not measured, and is taken for F + B", note.empty() ? "" : "; ");
  }
  return note;
}

}  // namespace

std::string to_csv(const ScheduleTable& table) {
  TextTable text({{"schedule"},
                  {"ranks"},
                  {"stages"},
                  {"microbatches"},
                  {"recompute"},
                  {"closed_form"},
                  {"closed_form_by"},
                  {"closed_form_ns"},
                  {"simulated_ns"},
                  {"holds"},
                  {"bubble_rate_makespan"},
                  {"bubble_rate_span"},
                  {"imbalance_rate"},
                  {"idle_per_ideal"},
                  {"makespan_ns"},
                  {"makespan_p5_ns"},
                  {"makespan_median_ns"},
                  {"makespan_p95_ns"},
                  {"win_rate"},
                  {"span_ns"},
                  {"lower_bound_ns"},
                  {"speedup_over_1f1b"},
                  {"peak_activations_least"},
                  {"peak_activations_most"},
                  {"peak_memory_bytes"},
                  {"fits"},
                  {"parameters"},
                  {"tokens_per_second"},
                  {"flops_utilization"},
                  {"best"},
                  {"note"}});
  const auto cell = [](const auto& value) { return value ? fmt::format("{}", *value) : std::string(); };
  for (const TableRow& row : table.rows) {
    const ClosedForm form = row.form.value_or(ClosedForm{});
    const auto of_form = [&](auto value) { return row.form ? fmt::format("{}", value) : std::string(); };
    const auto of_seeds = [&](Time Quantiles::*member) {
      return row.makespans ? fmt::format("{}", (*row.makespans).*member) : std::string();
    };
    const auto number = [](auto value) { return fmt::format("{}", value); };
    text.add_row({row.schedule,
                  number(row.ranks),
                  number(row.stages),
                  number(row.micro_batches),
                  row.recompute ? recompute_text(*row.recompute) : "",
                  form.formula,
                  of_form(form.by_span ? "span" : "makespan"),
                  of_form(form.bubble),
                  number(row.bubble),
                  of_form(form.holds() ? "yes" : "no"),
                  number(row.bubble_rate_makespan),
                  number(row.bubble_rate_span),
                  number(row.imbalance_rate),
                  number(row.idle_per_ideal),
                  number(row.makespan),
                  of_seeds(&Quantiles::low),
                  of_seeds(&Quantiles::median),
                  of_seeds(&Quantiles::high),
                  cell(row.win_rate),
                  number(row.span),
                  cell(row.lower_bound),
                  cell(row.speedup),
                  number(row.peak_activations_least),
                  number(row.peak_activations_most),
                  number(row.peak_memory),
                  row.room ? (row.fits() ? "yes" : "no") : "",
                  number(row.parameters * row.share),
                  cell(row.tokens_per_second),
                  cell(row.flops_utilization),
                  row.is_best ? "yes" : "",
                  note_of(row)});
  }
  return text.to_csv();
}

std::string to_json(const ScheduleTable& table) {
  const TableRequest& request = table.request;
  const char* equal = request.terms == EqualTerms::stages ? "stages" : "ranks";
  Json rows = Json::array();
  for (const TableRow& row : table.rows) rows.push_back(row_json(row));
  Json left_out = Json::array();
  for (const LeftOut& each : table.left_out) {
    left_out.push_back({{"schedule", each.schedule},
                        {equal, each.ranks},
                        {"microbatches", each.micro_batches},
                        {"reason", each.reason}});
  }
  const Json document{{"equal", equal},
                      {equal, request.ranks},
                      {"microbatches", request.micro_batches},
                      {"memory_limit_bytes", json_or_null(request.memory_limit)},
                      {"seeds", request.seeds},
                      {"straggler", json_or_null(request.straggler)},
                      {"costs", detail::costs::costs_json(request.costs)},
                      {"rows", rows},
                      {"left_out", left_out}};
  return detail::report::json_text(document);
}

}  // namespace dualpipe
