#include "dualpipe/sim/options/schedule_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <type_traits>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/schedule_file.h"
#include "dualpipe/sim/simulate/memory_limit.h"

namespace dualpipe {

std::string ScheduleOptions::file() const {
  const bool in_catalog = std::ranges::find(catalog(), source, &Family::name) != catalog().end();
  return in_catalog ? "" : source;
}

std::optional<MemoryLimit> ScheduleOptions::limit() const {
  if (memory_limit.empty()) return std::nullopt;
  return value_of("--memory-limit", memory_limit, parse_memory_limit);
}

std::optional<Shape> ScheduleOptions::catalog_shape() const {
  if (given != nullptr || !file().empty()) return std::nullopt;
  Shape asked = shape.shape();
  if (family(source).takes_chunks && !shape.has_chunks()) asked.chunks = default_chunks;
  return asked;
}

void ScheduleOptions::check_memory(const Program& program, const GivenCosts& costs) const {
  if (const auto most = limit()) check_memory_limit(program, stage_costs(costs, program.schedule.placement), *most);
}

void ScheduleOptions::check_used(const CostOptions& costs) const {
  const bool is_automatic = given == nullptr && file().empty() && family(source).is_automatic;
  if (const std::string option = costs.given(); !option.empty() && !is_automatic && memory_limit.empty()) {
    throw UsageError(option,
                     "the order of this schedule does not depend on costs; leave it out, or add "
                     "--memory-limit");
  }
}

std::variant<Schedule, Program> ScheduleOptions::load(const GivenCosts& costs,
                                                      std::vector<std::string>* remarks) const {
  if (given != nullptr) {
    if (!shape.given() && chains.empty() && letters.empty()) return *given;
    throw UsageError(printable(source), "a schedule has its own shape; leave out --ranks, --microbatches and the like");
  }
  if (file().empty()) {
    for (const auto& [option, value] : {std::pair("--letters", &letters), {"--chains", &chains}}) {
      if (value->empty()) continue;
      throw UsageError(option, "it is for CSV files; leave it out with a schedule of the catalog");
    }
    shape.check_used(std::vector{source});
    const Shape asked = catalog_shape().value();
    if (family(source).takes_chunks && !shape.has_chunks() && remarks != nullptr) {
      remarks->push_back(fmt::format("{} chunks per rank, as --chunks does not say how many", default_chunks));
    }
    return generate({.family = source, .shape = asked, .costs = costs, .memory_limit = limit()});
  }
  std::error_code error;
  if (source != "-" && !std::filesystem::exists(source, error) && source.find_first_of("./\\") == std::string::npos) {
    (void)family(source);  // says which names there are
  }
  if (shape.given()) {
    throw UsageError(source, "a file has its own shape; leave out --ranks, --microbatches and the like");
  }
  const auto number = [](std::string_view text) { return parse_integer(text, 1, stage_count_max); };
  ScheduleFileOptions options;
  options.remarks = remarks;
  if (!chains.empty()) options.chains = static_cast<int>(value_of("--chains", chains, number));
  if (!letters.empty()) check_choice("--letters", letters, std::vector<std::string>{"new", "old"});
  if (!letters.empty()) options.letters = letters == "old" ? Letters::old : Letters::current;
  if (source == "-" && standard_input != nullptr) return read_schedule(*standard_input, "standard input", options);
  return load_schedule(source, options);
}

const Schedule& schedule_of(const std::variant<Schedule, Program>& loaded) {
  const Program* program = std::get_if<Program>(&loaded);
  return program != nullptr ? program->schedule : std::get<Schedule>(loaded);
}

namespace {

// Whether all that is wrong is that the stages are two chains.
bool is_valid_as_two_chains(std::variant<Schedule, Program> loaded) {
  return std::visit(
      [](auto& each) {
        Placement* placement = nullptr;
        if constexpr (std::is_same_v<decltype(each), Schedule&>) {
          placement = &each.placement;
        } else {
          placement = &each.schedule.placement;
        }
        if (placement->chains() != 1 || placement->stages() % 2 != 0) return false;
        *placement = in_chains(*placement, 2);
        return validate(each).empty();
      },
      loaded);
}

}  // namespace

Program lower_valid(std::variant<Schedule, Program> loaded, bool all_violations, std::span<const std::string> remarks) {
  const auto violations = std::visit([](const auto& each) { return validate(each); }, loaded);
  if (!violations.empty()) {
    const Placement& placement = schedule_of(loaded).placement;
    throw InputError(fmt::format(
        "the schedule '{}' is not valid:\n{}{}{}", printable(schedule_of(loaded).name),
        violations_text(violations, placement, all_violations ? violations.size() : 20), remarks_text(remarks),
        is_valid_as_two_chains(loaded) ? "as two chains, which DualPipe has, it is valid: say --chains 2" : ""));
  }
  if (auto* program = std::get_if<Program>(&loaded)) return std::move(*program);
  return lower(std::get<Schedule>(std::move(loaded)));
}

std::optional<std::variant<Schedule, Program>> load_file_of_list(const std::string& name, std::istream* standard_input,
                                                                 std::vector<std::string>& remarks) {
  ScheduleOptions options;
  options.source = name;
  options.standard_input = standard_input;
  if (options.file().empty()) return std::nullopt;
  std::vector<std::string> own_remarks;
  auto loaded = options.load({}, &own_remarks);
  static_cast<void>(lower_valid(loaded, false, own_remarks));
  remarks.insert(remarks.end(), own_remarks.begin(), own_remarks.end());
  return loaded;
}

Planned planned(const ScheduleOptions& schedule, const CostOptions& said, const GivenCosts& costs) {
  Planned result;
  auto loaded = schedule.load(costs, &result.remarks);
  result.program = lower_valid(std::move(loaded), false, result.remarks);
  said.check_used(used_by(result.program.schedule), costs);
  schedule.check_memory(result.program, costs);
  result.costs = stage_costs(costs, result.program.schedule.placement);
  return result;
}

std::string violations_text(const std::vector<Violation>& violations, const Placement& placement,
                            std::size_t shown_max) {
  std::string text;
  for (std::size_t i = 0; i < std::min(violations.size(), shown_max); ++i) {
    text += "  " + to_text(violations[i], placement) + "\n";
  }
  if (violations.size() > shown_max) {
    text += fmt::format("  … and {} more (dualpipe-sim validate --all lists them)\n", violations.size() - shown_max);
  }
  return text;
}

std::string remarks_text(std::span<const std::string> remarks) {
  std::string text;
  for (const std::string& remark : remarks) text += printable_lines(remark) + "\n";
  return text;
}

}  // namespace dualpipe
