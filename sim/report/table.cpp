#include "dualpipe/sim/report/table.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <variant>

#include "dualpipe/sim/evaluate/evaluate.h"
#include "dualpipe/sim/generate/check_shape.h"
#include "dualpipe/sim/report/json_text.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

// How many stages of one chain a rank holds: what divides the ranks when the number of stages is to be equal.
int stages_of_chain_per_rank(const Family& family, const Shape& shape) {
  return family.stages_per_rank(shape) / family.chains(shape);
}

Shape shape_of_row(const Family& family, Shape shape, EqualTerms terms) {
  shape = as_taken_by(family, shape);
  detail::generate::check_counts(family, shape);
  const int per_rank = stages_of_chain_per_rank(family, shape);
  if (terms == EqualTerms::stages) {
    if (shape.ranks % per_rank != 0) {
      const int fewer = shape.ranks / per_rank * per_rank;
      throw ShapeError(fmt::format("{}: {} stages cannot be {} on every rank; nearest that work: {}{} stages",
                                   family.name, shape.ranks, per_rank, fewer > 0 ? fmt::format("{} or ", fewer) : "",
                                   fewer + per_rank));
    }
    shape.ranks /= per_rank;
  }
  return shape;
}

// All that a row says, unless its schedule has no such shape, or cannot run: that is thrown.
Evaluation evaluate_row(TableRow& row, const Shape& shape, EqualTerms terms, const GivenCosts& given) {
  row.shape = shape_of_row(family(row.schedule), shape, terms);
  Schedule schedule = generate({.family = row.schedule, .shape = row.shape, .costs = given});
  const Costs costs = stage_costs(given, schedule.placement);
  row.overlapped_is_assumed = std::holds_alternative<ModelCosts>(given) && !has_overlapped(costs) &&
                              std::ranges::any_of(schedule.ops, [](Op op) { return op.with_next; });
  Evaluation evaluation = evaluate(std::move(schedule), costs);
  row.stages = evaluation.stages;
  row.form = closed_form(row.schedule, row.shape, costs);
  row.makespan = evaluation.timeline.makespan();
  row.span = evaluation.timeline.span();
  row.bubble = row.form && row.form->by_span ? evaluation.bubble_by_span() : evaluation.bubble_by_makespan();
  row.bubble_rate_makespan = evaluation.timeline.bubble_rate_makespan();
  row.bubble_rate_span = evaluation.timeline.bubble_rate_span();
  row.peak_activations_least = evaluation.peak_activations_least();
  row.peak_activations_most = evaluation.peak_activations_most();
  row.peak_memory = evaluation.peak_memory();
  row.parameters = evaluation.parameters();
  return evaluation;
}

std::string activations_text(const TableRow& row) {
  return row.peak_activations_least == row.peak_activations_most
             ? fmt::format("{}", row.peak_activations_most)
             : fmt::format("{}..{}", row.peak_activations_least, row.peak_activations_most);
}

TextTable table_for_people(const ScheduleTable& table) {
  const bool counts_bytes = std::ranges::any_of(table.rows, [](const auto& row) { return row.peak_memory > 0; });
  std::vector<Column> columns{{"schedule", Align::left},
                              {"ranks"},
                              {"closed form", Align::left},
                              {"it says"},
                              {"simulated"},
                              {"it holds", Align::left},
                              {"bubble"},
                              {"by span"},
                              {"makespan"},
                              {"activations"},
                              {"parameters"}};
  if (counts_bytes) columns.push_back({"memory"});
  TextTable text(std::move(columns));
  for (const TableRow& row : table.rows) {
    if (!row.unfit.empty()) continue;
    std::vector<std::string> cells{row.schedule,
                                   fmt::format("{}", row.shape.ranks),
                                   row.form ? row.form->formula + (row.form->by_span ? " by span" : "") : "",
                                   row.form ? format_time_exact(row.form->bubble) : "",
                                   format_time_exact(row.bubble),
                                   !row.form           ? ""
                                   : row.form->holds() ? "yes"
                                                       : "no",
                                   format_rate(row.bubble_rate_makespan),
                                   format_rate(row.bubble_rate_span),
                                   format_time_exact(row.makespan),
                                   activations_text(row),
                                   fmt::format("{}x", row.parameters)};
    if (counts_bytes) cells.push_back(format_bytes(row.peak_memory));
    text.add_row(std::move(cells));
  }
  return text;
}

// Of a row whose F&B is assumed.
constexpr std::string_view overlapped_note = "F&B was not measured, and is taken for F + B";

// What stands under the table: which conditions are broken, and which rows are not there.
std::vector<std::string> notes_of(const ScheduleTable& table) {
  std::vector<std::string> notes;
  for (const TableRow& row : table.rows) {
    if (!row.unfit.empty()) {
      notes.push_back("no row for " + row.unfit);
    } else if (!row.form) {
      notes.push_back(fmt::format("{}: no closed form is known", row.schedule));
    } else if (!row.form->holds()) {
      notes.push_back(fmt::format("{}: the closed form {}", row.schedule, row.form->broken));
    }
    if (row.overlapped_is_assumed) notes.push_back(fmt::format("{}: {}", row.schedule, overlapped_note));
  }
  return notes;
}

std::string note_with_overlapped(const ClosedForm& form) {
  return form.holds() ? std::string(overlapped_note) : fmt::format("{}; {}", form.broken, overlapped_note);
}

std::string heading(const ScheduleTable& table) {
  return fmt::format(
      "{}, {}; durations of one stage",
      format_count(static_cast<std::uint64_t>(table.shape.ranks), table.terms == EqualTerms::stages ? "stage" : "rank"),
      format_count(static_cast<std::uint64_t>(table.shape.micro_batches), "micro-batch", "es"));
}

}  // namespace

ScheduleTable schedule_table(const std::vector<std::string>& schedules, const Shape& shape, EqualTerms terms,
                             const GivenCosts& costs) {
  ScheduleTable table{terms, shape, std::vector<TableRow>(schedules.size())};
  const auto evaluate_one = [&](std::size_t i) {
    TableRow& row = table.rows[i];
    row.schedule = schedules[i];
    row.shape = shape;
    return evaluate_row(row, shape, terms, costs);
  };
  evaluate_each(schedules.size(), evaluate_one, [&](std::size_t i, const Outcome& outcome) {
    try {
      (void)outcome.evaluation();
    } catch (const ShapeError& error) {
      table.rows[i].unfit = error.what();
    }
  });
  return table;
}

std::string to_text(const ScheduleTable& table) {
  std::string text = heading(table) + "\n\n" + table_for_people(table).to_text() + "\n";
  for (const std::string& note : notes_of(table)) text += note + "\n";
  text +=
      "closed form, simulated: idle time of the rank that idles most, makespan - busy, or span - busy for a form by "
      "span\n"
      "bubble: idle share of ranks x makespan (DeepSeek's); by span: with the longest rank's span instead (zero-bubble "
      "papers')\n"
      "B is the full backward, I + W; activations: live micro-batches of the ranks at their peaks; parameters: stages "
      "held\n";
  return text;
}

std::string to_markdown(const ScheduleTable& table) {
  std::string text = heading(table) + "\n\n" + table_for_people(table).to_markdown();
  const auto notes = notes_of(table);
  if (!notes.empty()) text += "\n";
  for (const std::string& note : notes) text += "- " + note + "\n";
  return text;
}

std::string to_csv(const ScheduleTable& table) {
  TextTable text({{"schedule"},
                  {"ranks"},
                  {"stages"},
                  {"microbatches"},
                  {"closed_form"},
                  {"closed_form_by"},
                  {"closed_form_ns"},
                  {"simulated_ns"},
                  {"holds"},
                  {"bubble_rate_makespan"},
                  {"bubble_rate_span"},
                  {"makespan_ns"},
                  {"span_ns"},
                  {"peak_activations_least"},
                  {"peak_activations_most"},
                  {"peak_memory_bytes"},
                  {"parameters"},
                  {"note"}});
  for (const TableRow& row : table.rows) {
    const bool fits = row.unfit.empty();
    const auto number = [&](auto value) { return fits ? fmt::format("{}", value) : std::string(); };
    const ClosedForm form = row.form.value_or(ClosedForm{});
    const auto of_form = [&](auto value) { return row.form ? fmt::format("{}", value) : std::string(); };
    text.add_row({row.schedule, number(row.shape.ranks), number(row.stages), number(row.shape.micro_batches),
                  form.formula, of_form(form.by_span ? "span" : "makespan"), of_form(form.bubble), number(row.bubble),
                  of_form(form.holds() ? "yes" : "no"), number(row.bubble_rate_makespan), number(row.bubble_rate_span),
                  number(row.makespan), number(row.span), number(row.peak_activations_least),
                  number(row.peak_activations_most), number(row.peak_memory), number(row.parameters),
                  !fits                       ? row.unfit
                  : row.overlapped_is_assumed ? note_with_overlapped(form)
                                              : form.broken});
  }
  return text.to_csv();
}

std::string to_json(const ScheduleTable& table) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const TableRow& row : table.rows) {
    if (!row.unfit.empty()) {
      rows.push_back({{"schedule", row.schedule}, {"unfit", row.unfit}});
      continue;
    }
    nlohmann::ordered_json form;  // null where none is known
    if (row.form) {
      form = {{"formula", row.form->formula},
              {"by", row.form->by_span ? "span" : "makespan"},
              {"bubble_ns", row.form->bubble},
              {"holds", row.form->holds()},
              {"broken", row.form->broken}};
    }
    rows.push_back({{"schedule", row.schedule},
                    {"ranks", row.shape.ranks},
                    {"stages", row.stages},
                    {"microbatches", row.shape.micro_batches},
                    {"closed_form", form},
                    {"bubble_ns", row.bubble},
                    {"makespan_ns", row.makespan},
                    {"span_ns", row.span},
                    {"bubble_rate_makespan", row.bubble_rate_makespan},
                    {"bubble_rate_span", row.bubble_rate_span},
                    {"peak_activations_least", row.peak_activations_least},
                    {"peak_activations_most", row.peak_activations_most},
                    {"peak_memory_bytes", row.peak_memory},
                    {"parameters", row.parameters}});
    if (row.overlapped_is_assumed) rows.back()["overlapped_is_assumed"] = true;
  }
  const char* equal = table.terms == EqualTerms::stages ? "stages" : "ranks";
  const nlohmann::ordered_json document{
      {"equal", equal}, {equal, table.shape.ranks}, {"microbatches", table.shape.micro_batches}, {"rows", rows}};
  return detail::report::json_text(document);
}

}  // namespace dualpipe
