#include "dualpipe/exec/train/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>

#include "dualpipe/sim/report/compare.h"
#include "dualpipe/sim/report/difference_json.h"
#include "dualpipe/sim/report/json_text.h"
#include "dualpipe/sim/report/percentile.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/simulate/memory.h"

namespace dualpipe {
namespace {

constexpr auto step_line = "{:>6}  {:>12}  {:>9}\n";

std::string ranks_text(const Difference& difference) {
  const auto makespan = static_cast<double>(std::max<Time>(1, difference.makespan.measured));
  TextTable table({{"rank"}, {"busy"}, {"idle"}, {"bubble"}, {"peak act."}, {"peak memory"}});
  for (const RankDifference& rank : difference.per_rank) {
    table.add_row({std::to_string(rank.rank), format_time(rank.busy.measured), format_time(rank.idle.measured),
                   format_rate(static_cast<double>(rank.idle.measured) / makespan),
                   std::to_string(rank.peak.measured.activations), format_bytes(rank.peak.measured.memory)});
  }
  return table.to_text();
}

std::string to_text(const Overlap& overlap) {
  return fmt::format("F&B       {:>9}   {:.2f} times F + B, {} + {}; medians\n", format_time(overlap.pair),
                     overlap.share_of_sum(), format_time(overlap.forward), format_time(overlap.backward));
}

using Json = nlohmann::ordered_json;

Json to_json(const RankDifference& rank) {
  return {{"rank", rank.rank},
          {"busy_ns", rank.busy.measured},
          {"idle_ns", rank.idle.measured},
          {"predicted_idle_ns", rank.idle.planned},
          {"peak_activations", rank.peak.measured.activations},
          {"predicted_peak_activations", rank.peak.planned.activations},
          {"peak_memory_bytes", rank.peak.measured.memory},
          {"predicted_peak_memory_bytes", rank.peak.planned.memory}};
}

Json to_json(const Tolerance& tolerance) {
  Json json = {{"losses_bitwise", tolerance.losses_bitwise},
               {"gradients_bitwise", tolerance.gradients_bitwise},
               {"loss", tolerance.loss}};
  if (tolerance.cosine > 0) json["gradient_cosine_difference"] = tolerance.cosine;
  if (tolerance.relative_l2 > 0) json["gradient_relative_l2"] = tolerance.relative_l2;
  if (tolerance.rounding > 0) json["gradient_relative_l2_from_float32"] = tolerance.rounding;
  return json;
}

void add_check(Json& json, const CheckReport& check) {
  json["check_passed"] = check.passed();
  json["tolerance"] = to_json(check.tolerance);
  json["gradients_in_order"] = check.same_order;
  json["max_loss_difference"] = check.max_loss_difference;
  json["losses_bitwise_equal"] = check.losses_bitwise_equal;
  json["max_gradient_difference"] = check.gradients.largest;
  json["max_gradient_cosine_difference"] = check.gradients.cosine;
  json["max_gradient_relative_l2"] = check.gradients.relative_l2;
  if (check.from_float32) json["max_gradient_relative_l2_from_float32"] = check.from_float32->relative_l2;
  json["gradients_bitwise_equal"] = check.gradients.bitwise_equal;
  json["per_stage"] = Json::array();
  for (std::size_t stage = 0; stage < check.per_stage.size(); ++stage) {
    const GradientDifference& of_stage = check.per_stage[stage];
    json["per_stage"].push_back(Json{{"stage", stage},
                                     {"max_gradient_difference", of_stage.largest},
                                     {"gradient_cosine_difference", of_stage.cosine},
                                     {"gradient_relative_l2", of_stage.relative_l2},
                                     {"gradients_bitwise_equal", of_stage.bitwise_equal}});
    if (!check.from_float32) continue;
    json["per_stage"].back()["gradient_relative_l2_from_float32"] = check.per_stage_from_float32[stage].relative_l2;
  }
}

// Forwards that no backward follows keep nothing: a rank then holds one activation at a time.
RankPeak evaluation_peak(const Placement& placement, const Costs& costs, int rank, Bytes resident) {
  Bytes largest = 0;
  for (const int stage : placement.stages_on(rank)) {
    largest = std::max(largest, costs.of(stage).activation + costs.of(stage).forward_workspace);
  }
  return {1, resident + largest};
}

std::vector<RankPeak> peaks_of(const Program& program, const Costs& costs) {
  const auto is_forward = [](Op op) { return op.kind == Kind::forward; };
  const bool evaluates = std::ranges::all_of(program.schedule.ops, is_forward);
  std::vector<RankPeak> peaks;
  for (const RankMemory& memory : memory_of_ranks(program, costs)) {
    const int rank = static_cast<int>(peaks.size());
    peaks.push_back(evaluates ? evaluation_peak(program.schedule.placement, costs, rank, memory.resident)
                              : RankPeak{memory.peak_activations, memory.peak});
  }
  return peaks;
}

TrainReport report_of(const Program& program, const std::string& model, const Machine& machine) {
  TrainReport report;
  static_cast<ReportTitle&>(report) = title_of(program.schedule);
  report.model = model;
  report.machine = machine;
  return report;
}

}  // namespace

TraceArgs trace_args(const Machine& machine) {
  const auto text = [](bool is_on) { return is_on ? "on" : "off"; };
  return TraceArgs()
      .add("transport", machine.transport)
      .add("dtype", to_text(machine.precision))
      .add("copy", text(machine.gpu.copy))
      .add("sm_partition", text(machine.gpu.sm_partition));
}

TrainReport train_report(const Program& program, const std::string& model, const Machine& machine,
                         const TrainResult& result, const Costs& costs, const Timeline& predicted,
                         const Timeline& measured) {
  const std::vector<RankPeak> planned_peaks = peaks_of(program, costs);
  std::vector<RankPeak> measured_peaks;
  for (const RankPeaks& peak : result.peaks) measured_peaks.push_back({peak.activations, peak.memory});

  TrainReport report = report_of(program, model, machine);
  report.first_step = result.first_step;
  report.losses = result.losses;
  report.durations = result.durations;
  report.step_time = result.step_time;
  report.difference = compare(run_of("planned", program, predicted, planned_peaks),
                              run_of("measured", program, measured, measured_peaks))
                          .difference;
  return report;
}

TrainReport failed_report(const Program& program, const std::string& model, const Machine& machine,
                          std::span<const StepReport> steps, const std::string& failure) {
  TrainReport report = report_of(program, model, machine);
  report.failure = failure;
  if (!steps.empty()) report.first_step = steps.front().step;
  for (const StepReport& step : steps) {
    report.losses.push_back(step.loss);
    if (step.measured) report.durations.push_back(step.duration);
  }
  if (!report.durations.empty()) report.step_time = detail::report::median(report.durations);
  return report;
}

std::string steps_head(const Program& program) {
  return title_text(title_of(program.schedule)) + "\n\n" + fmt::format(step_line, "step", "loss", "time");
}

std::string to_text(const StepReport& step) {
  return fmt::format(step_line, step.step, fmt::format("{:.6f}", step.loss),
                     step.measured ? format_time(step.duration) : "warm-up");
}

std::string to_text(const TrainReport& report) {
  std::string text =
      fmt::format("step      {:>9}   the median of {}\n", format_time(report.step_time), report.durations.size());
  text +=
      fmt::format("makespan  {:>9}   of the step of median time, from its first op to its last; predicted {}\n",
                  format_time(report.difference.makespan.measured), format_time(report.difference.makespan.planned));
  if (const auto overlap = overlap_of(report.difference)) text += to_text(*overlap);
  text += "\n" + ranks_text(report.difference);
  if (report.check) text.append("\n").append(to_text(*report.check));
  return text;
}

void write_json(std::ostream& out, const TrainReport& report) {
  Json json = detail::report::json_title(report);
  json["model"] = report.model;
  json["devices"] = report.machine.devices;
  json["transport"] = report.machine.transport;
  json["dtype"] = to_text(report.machine.precision);
  json["copy"] = report.machine.gpu.copy;
  json["sm_partition"] = report.machine.gpu.sm_partition;
  json["first_step"] = report.first_step;
  json["losses"] = report.losses;
  json["steps_ns"] = report.durations;
  json["step_ns"] = report.step_time;
  if (!report.failure.empty()) {
    json["failure"] = report.failure;
    out << detail::report::json_text(json);
    return;
  }
  json["predicted_makespan_ns"] = report.difference.makespan.planned;
  json["measured_makespan_ns"] = report.difference.makespan.measured;
  if (const auto overlap = overlap_of(report.difference)) {
    json["forward_ns"] = overlap->forward;
    json["backward_ns"] = overlap->backward;
    json["overlapped_ns"] = overlap->pair;
    json["overlapped_of_sum"] = overlap->share_of_sum();
  }
  json["per_rank"] = Json::array();
  for (const RankDifference& rank : report.difference.per_rank) json["per_rank"].push_back(to_json(rank));
  json["compare"] = detail::report::to_json(report.difference);
  if (report.check) add_check(json, *report.check);
  out << detail::report::json_text(json);
}

}  // namespace dualpipe
