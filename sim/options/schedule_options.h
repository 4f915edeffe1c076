// Where a schedule comes from, as people say it.
#pragma once

#include <cstddef>
#include <iosfwd>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "dualpipe/sim/costs/model_costs.h"
#include "dualpipe/sim/options/cost_options.h"
#include "dualpipe/sim/options/shape_options.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/schedule/validate.h"

namespace dualpipe {

// A name of the catalog with a shape, or a file that has its own; or a schedule that is there already.
struct ScheduleOptions {
  std::string source;
  std::string chains;
  std::string memory_limit;
  std::string letters;
  ShapeOptions shape;
  std::istream* standard_input = nullptr;  // what the source "-" is read from; without, it is a file like any other
  const std::variant<Schedule, Program>* given = nullptr;  // instead of the source, which is then its name

  // The file that it is read from, "-" for standard input; empty where it is of the catalog.
  [[nodiscard]] std::string file() const;
  // A Program where the file has communication of its own. An automatic schedule is planned for these costs, and for
  // the memory limit. Throws InputError, and UsageError for an option that a schedule like this one has no use for;
  // does not validate. What a user must know of how the file was read, or the schedule made, is added to `remarks`.
  [[nodiscard]] std::variant<Schedule, Program> load(const GivenCosts& costs,
                                                     std::vector<std::string>* remarks = nullptr) const;
  // Throws MemoryLimitError where ranks hold more than the limit, if there is one.
  void check_memory(const Program& program, const GivenCosts& costs) const;
  [[nodiscard]] std::optional<MemoryLimit> limit() const;
  // Of a schedule of the catalog: that load() generates it with. None: it is of a file, or given.
  [[nodiscard]] std::optional<Shape> catalog_shape() const;
  // Where costs are looked at for the order and the limit alone: throws UsageError where some are given and neither has
  // a use for them.
  void check_used(const CostOptions& costs) const;
};

// One of a list of schedules: what the file has, which is valid; nothing for a name of the catalog. `standard_input`
// and `remarks` as above.
[[nodiscard]] std::optional<std::variant<Schedule, Program>> load_file_of_list(const std::string& name,
                                                                               std::istream* standard_input,
                                                                               std::vector<std::string>& remarks);

[[nodiscard]] const Schedule& schedule_of(const std::variant<Schedule, Program>& loaded);

// Lowers a schedule. Throws InputError if a rule is broken, naming what breaks it: a screenful, or all; and then the
// remarks, which may be why.
[[nodiscard]] Program lower_valid(std::variant<Schedule, Program> loaded, bool all_violations = false,
                                  std::span<const std::string> remarks = {});

// What is to be simulated: the schedule lowered, and what its stages cost.
struct Planned {
  Program program;
  Costs costs;
  std::vector<std::string> remarks;
};
// `costs` as they were said, and as they are. Throws InputError, and UsageError for costs that do nothing in this
// schedule.
[[nodiscard]] Planned planned(const ScheduleOptions& schedule, const CostOptions& said, const GivenCosts& costs);

// One per line.
[[nodiscard]] std::string violations_text(const std::vector<Violation>& violations, const Placement& placement,
                                          std::size_t shown_max);

// What a user must know of what was read, a line each, as a part of a report, or of an error.
[[nodiscard]] std::string remarks_text(std::span<const std::string> remarks);

}  // namespace dualpipe
