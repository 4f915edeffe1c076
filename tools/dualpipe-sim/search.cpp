#include "dualpipe/sim/search/search.h"

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <iostream>
#include <memory>
#include <string>

#include "commands.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/search_options.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/report/search_report.h"
#include "dualpipe/sim/schedule/csv.h"
#include "dualpipe/sim/schedule/json.h"
#include "progress.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

using Clock = std::chrono::steady_clock;

struct SearchCommand {
  SearchOptions options;
  std::string output, json, width;
};

std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free, "it is set by a signal handler");

// Ctrl-C ends the search, not the tool; a second one does.
class Interrupt {
 public:
  Interrupt() {
    interrupted = false;
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted = true; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGINT, &action, &before_);
  }
  ~Interrupt() { sigaction(SIGINT, &before_, nullptr); }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

 private:
  struct sigaction before_ {};
};

class SearchLine {
 public:
  void show(const SearchProgress& progress) {
    if (!TerminalLine::is_seen()) return;
    const auto now = Clock::now();
    if (now - shown_ < std::chrono::milliseconds(200)) return;
    shown_ = now;
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    line_.show(to_text(progress, static_cast<double>(progress.evaluations) / seconds));
  }
  void clear() { line_.clear(); }

 private:
  Clock::time_point begin_ = Clock::now();
  Clock::time_point shown_ = begin_;
  TerminalLine line_;
};

bool is_csv(const std::string& path) { return path.ends_with(".csv"); }

void write_schedule(const std::string& path, const Schedule& schedule) {
  if (is_csv(path)) check_csv_can_hold(schedule.placement);
  write_output(path, [&](std::ostream& out) { is_csv(path) ? write_csv(out, schedule) : write_json(out, schedule); });
}

void run(const SearchCommand& command) {
  const bool prints = command.json != "-" && command.output != "-";
  std::vector<NamedFile> results{{"--output", command.output, "schedule"}, {"--json", command.json, "figures"}};
  if (prints) results.push_back({"standard output", "-", "text"});
  check_apart(results, std::vector<NamedFile>{{"--costs", command.options.costs.file, "costs"}});
  if (!command.width.empty() && !prints) {
    throw CLI::ValidationError("--width", "what is written has no columns; leave it out");
  }
  TextLayout layout{.width = static_cast<std::size_t>(terminal_width(0)),
                    .bytes = command.options.costs.byte_units(command.options.memory_limit)};
  if (!command.width.empty()) {
    const auto columns = [](std::string_view text) { return parse_integer(text, 20, 100'000); };
    layout.width = static_cast<std::size_t>(value_of("--width", command.width, columns));
  }
  const SearchRequest request = command.options.request();
  const double seconds = command.options.seconds();
  if (!command.output.empty() && command.output != "-") check_output(command.output);

  const Interrupt interrupt;
  SearchLine line;
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  SearchHooks hooks;
  hooks.stopped = [&] { return interrupted.load() || (seconds > 0 && Clock::now() >= end); };
  hooks.progress = [&](const SearchProgress& progress) { line.show(progress); };
  // So that a search that is killed leaves the best that it had.
  hooks.found = [&](const SearchResult& found) {
    if (!command.output.empty() && command.output != "-") write_schedule(command.output, found.schedule);
  };
  const SearchResult result = search(request, hooks);
  line.clear();
  if (!command.output.empty()) write_schedule(command.output, result.schedule);
  if (!command.json.empty()) write_output(command.json, [&](std::ostream& out) { write_json(out, request, result); });
  if (prints) return print(to_text(request, result, layout));
  print_notes(result.remarks);
}

}  // namespace

void add_search(CLI::App& app) {
  auto command = std::make_shared<SearchCommand>();
  SearchOptions& options = command->options;
  constexpr auto group = "Search";
  constexpr auto results = "Results (a file, or - for stdout)";
  CLI::App& search = *app.add_subcommand("search", "Searches for the best schedule, and proves how good it is");
  search.add_option("--ranks,-p", options.ranks, "Pipeline ranks, P")->type_name("N")->group("Shape");
  search.add_option("--microbatches,-m", options.micro_batches, "Micro-batches, M, over all chains")
      ->type_name("N")
      ->group("Shape");
  add_costs(search, options.costs);
  for (const char* const other : {"--jitter", "--seed"}) search.remove_option(search.get_option(other));
  search
      .add_option("--memory-limit", options.memory_limit,
                  "Of the peak of every rank, as 40GiB; or of its activations, as 12microbatches")
      ->type_name("LIMIT")
      ->group(group);
  add_choice(search, "--placement", options.placement, search_placements(), "Where the stages are")->group(group);
  add_choice(search, "--objective", options.objective, search_objectives(),
             "What is to be least. span: the longest one of a rank (zero-bubble papers')")
      ->group(group);
  search
      .add_option("--budget", options.budget,
                  "So many orders are tried; with 0, the catalog alone (as many as take some seconds)")
      ->type_name("N")
      ->group(group);
  search.add_option("--time-limit", options.time_limit, "Ends the search, which then depends on the machine")
      ->type_name("TIME")
      ->group(group);
  search.add_option("--seed", options.seed, "Another seed, another search (1)")->type_name("N")->group(group);
  search.add_option("--threads", options.threads, "The same is found by any number (one for every core)")
      ->type_name("N")
      ->group(group);
  search
      .add_option("--output,-o", command->output,
                  "The schedule: PyTorch's CSV where the name ends with .csv, else JSON")
      ->type_name("FILE")
      ->group(results);
  add_output(search, "--json", command->json, "All figures, and the schedule")->group(results);
  search.add_option("--width", command->width, "Columns of the text (the terminal's)")->type_name("N")->group(results);
  search.footer(
      "Durations and bytes are of the model, as in a table: one value is each rank's\n"
      "share, a list its parts in order. Ctrl-C ends the search, and keeps the best.\n"
      "\n"
      "Examples:\n"
      "  dualpipe-sim search -p 8 -m 24 --costs costs.json --memory-limit 40GB -o best.json\n"
      "  dualpipe-sim search -p 8 -m 24 --memory-limit 6microbatches --placement v -o best.csv\n"
      "  dualpipe-sim search -p 8 -m 24 --costs costs.json --budget 0");
  search.callback([command] { run(*command); });
}

}  // namespace dualpipe
