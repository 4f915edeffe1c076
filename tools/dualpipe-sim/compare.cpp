#include "dualpipe/sim/report/compare.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "commands.h"
#include "dualpipe/sim/explain/measured_costs.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/trace/run_reader.h"
#include "tools/common/options.h"
#include "tools/common/output.h"
#include "trace_files.h"

namespace dualpipe {
namespace {

struct CompareOptions {
  ScheduleOptions first;
  std::string second;
  std::vector<std::string> more;  // files of the second, where it has one for each rank
  TraceOptions traces;            // besides the files
  CostOptions costs;
  std::vector<std::string> costs_files;
  std::string json;

  [[nodiscard]] bool has_costs() const { return !costs_files.empty() || !costs.given().empty(); }

  // As `first`, with what is of files and of the catalog alone where it belongs.
  [[nodiscard]] ScheduleOptions of(const std::string& source) const {
    ScheduleOptions options = first;
    options.source = source;
    if (!options.file().empty()) return options;
    options.chains = options.letters = "";
    // Chunks, and the like, may be those of the other one.
    const auto takes = [](const std::string& name, const Parameter& parameter) {
      const auto found = std::ranges::find(catalog(), name, &Family::name);
      return found != catalog().end() && (*found).*parameter.is_taken;
    };
    for (std::size_t i = 0; i < options.shape.values.size(); ++i) {
      const Parameter& each = parameters()[i];
      const bool is_taken = takes(first.source, each) || takes(second, each);
      if (is_taken && !takes(source, each)) options.shape.values[i] = "";
    }
    return options;
  }
};

// --- traces

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

Comparison comparison_of_traces(const CompareOptions& options) {
  const Trace first = read(options.first.source);
  if (!options.second.empty()) return compare(pick(first, "planned"), pick(read(options.second), "measured"));
  if (first.runs.size() == 1) {
    throw InputError(fmt::format("{}: it has one run; name the trace to compare it with, too", first.name));
  }
  return compare(pick(first, "planned"), pick(first, "measured"));
}

// --- schedules

enum class Content : std::uint8_t { trace, schedule, missing };

Content content_of(const CompareOptions& options, const std::string& source) {
  if (options.of(source).file().empty()) return Content::schedule;
  if (source == "-") {
    const int c = std::cin.peek();
    const bool is_csv = c != std::char_traits<char>::eof() && !is_trace(std::string(1, static_cast<char>(c)));
    return is_csv ? Content::schedule : Content::trace;
  }
  std::error_code error;
  if (!std::filesystem::exists(source, error)) return Content::missing;
  if (!std::filesystem::is_regular_file(source, error)) return Content::trace;  // of a pipe nothing is known before
  return is_trace_file(source) ? Content::trace : Content::schedule;
}

enum class Kinds : std::uint8_t { schedules, traces, plan_and_run };

// What is to be compared. Throws InputError where a trace comes first, and then a schedule.
Kinds kinds_of(const CompareOptions& options) {
  const std::string& first = options.first.source;
  const std::string& second = options.second;
  const Content a = content_of(options, first);
  const Content b = second.empty() ? Content::missing : content_of(options, second);
  if (a == Content::schedule && b == Content::trace && second != "-") return Kinds::plan_and_run;
  if ((a == Content::trace && b == Content::schedule) || (a == Content::schedule && b == Content::trace)) {
    throw InputError(
        a == Content::trace
            ? fmt::format(
                  "{}: it is a schedule, and {} is a trace; name the schedule first, then all traces of the run",
                  second, first)
            : fmt::format("{}: a trace that is compared with a schedule is a file; name it", "standard input"));
  }
  const bool may_be_a_name = a == Content::missing && first.find_first_of("./\\") == std::string::npos;
  const bool has_schedules =
      a == Content::schedule || b == Content::schedule || (may_be_a_name && b == Content::missing);
  return has_schedules ? Kinds::schedules : Kinds::traces;
}

std::string stem_of(const std::string& source) {
  return source == "-" ? "standard input" : std::filesystem::path(source).stem().string();
}

struct Side {
  std::string source;
  std::string name;
  std::string label;
  ScheduleOptions options = {};
  Program program = {};
  Costs costs = {};
};

// Short names, where they tell the two apart.
void set_names(const CompareOptions& options, Side& a, Side& b) {
  for (Side* side : {&a, &b}) {
    side->name = side->source == "-" ? "standard input" : side->source;
    side->label = options.of(side->source).file().empty() ? side->source : stem_of(side->source);
  }
  if (options.costs_files.size() == 2) {
    const auto& files = options.costs_files;
    const bool differ = stem_of(files[0]) != stem_of(files[1]);
    for (auto& [side, file] : {std::pair(&a, files[0]), std::pair(&b, files[1])}) {
      side->name += fmt::format(", costs of {}", file);
      const std::string short_file = differ ? stem_of(file) : file;
      side->label = a.source == b.source ? short_file : fmt::format("{}, {}", side->label, short_file);
    }
  }
  if (a.label == b.label) {
    a.label = a.name;
    b.label = b.name;
  }
  if (a.label == b.label) {
    a.label = "A";
    b.label = "B";
  }
}

// A schedule of the catalog beside a file has the file's shape.
void load(const CompareOptions& options, Side& a, Side& b, std::vector<std::string>& remarks) {
  const auto is_file = [&](const Side& side) { return !options.of(side.source).file().empty(); };
  if (!is_file(a) && !is_file(b)) options.first.shape.check_used(std::vector{a.source, b.source});
  const bool b_first = is_file(b) && !is_file(a);
  std::optional<ShapeOptions> of_file;
  for (Side* side : {b_first ? &b : &a, b_first ? &a : &b}) {
    ScheduleOptions own = options.of(side->source);
    if (!is_file(*side) && of_file) {
      own.shape.ranks = of_file->ranks;
      own.shape.micro_batches = of_file->micro_batches;
    } else if (is_file(*side) && is_file(a) != is_file(b)) {
      std::ranges::fill(own.shape.values, "");
    }
    if (!is_file(*side)) own.shape.keep_taken_by(side->source);
    side->options = own;
    own.memory_limit = "";  // of a plan that has no costs yet
    std::vector<std::string> own_remarks;
    auto loaded = own.load({}, &own_remarks);
    side->program = lower_valid(std::move(loaded), false, own_remarks);
    remarks.insert(remarks.end(), own_remarks.begin(), own_remarks.end());
    if (!is_file(*side)) continue;
    const Schedule& schedule = side->program.schedule;
    of_file.emplace();
    of_file->ranks = std::to_string(schedule.ranks());
    of_file->micro_batches = std::to_string(schedule.total_micro_batches());
  }
}

// One model for both, whatever stages they make of it.
void set_costs(const CompareOptions& options, Side& a, Side& b) {
  const bool has_same_stages = a.program.schedule.placement.stages() == b.program.schedule.placement.stages();
  std::size_t number = 0;
  Used used = used_by(a.program.schedule);
  used.add(used_by(b.program.schedule));
  used.reduces = false;  // when reductions end is not compared
  for (Side* side : {&a, &b}) {
    CostOptions own = options.costs;
    if (!options.costs_files.empty())
      own.file = options.costs_files[std::min(number++, options.costs_files.size() - 1)];
    const GivenCosts given = own.costs();
    own.check_used(used, given);
    const Placement& placement = side->program.schedule.placement;
    side->costs =
        has_same_stages ? stage_costs(given, placement) : stage_costs(of_model(given, placement.ranks), placement);
  }
}

// An automatic schedule, once it is known what its stages cost beside the other's.
void plan(Side& side) {
  const bool is_automatic = side.options.file().empty() && family(side.source).is_automatic;
  if (is_automatic) side.program = lower_valid(side.options.load(side.costs));
  side.options.check_memory(side.program, side.costs);
}

void check_is_comparable(const CompareOptions& options) {
  if (options.costs_files.size() > 2)
    throw CLI::ValidationError("--costs", "there is one for A, and one for B; no more");
  const std::string& first = options.first.source;
  if (options.second.empty() && options.costs_files.size() < 2) {
    throw InputError(
        fmt::format("{}: a schedule is compared with another one, which is missing, or under two costs: --costs A.json "
                    "--costs B.json",
                    first));
  }
  if (first == "-" && options.second == "-") throw InputError("only one of A and B can be standard input");
}

Comparison comparison_of_schedules(const CompareOptions& options, std::vector<std::string>& remarks) {
  check_is_comparable(options);
  Side a{options.first.source, {}, {}};
  Side b{options.second.empty() ? options.first.source : options.second, {}, {}};
  set_names(options, a, b);
  if (options.second.empty()) {
    a.options = b.options = options.of(a.source);
    ScheduleOptions own = a.options;
    own.memory_limit = "";
    a.program = lower_valid(own.load({}, &remarks), false, remarks);
    b.program = a.program;
  } else {
    load(options, a, b, remarks);
  }
  set_costs(options, a, b);
  plan(a);
  if (options.second.empty()) {
    b.program = a.program;  // planned for A's costs, under both
    b.options.check_memory(b.program, b.costs);
  } else {
    plan(b);
  }
  return compare_schedules(simulated(a.name, a.program, a.costs), simulated(b.name, b.program, b.costs),
                           {a.label, b.label});
}

// --- a schedule, and a run of it

// What the run took, by which it is planned where nobody says what things cost.
GivenCosts costs_of_run(const TraceOptions::Loaded& loaded, const Placement& plan, std::vector<std::string>& remarks) {
  const MeasuredRun& run = loaded.measured;
  const MeasuredCosts measured = measured_costs(run.program, run.timeline, loaded.messages);
  remarks.insert(remarks.end(), measured.remarks.begin(), measured.remarks.end());
  remarks.emplace_back("planned with the run's own medians; --costs, and the like, say others");
  const Placement& ran = run.program.schedule.placement;
  if (ran.rank_of == plan.rank_of) return measured.costs;
  return of_model(measured.costs, ran.ranks);
}

// A schedule of the catalog has the run's shape.
ScheduleOptions plan_of_run(const CompareOptions& options, const Schedule& ran) {
  ScheduleOptions plan = options.of(options.first.source);
  if (!plan.file().empty()) return plan;
  plan.shape.keep_taken_by(plan.source);
  if (plan.shape.ranks.empty()) plan.shape.ranks = std::to_string(ran.ranks());
  if (plan.shape.micro_batches.empty()) plan.shape.micro_batches = std::to_string(ran.total_micro_batches());
  return plan;
}

Comparison comparison_with_run(const CompareOptions& options, std::vector<std::string>& remarks) {
  if (options.costs_files.size() > 1)
    throw CLI::ValidationError("--costs", "what was measured has none; one is enough");
  TraceOptions traces = options.traces;
  traces.files = options.more;
  traces.files.insert(traces.files.begin(), options.second);
  if (traces.kind() == TraceFormat::primus) traces.chunks = chunks_given(options.first.shape);
  const TraceOptions::Loaded loaded = traces.load();
  remarks.insert(remarks.end(), loaded.remarks.begin(), loaded.remarks.end());
  const MeasuredRun& run = loaded.measured;
  const ScheduleOptions plan = plan_of_run(options, run.program.schedule);
  CostOptions said = options.costs;
  if (!options.costs_files.empty()) said.file = options.costs_files[0];
  ScheduleOptions without_limit = plan;
  without_limit.memory_limit = "";  // of a plan that has no costs yet
  const GivenCosts given =
      options.has_costs() ? said.costs() : costs_of_run(loaded, schedule_of(without_limit.load({})).placement, remarks);
  const Planned planned_run = planned(plan, said, given);
  remarks.insert(remarks.end(), planned_run.remarks.begin(), planned_run.remarks.end());
  const std::string more = options.more.empty() ? "" : fmt::format(", and {} more", options.more.size());
  return compare_plan(simulated(options.first.source, planned_run.program, planned_run.costs),
                      run_of(options.second + more, run.program, run.timeline, run.peaks));
}

// What a trace has in it, no option can say.
void check_usage(const CLI::App& app, const CompareOptions& options, Kinds kinds) {
  if (kinds != Kinds::plan_and_run) {
    if (!options.more.empty()) {
      throw CLI::ValidationError(options.more[0], "two are compared; more files are of a run, behind its schedule");
    }
    if (const std::string option = options.traces.given(); !option.empty()) {
      throw CLI::ValidationError(option, "it is for a schedule and the traces of its run; leave it out");
    }
  }
  if (kinds != Kinds::traces) return;
  for (const CLI::Option* option : app.get_options()) {
    const std::string name = option->get_name();
    if (option->count() == 0 || option->get_positional() || name == "--json") continue;
    throw CLI::ValidationError(name, "it does nothing with traces; it is for schedules, which are simulated");
  }
}

Comparison compared(const CompareOptions& options, Kinds kinds, std::vector<std::string>& remarks) {
  switch (kinds) {
    case Kinds::schedules:
      return comparison_of_schedules(options, remarks);
    case Kinds::traces:
      return comparison_of_traces(options);
    default:
      return comparison_with_run(options, remarks);
  }
}

void run(const CLI::App& app, const CompareOptions& options) {
  std::vector<NamedFile> results{{"--json", options.json, "differences"}};
  if (options.json != "-") results.push_back({"standard output", "-", "text"});
  std::vector<NamedFile> inputs{{"A", options.of(options.first.source).file(), "trace"},
                                {"B", options.of(options.second).file(), "trace"}};
  for (const std::string& file : options.costs_files) inputs.push_back({"--costs", file, "costs"});
  for (const std::string& file : options.more) inputs.push_back({"TRACE", file, "trace"});
  inputs.push_back({"--schedule", options.traces.schedule, "schedule"});
  check_apart(results, inputs);

  const Kinds kinds = kinds_of(options);
  check_usage(app, options, kinds);
  std::vector<std::string> remarks;
  const Comparison comparison = compared(options, kinds, remarks);
  if (!options.json.empty()) {
    write_output(options.json, [&](std::ostream& out) { write_json(out, comparison); });
  }
  if (options.json == "-") return print_notes(remarks);
  print(remarks_text(remarks) + to_text(comparison));
}

}  // namespace

void add_compare(CLI::App& app) {
  auto options = std::make_shared<CompareOptions>();
  CLI::App& compare = *app.add_subcommand(
      "compare", "Two schedules, one under two costs, a schedule and its run, or two runs from their Chrome traces");
  add_schedule(compare, options->first, "A");
  compare.get_option("A")->description(
      "A schedule, of the catalog or a CSV or JSON file; or what was planned, a trace of dualpipe-sim or dualpipe-run; "
      "- reads one");
  compare
      .add_option(
          "B", options->second,
          "The same; or what was measured, a trace of ours or of another tool, without which the trace A has both "
          "runs (dualpipe-run --compare --trace)")
      ->type_name("NAME|FILE");
  compare.add_option("TRACE", options->more, "The run's other traces, where there is one for each rank")
      ->type_name("FILE");
  options->traces.add_to(compare);
  add_costs(compare, options->costs);
  const std::string durations = compare.get_option("--costs")->get_group();
  compare.remove_option(compare.get_option("--costs"));
  compare
      .add_option("--costs", options->costs_files, "All costs, from a JSON file; given twice, one for A and one for B")
      ->allow_extra_args(false)
      ->type_name("FILE")
      ->group(durations);
  compare.add_option("--json", options->json, "All figures (a file, or - for stdout)")->type_name("FILE");
  compare.footer(
      "Two schedules run one model on the same ranks: what is given of a stage is a rank's share of it where they "
      "have other stages. A schedule of the catalog beside a file has the file's shape.\n"
      "A schedule beside traces has the shape of the run, and without costs the run's own medians.\n"
      "Of a trace with a planned and a measured run, A gives the planned one, B the measured one. A run that ended "
      "early is compared up to where it ended.\n"
      "\n"
      "Examples:\n"
      "  dualpipe-sim compare 1f1b zb1p --ranks 8 --microbatches 24\n"
      "  dualpipe-sim compare mine.csv zb1p\n"
      "  dualpipe-sim compare zb1p --ranks 8 --microbatches 24 --costs a.json --costs b.json\n"
      "  dualpipe-run 1f1b --ranks 2 --microbatches 8 --compare --trace out.json\n"
      "  dualpipe-sim compare out.json\n"
      "  dualpipe-sim compare 1f1b rank0.json.gz rank1.json.gz --costs costs.json\n"
      "  dualpipe-sim compare planned.json measured.json --json difference.json");
  compare.callback([options, &compare] { run(compare, *options); });
}

}  // namespace dualpipe
