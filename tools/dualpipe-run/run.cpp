#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <iostream>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/train/calibrate.h"
#include "dualpipe/exec/train/reference.h"
#include "dualpipe/exec/train/report.h"
#include "dualpipe/sim/costs/costs_file.h"
#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/report/difference.h"
#include "dualpipe/sim/report/explain_report.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "dualpipe/sim/trace/chrome_trace.h"
#include "options.h"
#include "tools/common/output.h"

namespace dualpipe {

using detail::replay::text_of;

namespace {

// Tells of each step as it ends, on standard output: also where that is a file, or a pipe that somebody reads. Where a
// result goes there, one line on a terminal is written over step by step instead.
class Progress {
 public:
  Progress(const Program& program, int steps, bool is_first, bool prints_text)
      : head_(steps_head(program)),
        steps_(steps),
        is_printed_(is_first && prints_text),
        is_shown_(is_first && !prints_text && isatty(STDERR_FILENO) != 0) {}
  ~Progress() {
    std::signal(SIGPIPE, before_);  // what is printed at the end ends the process, as it ends any tool
    if (is_shown_) std::cerr << "\r\033[K" << std::flush;
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void show(const StepReport& step) {
    done_.push_back(step);
    done_.back().records = {};  // which are there for the moment
    if (is_printed_) print(std::exchange(head_, "") + to_text(step));
    if (!is_shown_) return;
    std::cerr << fmt::format("\r\033[Kstep {} ({} of {}{}): loss {:.6f}, {}", step.step, done_.size(), steps_,
                             step.measured ? "" : ", warm-up", step.loss, format_time(step.duration))
              << std::flush;
  }

  [[nodiscard]] std::span<const StepReport> done() const { return done_; }

  // Below the steps of a run that failed.
  void show_last_save(int steps_done, const std::string& failure) {
    if (!is_printed_ || done_.empty()) return;
    print(failure.empty() ? fmt::format("\nsaved after step {}, the last whole one\n", steps_done - 1)
                          : fmt::format("\nnot saved: {}\n", printable_lines(failure)));
  }

 private:
  // Who has read enough of a pipe, and closed it, does not end the run.
  void print(const std::string& text) {
    if (is_unread_) return;
    std::cout << in_locale(text) << std::flush;
    if (std::cout) return;
    is_unread_ = errno == EPIPE;
    std::cout.clear();
    if (!is_unread_) dualpipe::print(text);  // throws why not
  }

  void (*before_)(int) = std::signal(SIGPIPE, SIG_IGN);
  bool is_unread_ = false;
  std::string head_;  // still to be printed
  int steps_;
  bool is_printed_;
  bool is_shown_;
  std::vector<StepReport> done_;
};

constexpr auto all_outputs = {&RunOptions::trace, &RunOptions::json, &RunOptions::calibrate};

// Where a result goes to standard output no text does; what is there for its text alone would not be seen.
void check_text(const RunOptions& options) {
  const bool is_traced = !options.trace.empty();
  for (const auto& [name, is_given] :
       {std::pair("--profile", options.profile), {"--compare", options.compare && !is_traced}}) {
    if (!is_given) continue;
    throw InputError(fmt::format("{}: standard output has a result instead of text; let that go to a file", name));
  }
}

// What cannot be written is better known before the run than after it. Returns whether people's text goes to stdout.
bool check_outputs(const RunOptions& options) {
  for (const auto path : all_outputs) {
    if (!(options.*path).empty()) check_output(options.*path);
  }
  if (options.prints_text()) return true;
  check_text(options);
  return false;
}

void check_input(const RunOptions& options, const World& world) {
  if (options.schedule.source != "-" || world.processes() == 1) return;
  throw InputError(
      fmt::format("SCHEDULE -: standard input is not there for all {} processes; write it to a file that each can read",
                  world.processes()));
}

void check_trains(const RunOptions& options, const Schedule& schedule) {
  if (options.evaluates() || !std::ranges::all_of(schedule.ops, [](Op op) { return op.kind == Kind::forward; })) return;
  throw InputError(fmt::format("{}: it has no backwards, and trains nothing; use --eval", options.schedule.source));
}

// The trace of what a failed run has done. It must not hide why the run failed.
void write_partial_trace(const std::string& path, const Program& program, std::span<const RankRecord> records,
                         const Machine& machine) {
  if (path.empty()) return;
  Costs costs;
  costs.stages.resize(1);
  try {
    const PartialRun partial = reached(program, records);
    const Timeline timeline = merge(partial.program, partial.records);
    write_output(path, [&](std::ostream& out) {
      const TracedRun run{.program = partial.program,
                          .costs = costs,
                          .timeline = timeline,
                          .devices = machine.devices,
                          .about = trace_args(machine)};
      write_chrome_trace(out, std::span(&run, 1));
    });
  } catch (const std::exception& error) {
    std::cerr << "warning: no partial trace: " << printable_lines(error.what()) << '\n';
  }
}

PlannedMeasured<std::vector<RankPeak>> peaks_of(const Difference& difference) {
  PlannedMeasured<std::vector<RankPeak>> peaks;
  for (const RankDifference& rank : difference.per_rank) {
    peaks.planned.push_back(rank.peak.planned);
    peaks.measured.push_back(rank.peak.measured);
  }
  return peaks;
}

// The measured run, and for --compare the plan above it: rank 00 planned, rank 00 measured, rank 01 planned, …
void write_trace(std::ostream& out, const Program& program, const Costs& costs, const Timeline& measured,
                 const Timeline* planned, const TrainReport& report) {
  const auto peaks = peaks_of(report.difference);
  std::vector<TracedRun> runs;
  if (planned != nullptr) runs.push_back({program, costs, *planned, "planned", peaks.planned});
  const std::string_view label = planned == nullptr ? "" : "measured";
  runs.push_back({program, costs, measured, label, peaks.measured, report.machine.devices, trace_args(report.machine)});
  write_chrome_trace(out, runs);
}

// What the prediction is made from, where it is known before the run.
std::optional<Costs> given_costs(const RunOptions& options, const TrainOptions& train, const Placement& placement) {
  if (has(train.shape.model, ModelFeature::durations)) {  // what is acted out, and nothing else of the file
    Costs costs;
    costs.stages = train.shape.costs.stages;
    costs.latency = train.transport.link_delay.count();
    return costs;
  }
  if (options.costs.file.empty()) return std::nullopt;
  return stage_costs(options.costs.costs(), placement);
}

// What is known of a run that failed goes where its figures would. It must not hide why the run failed.
void write_failed_json(const RunOptions& options, const Program& program, const Machine& machine,
                       std::span<const StepReport> steps, const std::string& failure) {
  if (options.json.empty() || steps.empty()) return;
  try {
    const TrainReport report = failed_report(program, options.model, machine, steps, failure);
    write_output(options.json, [&](std::ostream& out) { write_json(out, report); });
  } catch (const std::exception& error) {
    std::cerr << "warning: no figures: " << printable_lines(error.what()) << '\n';
  }
}

// Tells `machine` of the devices.
TrainResult train_observed(const RunOptions& options, World& world, const Program& program,
                           const TrainOptions& train_options, Machine& machine, Check* check) {
  const bool is_first = world.process() == 0;
  Progress progress(program, train_options.warmup + train_options.steps, is_first, options.prints_text());
  TrainObserver observer;
  observer.on_begin = [&](std::span<const std::string> devices) {
    machine.devices.assign(devices.begin(), devices.end());
  };
  observer.on_step = [&](const StepReport& step) {
    progress.show(step);
    if (check != nullptr) check->on_step(step);
  };
  if (check != nullptr) {
    observer.on_gradients = [&](int step, std::span<Stage* const> stages) { check->on_gradients(step, stages); };
  }
  observer.on_failure = [&](int, const Program& ran, std::span<const RankRecord> records) {
    write_partial_trace(options.trace, ran, records, machine);
  };
  observer.on_last_save = [&](int steps_done, const std::string& failure) {
    progress.show_last_save(steps_done, failure);
  };
  try {
    return train(world, program, train_options, observer);
  } catch (const std::exception& error) {
    if (is_first) write_failed_json(options, program, machine, progress.done(), text_of(error));
    throw;
  }
}

// Ranks that share cores take turns: what is measured is then no pipeline.
void warn_of_few_cores(const RunOptions& options, const World& world, const TrainOptions& train, int ranks) {
  if (options.device != "cpu" || !has(options.model, ModelFeature::parameters)) return;
  const auto ranks_here = world.ranks_here(ranks).size();
  const std::size_t threads = ranks_here * static_cast<std::size_t>(train.threads_per_rank);
  const std::size_t cores = std::thread::hardware_concurrency();
  if (cores == 0 || threads <= cores) return;
  const std::string remedy = train.threads_per_rank > 1 && ranks_here <= cores
                                 ? fmt::format("--threads-per-rank {} fits", cores / ranks_here)
                                 : fmt::format("--ranks {} fits, and --model timed needs no cores", cores);
  std::cerr << fmt::format("warning: {} of {} on {}: they take turns, and times are not those of a pipeline; {}\n",
                           format_count(threads, "thread"), format_count(ranks_here, "rank"),
                           format_count(cores, "core"), remedy);
}

// Not an error here: only NCCL, and what the simulator calls stream, keeps to the order of messages.
void warn_of_order(const Program& program) {
  const auto deadlock = find_deadlock(program, CommunicationModel::stream);
  if (!deadlock) return;
  std::string wait = to_text(*deadlock, program.schedule.placement);
  wait.resize(std::min(wait.find('\n'), wait.size()));
  std::cerr << fmt::format(
      "warning: in the order in which NCCL runs messages this schedule hangs: {} (all: dualpipe-sim validate)\n",
      printable(wait));
}

// What times on a GPU mean.
std::string device_text(const Hardware& hardware, const RunOptions& options, int ranks) {
  const auto text = fmt::format("device: {}", hardware.description());
  if (ranks == 1) return text + '\n';
  if (options.sm_partition) return fmt::format("{}, {} virtual ranks with multiprocessors of their own\n", text, ranks);
  return fmt::format(
      "{}, {} virtual ranks that share its multiprocessors: times show contention, not a pipeline's speed-up\n", text,
      ranks);
}

std::string event_cost_text(Hardware& hardware) {
  const EventCost cost = hardware.event_cost();
  return fmt::format("an event costs {} of its rank's thread; two in a row are at least {} apart\n",
                     format_time(cost.call), format_time(cost.between));
}

// Files and text, as asked for. `hardware`: null for the host.
void write_results(const RunOptions& options, Hardware* hardware, bool prints_text, const Program& program,
                   const Machine& machine, const std::optional<Costs>& given, const TrainResult& result,
                   const Check* check) {
  const Timeline measured = merge(program, result.records);
  const Costs costs = given ? *given : stage_costs(calibrate(program, result), program.schedule.placement);
  const Timeline planned = simulate(program, costs);
  TrainReport report = train_report(program, options.model, machine, result, costs, planned, measured);
  if (check != nullptr) report.check = check->report();

  const auto write = [](const std::string& path, const std::function<void(std::ostream&)>& writer) {
    if (!path.empty()) write_output(path, writer);
  };
  write(options.calibrate, [&](std::ostream& out) { write_costs(out, calibrate(program, result)); });
  write(options.trace, [&](std::ostream& out) {
    write_trace(out, program, costs, measured, options.compare ? &planned : nullptr, report);
  });
  write(options.json, [&](std::ostream& out) { write_json(out, report); });
  if (prints_text) {
    std::string text = "\n" + to_text(report);
    if (hardware != nullptr) text += "\n" + device_text(*hardware, options, program.schedule.ranks());
    if (options.compare) text += "\n" + to_text(report.difference);
    if (options.profile)
      text += "\n" + to_text(explain_report(program, std::nullopt, measured, explain_measured(program, measured)));
    if (options.profile && hardware != nullptr) text += event_cost_text(*hardware);
    print(text);
  }
}

}  // namespace

void run(const RunOptions& options, World& world, const std::stop_token& stop) {
  check_input(options, world);
  const bool is_first = world.process() == 0;
  const bool prints_text = is_first && check_outputs(options);
  std::vector<std::string> remarks;
  const Program program = options.program(remarks);
  if (is_first) print_notes(remarks);
  check_trains(options, program.schedule);
  TrainOptions train_options = options.train(program.schedule.placement);
  train_options.stop = stop;
  const std::unique_ptr<Hardware> hardware = options.hardware(world);
  train_options.hardware = hardware.get();
  train_options.note_parts = !options.trace.empty();
  train_options.measure_links = !options.calibrate.empty() && world.processes() > 1;
  std::optional<Costs> given;
  if (is_first) {
    given = given_costs(options, train_options, program.schedule.placement);
    warn_of_few_cores(options, world, train_options, program.schedule.ranks());
    warn_of_order(program);
  }
  std::optional<Check> check;
  if (options.check) check.emplace(world, program.schedule, train_options);

  Machine machine;
  machine.transport = world.transport();
  machine.precision = train_options.shape.precision;
  machine.gpu = options.gpu();
  const TrainResult result = train_observed(options, world, program, train_options, machine, check ? &*check : nullptr);
  if (is_first) {
    write_results(options, hardware.get(), prints_text, program, machine, given, result, check ? &*check : nullptr);
  }
  if (check && !check->report().passed()) throw InputError("the check failed: " + check->report().failure);
}

}  // namespace dualpipe
