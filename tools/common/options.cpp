#include "tools/common/options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iostream>

#include "dualpipe/sim/options/value.h"

namespace dualpipe {
namespace {

// "--chunks,-v": it has a letter.
std::string names_of(const Parameter& parameter) {
  return option_of(parameter) + (parameter.name == "chunks" ? ",-v" : "");
}

}  // namespace

CLI::Option* add_choice(CLI::App& app, const std::string& name, std::string& value,
                        const std::vector<std::string>& choices, const std::string& help) {
  const std::string option = name.substr(0, name.find(','));
  return app.add_option(name, value, help)
      ->type_name(fmt::format("{{{}}}", fmt::join(choices, ",")))
      ->default_str(value)
      ->check([option, choices](const std::string& text) {
        check_choice(option, text, choices);
        return std::string();
      });
}

CLI::Option* add_output(CLI::App& app, const std::string& name, std::string& path, const std::string& help) {
  return app.add_option(name, path, help)->expected(0, 1)->default_str("-")->type_name("[FILE]");
}

CLI::Option* add_list(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                      const std::string& help) {
  return app.add_option_function<std::string>(
      name,
      [&values, name](const std::string& text) {
        values = split_list(text);
        if (std::ranges::find(values, "") == values.end()) return;
        throw CLI::ValidationError(name.substr(0, name.find(',')), "a value of the list is empty");
      },
      help);
}

void add_parameters(CLI::App& app, ShapeOptions& shape) {
  for (std::size_t i = 0; i < shape.values.size(); ++i) {
    const Parameter& each = parameters()[i];
    if (families_that_take(each).empty()) continue;
    const auto otherwise = each.value == &Shape::chunks ? fmt::format(" ({})", default_chunks) : "";
    app.add_option(names_of(each), shape.values[i],
                   fmt::format("{}: {}; of {}{}", each.symbol, each.what, families_that_take(each), otherwise))
        ->type_name("N")
        ->group("Shape");
  }
}

namespace {

void add_values(CLI::App& app, const char* name, std::vector<std::string>& values, const char* type, const char* help,
                const char* group) {
  add_list(app, name, values, help)->type_name(type)->group(group);
}

void add_value(CLI::App& app, const char* name, std::string& text, const char* type, const char* help,
               const char* group) {
  app.add_option(name, text, help)->type_name(type)->group(group);
}

}  // namespace

void add_durations(CLI::App& app, CostOptions& costs) {
  constexpr auto durations =
      "Durations of one stage (1.5ms, 850us, ...; a bare number is ms; A,B,... is one per stage)";
  add_values(app, "--forward,-f", costs.forward, "TIME", "F, forward (1ms)", durations);
  add_values(app, "--backward,-b", costs.backward, "TIME", "B, the full backward; I = B - W (2ms)", durations);
  add_values(app, "--weight,-w", costs.weight, "TIME", "W, the weight-gradient half of B (1ms)", durations);
  add_values(app, "--recompute-time", costs.recompute, "TIME",
             "The forward that runs again before B or I, on top of them (0)", durations);
  add_values(app, "--overlapped", costs.overlapped, "TIME", "F&B, one overlapped pair (F + B: no gain)", durations);
  add_value(app, "--costs", costs.file, "FILE",
            "All costs, from a JSON file (dualpipe-costs), instead of those of stages", durations);
}

void add_costs(CLI::App& app, CostOptions& costs) {
  add_durations(app, costs);

  constexpr auto memory = "Memory of one stage (64MiB, 2GB, ...)";
  add_values(app, "--activation-bytes", costs.activation, "BYTES", "M_B: held from F to B or I, per micro-batch (0)",
             memory);
  add_values(app, "--recompute-activation-bytes", costs.recompute_activation, "BYTES",
             "What of it is held where the forward runs again (all)", memory);
  add_values(app, "--weight-stash-bytes", costs.weight_stash, "BYTES", "M_W: what of it stays until W (0)", memory);
  add_values(app, "--workspace-bytes", costs.workspace, "BYTES",
             "What an op, of any pass, needs besides while it runs (0)", memory);
  add_values(app, "--parameter-bytes", costs.parameters, "BYTES", "Parameters (0)", memory);
  add_values(app, "--gradient-bytes", costs.gradients, "BYTES",
             "Gradients; reduced between stages that share weights (0)", memory);
  add_values(app, "--optimizer-bytes", costs.optimizer, "BYTES", "Optimizer state (0)", memory);

  constexpr auto messages = "Communication";
  add_choice(app, "--comm", costs.communication, {"latency", "links", "stream"},
             "How messages move. latency: links never contend (default); links: each carries one message at a time; "
             "stream: a rank's "
             "messages go in order, as in NCCL")
      ->group(messages);
  add_value(app, "--latency", costs.latency, "TIME", "Of one message (0; a bare number is ms)", messages);
  add_value(app, "--bandwidth", costs.bandwidth, "RATE",
            "Of a link, with its unit: 50GB/s are bytes, 400Gbps bits; 0 is infinite (0)", messages);
  add_values(app, "--bytes", costs.message, "BYTES", "Of a message: a stage's output, and its gradient (0)", messages);

  constexpr auto differences = "Ranks that differ";
  add_values(app, "--speed", costs.speed, "X", "Per rank: durations are divided by it (1)", differences);
  add_value(app, "--launch", costs.launch, "TIME", "Overhead between two ops of a rank (0; a bare number is ms)",
            differences);
  add_value(app, "--jitter", costs.jitter, "X", "Durations vary evenly by up to this share (0)", differences);
  add_value(app, "--seed", costs.seed, "N", "Of the jitter (0)", differences);
  app.add_flag("--release-early", costs.release_early,
               "An F&B pair hands over F and B when each is ready, not at its end")
      ->group(differences);
}

void add_planned_costs(CLI::App& app, CostOptions& costs) {
  add_costs(app, costs);
  for (const char* const other : {"--overlapped", "--jitter", "--seed", "--release-early"}) {
    app.remove_option(app.get_option(other));
  }
}

void add_schedule(CLI::App& app, ScheduleOptions& schedule, const std::string& name) {
  schedule.standard_input = &std::cin;
  app.add_option(name, schedule.source,
                 "A name of the catalog (see `dualpipe-sim schedules`), or a CSV or JSON file; - reads one")
      ->required()
      ->type_name("NAME|FILE");
  const auto add_count = [&](const std::string& option, std::string& value, const std::string& help) {
    app.add_option(option, value, help)->type_name("N")->group("Shape");
  };
  add_count("--ranks,-p", schedule.shape.ranks, "Pipeline ranks, P");
  add_count("--microbatches,-m", schedule.shape.micro_batches, "Micro-batches, the total over both directions");
  add_parameters(app, schedule.shape);
  app.add_option("--chains", schedule.chains, "Of a CSV file: how many chains its stages are; 2 for DualPipe (1)")
      ->type_name("N")
      ->group("Shape");
  app.add_option(
         "--memory-limit", schedule.memory_limit,
         "Of the peak of every rank, as 40GiB; or of its activations, as 12microbatches. An automatic schedule "
         "keeps it, another one is refused if it does not (zbv-auto: as many micro-batches as ranks; else none)")
      ->type_name("BYTES")
      ->group("Memory of a rank");
  add_choice(app, "--letters", schedule.letters, {"new", "old"},
             "Of a CSV file: what B is. new: the full backward, F B I W; old: PyTorch's letters before that, as the "
             "zero-bubble papers', F BW B W (what the file shows)")
      ->group("Shape");
}

}  // namespace dualpipe
