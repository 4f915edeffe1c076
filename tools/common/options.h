// What the tools have in common on the command line: the shape, the costs, and where a schedule comes from.
#pragma once

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "dualpipe/sim/costs/model_costs.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/schedule/validate.h"

namespace dualpipe {

// What is wrong with a value is said by who parses it; here, of which option.
template <typename Parse>
auto value_of(std::string_view option, const std::string& text, Parse parse) {
  try {
    return parse(text);
  } catch (const InputError& error) {
    throw InputError(fmt::format("{}: {}", option, error.what()));
  }
}

// An option whose value is one of some. Another one is a bad value, for which the error says what may have been meant.
// What the value is before is the default.
CLI::Option* add_choice(CLI::App& app, const std::string& name, std::string& value,
                        const std::vector<std::string>& choices, const std::string& help);

// An option that names a file for a result, and without one means standard output.
CLI::Option* add_output(CLI::App& app, const std::string& name, std::string& path, const std::string& help);

// An option whose value is a list with commas. An empty item is wrong usage.
CLI::Option* add_list(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                      const std::string& help);

// How many stages each rank has where a schedule takes chunks, and nobody says how many.
inline constexpr int default_chunks = 2;

// The names in the catalog of those that have it: "interleaved or looped-bfs".
[[nodiscard]] std::string families_with(bool Family::*feature);

// What the schedules that are to run have. Costs of anything else would do nothing.
struct Used {
  bool pairs = false;             // F&B
  bool weight_gradients = false;  // W by itself
  bool reduces = false;           // gradients of shared weights, and shows when that ends

  void add(const Used& other);
};
[[nodiscard]] Used used_by(const Schedule& schedule);
// Of names of the catalog. Throws InputError where there is no such schedule.
[[nodiscard]] Used used_by(std::span<const std::string> families);

// Values stay text until they are used: a wrong one is bad input (exit 1), not wrong usage (exit 2).
struct ShapeOptions {
  std::string ranks;
  std::string micro_batches;
  std::vector<std::string> values = std::vector<std::string>(parameters().size());  // in this order

  void add_to(CLI::App& app, const std::string& ranks_help = "Pipeline ranks, P");
  void add_parameters_to(CLI::App& app);  // chunks and the like
  [[nodiscard]] bool given() const;
  [[nodiscard]] bool has_chunks() const;
  // Throws CLI::ValidationError, wrong usage, where a parameter is given that none of these schedules, names of the
  // catalog, takes.
  void check_used(std::span<const std::string> families) const;
  // What else is given is meant for another schedule that is looked at beside this one.
  void keep_taken_by(const std::string& name);
  // What is not given is taken from `defaults`; without, ranks and micro-batches must be. Throws InputError.
  [[nodiscard]] Shape shape(const std::optional<Shape>& defaults = std::nullopt) const;
};

struct CostOptions {
  std::string file;
  std::vector<std::string> forward, backward, weight, recompute, overlapped;  // per stage, or one for all
  std::vector<std::string> activation, recompute_activation, weight_stash, workspace, message, parameters, gradients,
      optimizer;
  std::string communication, latency, bandwidth, launch, jitter, seed;
  std::vector<std::string> speed;  // per rank
  bool release_early = false;

  void add_to(CLI::App& app);
  // Those of a stage's ops alone.
  void add_durations_to(CLI::App& app);
  // Those that an automatic schedule is planned with, and that a memory limit is compared with.
  void add_planned_to(CLI::App& app);
  // One that is given; empty: none is.
  [[nodiscard]] std::string given() const;
  // Throws CLI::ExcludesError, wrong usage, where both a file is given and a value that the file has.
  void check_usage() const;
  // Throws InputError, and what check_usage() throws.
  [[nodiscard]] GivenCosts costs() const;
  // GB where the user types GB: in the value that comes first, or else in those of these options. GiB otherwise.
  [[nodiscard]] ByteUnits byte_units(const std::string& first = {}) const;
  // Throws CLI::ValidationError, wrong usage, where an option was given that does nothing with these costs, which
  // costs() has made, and with what runs. F, B and W are no such: together they say what a model costs, and B = I + W
  // is looked at in any case.
  void check_used(const Used& used, const GivenCosts& costs) const;

 private:
  [[nodiscard]] std::vector<std::pair<const char*, const std::vector<std::string>*>> lists() const;
  [[nodiscard]] Costs of_stages() const;
  void apply_to(MachineCosts& costs) const;
};

// A name of the catalog with a shape, or a file that has its own.
struct ScheduleOptions {
  std::string source;
  std::string chains;
  std::string memory_limit;
  std::string letters;
  ShapeOptions shape;

  // `name`: of the option, or of the argument without dashes, that names the source.
  void add_to(CLI::App& app, const std::string& name = "SCHEDULE");
  // The file that it is read from, "-" for standard input; empty where it is of the catalog.
  [[nodiscard]] std::string file() const;
  // A Program where the file has communication of its own. An automatic schedule is planned for these costs, and for
  // the memory limit. Throws InputError, and CLI::ValidationError, wrong usage, for an option that a schedule like this
  // one has no use for; does not validate. What a user must know of how the file was read, or the schedule made, is
  // added to `remarks`.
  [[nodiscard]] std::variant<Schedule, Program> load(const GivenCosts& costs,
                                                     std::vector<std::string>* remarks = nullptr) const;
  // Throws MemoryLimitError where ranks hold more than the limit, if there is one.
  void check_memory(const Program& program, const GivenCosts& costs) const;
  // Of a subcommand that looks at costs for the order and the limit alone: throws CLI::ValidationError, wrong usage,
  // where some are given and neither has a use for them.
  void check_used(const CostOptions& costs) const;

 private:
  [[nodiscard]] std::optional<MemoryLimit> limit() const;
};

[[nodiscard]] const Schedule& schedule_of(const std::variant<Schedule, Program>& loaded);

// Lowers a schedule. Throws InputError if a rule is broken, naming what breaks it: a screenful, or all; and then the
// remarks, which may be why.
[[nodiscard]] Program lower_valid(std::variant<Schedule, Program> loaded, bool all_violations = false,
                                  std::span<const std::string> remarks = {});

// One per line.
[[nodiscard]] std::string violations_text(const std::vector<Violation>& violations, const Placement& placement,
                                          std::size_t shown_max);

}  // namespace dualpipe
