#include "dualpipe/sim/schedule/validate.h"

#include <fmt/core.h>

#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "commands.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

void run(const ScheduleOptions& options, const CostOptions& costs, bool all) {
  options.check_used(costs);
  const GivenCosts given = costs.costs();
  std::vector<std::string> remarks;
  auto loaded = options.load(given, &remarks);
  const Program program = lower_valid(std::move(loaded), all, remarks);
  options.check_memory(program, given);
  const Schedule& schedule = program.schedule;
  std::string text =
      fmt::format("{}: {}, {}, {}, {}, {}\n", printable(schedule.name),
                  format_count(static_cast<std::uint64_t>(schedule.ranks()), "rank"),
                  format_count(static_cast<std::uint64_t>(schedule.placement.stages()), "stage"),
                  format_count(schedule.total_micro_batches(), "micro-batch", "es"),
                  format_count(schedule.ops.size(), "op"), format_count(program.communication.size(), "message"));
  text += remarks_text(remarks);
  text += "rules: all kept\n";
  std::string hangs;
  for (const auto& [name, model] : {std::pair{"latency", CommunicationModel::latency},
                                    {"links", CommunicationModel::links},
                                    {"stream", CommunicationModel::stream}}) {
    const auto deadlock = find_deadlock(program, model);
    text += fmt::format("{}: {}\n", name, deadlock ? "hangs" : "completes");
    if (deadlock && hangs.empty()) {
      hangs = fmt::format("{} hangs under {}; each of these waits for the next, and the last for the first:\n{}",
                          printable(schedule.name), name, to_text(*deadlock, schedule.placement));
    }
  }
  print(text);
  if (!hangs.empty()) throw InputError(hangs);
}

}  // namespace

void add_validate(CLI::App& app) {
  auto options = std::make_shared<ScheduleOptions>();
  auto costs = std::make_shared<CostOptions>();
  auto all = std::make_shared<bool>(false);
  CLI::App& validate =
      *app.add_subcommand("validate", "Checks every rule, and whether the program would hang; exit status 1 if so");
  add_schedule(validate, *options);
  add_planned_costs(validate, *costs);
  validate.add_flag("--all", *all, "List all violations, not a screenful");
  validate.footer(
      "Examples:\n"
      "  dualpipe-sim validate schedule.csv\n"
      "  dualpipe-sim validate dualpipe.csv --chains 2\n"
      "  dualpipe-sim validate interleaved --ranks 4 --microbatches 8 --chunks 2");
  validate.callback([options, costs, all] { run(*options, *costs, *all); });
}

}  // namespace dualpipe
