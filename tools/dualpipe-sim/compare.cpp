#include "dualpipe/sim/report/compare.h"

#include <fmt/core.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "commands.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/trace/run_reader.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

struct CompareOptions {
  std::string first;
  std::string second;
  std::string json;
};

struct Trace {
  std::string name;
  std::vector<TraceRun> runs;
};

Trace read(const std::string& path) {
  if (path == "-") return {"standard input", read_chrome_trace(std::cin, "standard input")};
  return {path, load_chrome_trace(path)};
}

// The run that a trace has, or of several the one with this label.
NamedRun pick(const Trace& trace, std::string_view label) {
  if (trace.runs.size() == 1) return {trace.name, trace.runs[0]};
  const auto run = std::ranges::find(trace.runs, label, &TraceRun::label);
  if (run == trace.runs.end()) {
    throw InputError(fmt::format("{}: none of its {} runs is labelled \"{}\"", trace.name, trace.runs.size(), label));
  }
  return {fmt::format("{}, {}", trace.name, label), *run};
}

Comparison comparison_of(const CompareOptions& options) {
  const Trace first = read(options.first);
  if (!options.second.empty()) return compare(pick(first, "planned"), pick(read(options.second), "measured"));
  if (first.runs.size() == 1) {
    throw InputError(fmt::format("{}: it has one run; name the trace to compare it with, too", first.name));
  }
  return compare(pick(first, "planned"), pick(first, "measured"));
}

void run(const CompareOptions& options) {
  std::vector<NamedFile> results{{"--json", options.json, "differences"}};
  if (options.json != "-") results.push_back({"standard output", "-", "text"});
  check_apart(results, std::vector<NamedFile>{{"A", options.first, "trace"}, {"B", options.second, "trace"}});
  const Comparison comparison = comparison_of(options);
  if (!options.json.empty()) {
    write_output(options.json, [&](std::ostream& out) { write_json(out, comparison); });
  }
  if (options.json != "-") write_output("-", [&](std::ostream& out) { out << to_text(comparison); });
}

}  // namespace

void add_compare(CLI::App& app) {
  auto options = std::make_shared<CompareOptions>();
  CLI::App& compare = *app.add_subcommand("compare", "How two runs of one schedule differ, from their Chrome traces");
  compare.add_option("A", options->first, "What was planned: a trace of dualpipe-sim or dualpipe-run; - reads one")
      ->required();
  compare.add_option("B", options->second,
                     "What was measured; without it, A has both runs (dualpipe-run --compare --trace)");
  compare.add_option("--json", options->json, "All figures (a file, or - for stdout)")->type_name("FILE");
  compare.footer(
      "Of a trace with a planned and a measured run, A gives the planned one, B the measured one. A run that ended "
      "early\n"
      "is compared up to where it ended.\n"
      "\n"
      "Examples:\n"
      "  dualpipe-run --schedule 1f1b --ranks 2 --microbatches 8 --compare --trace out.json\n"
      "  dualpipe-sim compare out.json\n"
      "  dualpipe-sim compare planned.json measured.json --json difference.json");
  compare.callback([options] { run(*options); });
}

}  // namespace dualpipe
