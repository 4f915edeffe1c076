// Schedules in Python.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <variant>
#include <vector>

#include "dualpipe/sim/options/schedule_options.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::python {

// A schedule, with communication where its file had some, and what a user must know of how it was made or read.
struct ScheduleValue {
  std::variant<Schedule, Program> loaded;
  std::vector<std::string> remarks = {};

  [[nodiscard]] const Schedule& schedule() const { return schedule_of(loaded); }
};

void bind_schedule(nanobind::module_& module);

// What `source` and the arguments say of a schedule: a name of the catalog, a path, or a ScheduleValue, to which the
// options then refer. Throws TypeError as read().
[[nodiscard]] ScheduleOptions schedule_options(nanobind::handle source, const nanobind::kwargs& arguments);
// Of a signature: "ranks: …".
[[nodiscard]] std::string schedule_signature();

}  // namespace dualpipe::python
