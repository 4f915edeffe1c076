#include "tools/common/help.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "dualpipe/sim/schedule/nearest.h"
#include "tools/common/output.h"

namespace dualpipe {

void add_help(CLI::App& app) {
  auto name = std::make_shared<std::string>();
  std::vector<std::string> names;
  for (const CLI::App* each : app.get_subcommands({})) names.push_back(each->get_name());
  CLI::App& help = *app.add_subcommand("help", "What --help of a subcommand, or of all, prints");
  help.add_option("SUBCOMMAND", *name, "One of the others")->type_name(fmt::format("{{{}}}", fmt::join(names, ",")));
  help.callback([&app, name, names] {
    const CLI::App* const asked = name->empty() ? &app : find_subcommand(app, *name);
    if (asked == nullptr) {
      throw CLI::ValidationError(*name, "there is no such subcommand" + did_you_mean(*name, names));
    }
    print(help_text(describe(*asked), help_width()));
  });
}

}  // namespace dualpipe
