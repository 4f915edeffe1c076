#include <fmt/core.h>

#include <iostream>
#include <memory>

#include "commands.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/report/closed_form.h"
#include "dualpipe/sim/report/text_table.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

// "--chunks --group"
std::string options_of(const Family& family) {
  std::string options;
  for (const Parameter& each : parameters()) {
    if (family.*each.is_taken) options += fmt::format("{}--{}", options.empty() ? "" : " ", each.name);
  }
  return options;
}

}  // namespace

void add_schedules(CLI::App& app) {
  auto format = std::make_shared<std::string>("text");
  CLI::App& schedules =
      *app.add_subcommand("schedules", "Lists the schedules of the catalog: shapes, options, bubble, source");
  add_choice(schedules, "--format", *format, {"text", "markdown", "csv"}, "How the list is written");
  schedules.footer("Examples:\n  dualpipe-sim schedules\n  dualpipe-sim schedules --format markdown");
  schedules.callback([format] {
    TextTable table({{"name", Align::left},
                     {"what it is", Align::left},
                     {"shapes", Align::left},
                     {"takes", Align::left},
                     {"its order depends on", Align::left},
                     {"bubble, and when", Align::left},
                     {"source", Align::left}});
    for (const Family& family : catalog()) {
      table.add_row({std::string(family.name), std::string(family.title), std::string(family.rule), options_of(family),
                     family.is_automatic ? "shape, costs, memory limit" : "shape", closed_form_text(family),
                     std::string(family.paper)});
    }
    if (*format == "text") return print(table.to_text());
    write_output("-", [&](std::ostream& out) { out << (*format == "csv" ? table.to_csv() : table.to_markdown()); });
  });
}

}  // namespace dualpipe
