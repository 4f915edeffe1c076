#include "dualpipe/sim/sweep/sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <iostream>
#include <memory>

#include "commands.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/sweep_options.h"
#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/sweep/sweep_file.h"
#include "progress.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

struct SweepCommand {
  SweepOptions options;
  std::string output = "-";
  std::string format = "jsonl";
  std::string threads, shard;
  std::string progress = "auto";
  bool resume = false;
};

SweepFileOptions file_options(const SweepCommand& command) {
  SweepFileOptions options;
  options.shard = command.shard.empty()
                      ? shard_of_environment([](const char* name) -> const char* { return std::getenv(name); })
                      : value_of("--shard", command.shard, parse_shard);
  const auto count = [](std::string_view text) { return static_cast<unsigned>(parse_integer(text, 1, 1024)); };
  if (!command.threads.empty()) options.threads = value_of("--threads", command.threads, count);
  options.resume = command.resume;
  return options;
}

Progress::Shown shown(const SweepCommand& command) {
  if (command.progress == "never") return Progress::Shown::never;
  const Progress::Shown bar = Progress::where_people_look();
  return command.progress == "always" && bar == Progress::Shown::never ? Progress::Shown::lines : bar;
}

bool is_csv(const SweepCommand& command) { return command.format == "csv"; }

// CSV has no place for what the lines are of.
void check_format(const SweepCommand& command, const SweepShard& shard) {
  if (command.resume && command.output == "-") {
    throw UsageError("--resume", "it goes on with a file; give the --output");
  }
  if (!is_csv(command)) return;
  constexpr auto instead = "take --format jsonl, of which dualpipe-sim merge makes CSV";
  if (command.resume) throw UsageError("--resume", fmt::format("CSV does not say what it is of; {}", instead));
  if (shard.count > 1) throw UsageError("--shard", fmt::format("CSV does not say what it is of; {}", instead));
}

void write_stream(std::ostream& out, const SweepCommand& command, const Sweep& sweep, const SweepFileOptions& options,
                  Progress& progress) {
  out << (is_csv(command) ? csv_header(sweep.columns()) : sweep.header(options.shard));
  if (!out) return;  // whoever opened it says why, by the errno of this thread
  std::size_t done = 0;
  struct CannotWrite {
    int reason;  // errno of the thread that could not
  };
  const auto take = [&](std::string_view lines, std::size_t count) {
    for (std::size_t begin = 0; is_csv(command) && begin < lines.size();) {
      const std::size_t end = lines.find('\n', begin);
      out << csv_row(sweep.columns(), lines.substr(begin, end - begin));
      begin = end + 1;
    }
    if (!is_csv(command)) out << lines;
    if (!out) throw CannotWrite{errno};
    done += count;
    progress.at(done);
  };
  try {
    sweep.run(options.shard, 0, options.threads, take);
  } catch (const CannotWrite& failure) {
    errno = failure.reason;
  }
}

void run(const SweepCommand& command) {
  const SweepFileOptions options = file_options(command);
  check_format(command, options.shard);
  check_apart(std::vector<NamedFile>{{"--output", command.output, "lines"}},
              std::vector<NamedFile>{{"--costs", command.options.costs.file, "costs"}});
  std::vector<std::string> remarks;
  const Sweep sweep(command.options.grid(command.options.costs.costs(), remarks));
  print_notes(remarks);
  Progress progress(shown(command), options.shard.size(sweep.size()), "points");
  if (command.output != "-" && !is_csv(command)) {
    return write_sweep_file(command.output, sweep, options, [&](std::size_t done) { progress.at(done); });
  }
  write_output(command.output, [&](std::ostream& out) { write_stream(out, command, sweep, options, progress); });
}

struct MergeCommand {
  std::vector<std::string> files;
  std::string output = "-";
  std::string format = "jsonl";
};

void merge(const MergeCommand& command) {
  std::vector<NamedFile> read;
  for (const std::string& file : command.files) read.push_back({"FILE", file, "lines of a shard"});
  check_apart(std::vector<NamedFile>{{"--output", command.output, "lines"}}, read);
  // On standard output nothing is to stand that is not whole.
  if (command.output == "-") merge_sweep_files(command.files, [](std::string_view) {});
  write_output(command.output, [&](std::ostream& out) {
    std::vector<std::string> columns;
    bool is_first = true;
    merge_sweep_files(command.files, [&](std::string_view line) {
      if (command.format == "jsonl") {
        out << line;
      } else if (is_first) {
        const SweepHeader header = parse_sweep_header(line.substr(0, line.size() - 1), command.files[0]);
        columns = Sweep(grid_of_json(header.grid, command.files[0])).columns();
        out << csv_header(columns);
      } else {
        out << csv_row(columns, line);
      }
      is_first = false;
    });
  });
}

void add_grid(CLI::App& sweep, SweepOptions& options) {
  add_list(sweep, "--schedules", options.schedules, "Names of the catalog, and CSV or JSON files (all of the catalog)")
      ->type_name("NAMES")
      ->group("Grid");
  add_list(sweep, "--ranks,-p", options.ranks, "Pipeline ranks, P")->type_name("N")->group("Grid");
  add_list(sweep, "--microbatches,-m", options.micro_batches, "Micro-batches, M, over all chains")
      ->type_name("N")
      ->group("Grid");
  sweep.add_option("--gpus", options.gpus, "All ways in which so many share the work; with --costs of an estimate")
      ->type_name("N")
      ->group("Grid");
  sweep.add_option("--global-batch", options.global_batch, "Sequences of a step, which the --gpus share")
      ->type_name("N")
      ->group("Grid");
  for (std::size_t i = 0; i < options.parameters.size(); ++i) {
    const Parameter& each = parameters()[i];
    const auto otherwise = each.value == &Shape::chunks ? fmt::format(" ({})", default_chunks) : "";
    add_list(sweep, option_of(each) + (each.name == "chunks" ? ",-v" : ""), options.parameters[i],
             fmt::format("{}: {}; of {}{}", each.symbol, each.what, families_that_take(each), otherwise))
        ->type_name("N")
        ->group("Grid");
  }
  add_list(sweep, "--memory-limit", options.memory_limits,
           "Of a rank: what fits; automatic schedules are planned for it")
      ->type_name("BYTES")
      ->group("Grid");
  add_list(sweep, "--recompute", options.recompute, "none, full, or none,full, where the costs know both")
      ->type_name("MODES")
      ->group("Grid");
  add_list(sweep, "--cuts", options.cuts, "How many parts of the model each stage gets, as 3-2-3, or best")
      ->type_name("CUTS")
      ->group("Grid");
  sweep
      .add_option(
          "--set", options.sets,
          "A cost and its values, by the name of its option: latency=0,20us; or multiples, forward=0.9x,1x,1.1x; "
          "speed=1,0.9@3 makes rank 3 slow; may be given several times")
      ->type_name("NAME=VALUES")
      ->take_all()
      ->group("Grid");
  sweep.add_option("--seeds", options.seeds, "So many draws of --jitter, and of which rank is the --straggler")
      ->type_name("N")
      ->group("Grid");
  add_list(sweep, "--straggler", options.stragglers, "In each of --seeds one rank, drawn anew, has this speed")
      ->type_name("X")
      ->group("Grid");
}

void add_running(CLI::App& sweep, SweepCommand& command) {
  constexpr auto group = "Running";
  sweep.add_option("--tokens", command.options.tokens, "Of a micro-batch: tokens per second")
      ->type_name("N")
      ->group(group);
  sweep.add_option("--output,-o", command.output, "Where the lines go, or - for stdout")
      ->default_str("-")
      ->type_name("FILE")
      ->group(group);
  add_choice(sweep, "--format", command.format, {"jsonl", "csv"}, "A line of JSON, or a row, for each point")
      ->group(group);
  sweep.add_option("--threads,-j", command.threads, "One for each core, where it is not said")
      ->type_name("N")
      ->group(group);
  sweep.add_option("--shard", command.shard, "The I-th of N parts, counted from 1 (of a Slurm array: the task's)")
      ->type_name("I/N")
      ->group(group);
  sweep.add_flag("--resume", command.resume, "Go on with what an interrupted run left in the --output")->group(group);
  add_choice(sweep, "--progress", command.progress, {"auto", "always", "never"},
             "On stderr. auto: on a terminal; always: in a log, too, a line every 10 s")
      ->group(group);
}

}  // namespace

void add_sweep(CLI::App& app) {
  auto command = std::make_shared<SweepCommand>();
  command->options.standard_input = &std::cin;
  CLI::App& sweep = *app.add_subcommand("sweep", "Evaluates every point of a grid: schedules, shapes, costs");
  add_grid(sweep, command->options);
  add_costs(sweep, command->options.costs);
  add_running(sweep, *command);
  sweep.footer(
      "Examples:\n"
      "  dualpipe-sim sweep -p 8,16 -m 32,64,128 --costs costs.json -o sweep.jsonl\n"
      "  dualpipe-sim sweep --schedules 1f1b,zb1p -p 8 -m 32 --set latency=0,20us,50us --set forward=0.9x,1x,1.1x\n"
      "  dualpipe-sim sweep --gpus 64 --global-batch 512 --costs estimate.json -o plan.jsonl\n"
      "  dualpipe-sim sweep -p 16 -m 64 --jitter 0.05 --seeds 100 --shard 2/8 -o shard2.jsonl --resume\n"
      "  dualpipe-sim merge shard*.jsonl -o sweep.jsonl");
  sweep.callback([command] { run(*command); });
}

void add_merge(CLI::App& app) {
  auto command = std::make_shared<MergeCommand>();
  CLI::App& merged = *app.add_subcommand("merge", "The shards of a sweep as one; says which are missing");
  merged.add_option("FILE", command->files, "Of dualpipe-sim sweep")->required()->type_name("FILE");
  merged.add_option("--output,-o", command->output, "Where all lines go, or - for stdout")
      ->default_str("-")
      ->type_name("FILE")
      ->group("Results");
  add_choice(merged, "--format", command->format, {"jsonl", "csv"}, "A line of JSON, or a row, for each point")
      ->group("Results");
  merged.footer(
      "Examples:\n"
      "  dualpipe-sim merge shard*.jsonl -o sweep.jsonl\n"
      "  dualpipe-sim merge sweep.jsonl --format csv -o sweep.csv");
  merged.callback([command] { merge(*command); });
}

}  // namespace dualpipe
