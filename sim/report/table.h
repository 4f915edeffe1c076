// Schedules side by side: what the closed form says, what the simulation says, and whether the form's condition holds.
//
//   schedule  ranks  closed form    it says  simulated  it holds  bubble  by span  makespan  activations  parameters
//   1f1b          8  (P-1)(F+B)       21 ms      21 ms  yes       25.93%   25.93%     81 ms         1..8          1x
//   zb1p          8  (P-1)(F+B-2W)     7 ms       7 ms  yes       10.45%   10.45%     67 ms         1..8          1x
//
// "simulated" is the idle time of the rank that idles most, by makespan or, where the form is by span, by span.
// "bubble" is the idle share of ranks x makespan, "by span" the same with the longest rank's span as the cost.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/model_costs.h"
#include "dualpipe/sim/report/closed_form.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

// What is equal between the rows when some schedules put several stages on a rank.
enum class EqualTerms : std::uint8_t {
  stages,  // as in DeepSeek's table: the model is cut into as many stages as there are ranks, and a schedule with V
           // stages per chain and rank runs on 1/V of the ranks
  ranks,   // all run on the same ranks, and have V times as many stages
};

struct TableRow {
  std::string schedule;
  Shape shape;
  std::string unfit;  // why the schedule has no such shape; then nothing below means anything
  int stages = 0;
  std::optional<ClosedForm> form;  // none: not known
  Time bubble = 0;                 // what to compare the form with
  Time makespan = 0;
  Time span = 0;
  double bubble_rate_makespan = 0;
  double bubble_rate_span = 0;
  int peak_activations_least = 0;  // over the ranks
  int peak_activations_most = 0;
  Bytes peak_memory = 0;               // of the rank that needs most
  int parameters = 0;                  // stages whose parameters a rank holds
  bool overlapped_is_assumed = false;  // it has pairs, and the costs of the model no F&B: F + B instead
};

struct ScheduleTable {
  EqualTerms terms = EqualTerms::stages;
  Shape shape;
  std::vector<TableRow> rows;
};

// `shape` is that of a schedule with one stage per rank; its chunks are used by the families that take them.
// Throws InputError for an unknown name, DeadlockError if a schedule hangs.
[[nodiscard]] ScheduleTable schedule_table(const std::vector<std::string>& schedules, const Shape& shape,
                                           EqualTerms terms, const GivenCosts& costs);

[[nodiscard]] std::string to_text(const ScheduleTable& table);
[[nodiscard]] std::string to_markdown(const ScheduleTable& table);
[[nodiscard]] std::string to_csv(const ScheduleTable& table);  // times in nanoseconds
[[nodiscard]] std::string to_json(const ScheduleTable& table);

}  // namespace dualpipe
