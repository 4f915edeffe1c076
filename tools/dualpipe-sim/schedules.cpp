#include <iostream>
#include <memory>

#include "commands.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/report/text_table.h"
#include "tools/common/output.h"

namespace dualpipe {

void add_schedules(CLI::App& app) {
  auto format = std::make_shared<std::string>("text");
  CLI::App& schedules =
      *app.add_subcommand("schedules", "Lists the schedules of the catalog, and the shapes they have");
  schedules.add_option("--format", *format, "text, markdown or csv")
      ->check(CLI::IsMember({"text", "markdown", "csv"}))
      ->capture_default_str();
  schedules.footer("Examples:\n  dualpipe-sim schedules\n  dualpipe-sim schedules --format markdown");
  schedules.callback([format] {
    TextTable table(
        {{"name", Align::left}, {"what it is", Align::left}, {"shapes", Align::left}, {"source", Align::left}});
    for (const Family& family : catalog()) {
      table.add_row(
          {std::string(family.name), std::string(family.title), std::string(family.rule), std::string(family.paper)});
    }
    const std::string text = *format == "markdown" ? table.to_markdown()
                             : *format == "csv"    ? table.to_csv()
                                                   : table.to_text();
    write_output("-", [&](std::ostream& out) { out << text; });
  });
}

}  // namespace dualpipe
