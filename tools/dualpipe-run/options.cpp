#include "options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <limits>
#include <span>
#include <utility>

#include "dualpipe/exec/transport/launch.h"
#include "dualpipe/exec/transport/nccl_api.h"
#include "dualpipe/exec/transport/store_world.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/rewrite.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

constexpr auto start_timeout_least = std::chrono::seconds(10);

// What a run has that says nothing of it.
TrainOptions run_defaults() {
  TrainOptions options;
  options.optimizer = OptimizerKind::adamw;
  options.steps = 10;
  options.warmup = 3;
  return options;
}

int stages_per_chain(const Placement& placement) { return placement.chain_begin[1] - placement.chain_begin[0]; }

// A forward that runs again takes as long as it did, unless --recompute-time says otherwise.
void add_recomputation(Costs& costs) {
  for (StageCosts& stage : costs.stages) {
    if (stage.recompute == 0) stage.recompute = stage.forward;
  }
}

// What --eval, which runs forwards alone, has no use for.
constexpr std::array without_backwards = {"--save",          "--check",  "--calibrate",      "--optimizer",
                                          "--learning-rate", "--clip",   "--recompute",      "--no-interleave",
                                          "--backward",      "--weight", "--recompute-time", "--overlapped"};

constexpr auto model_group = "Model";
constexpr auto training_group = "Training";
constexpr auto machine_group = "Machine";

std::vector<std::string> strings(std::span<const std::string_view> texts) { return {texts.begin(), texts.end()}; }

void add_model(CLI::App& app, RunOptions& options) {
  add_choice(
      app, "--model", options.model, strings(model_names()),
      "What is trained. gpt; moe: a mixture of experts; mlp; timed: no arithmetic, ops take the durations given, "
      "and of --costs also messages their latency, but no bandwidth and no launch overhead; empty: nothing at all")
      ->group(model_group);
  app.add_option("--layers", options.layers, "How many. N: split evenly; A,B,...: of each stage (one per stage)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("N")
      ->group(model_group);
  add_list(
      app, "--inject", options.inject,
      "Faults, to see that they are found: rank:2:1.5 (its ops take 1.5 times as long), op:3B7:8ms (it takes longer "
      "by so much), link:0-1:5ms (so do its messages)")
      ->type_name("FAULTS")
      ->group(model_group);
}

void add_machine(CLI::App& app, RunOptions& options) {
  constexpr auto group = machine_group;
  add_choice(
      app, "--transport", options.transport, {"threads", "mpi", "nccl"},
      "Where ranks are. threads: all in this process; mpi: in those that mpirun or srun started (what there is); "
      "nccl: each in one that torchrun, mpirun or srun started, with a GPU")
      ->group(group);
  add_choice(
      app, "--device", options.device, {"cpu", "cuda"},
      "What ranks run on. cpu; cuda: an NVIDIA GPU, which the ranks of a process share, each with streams of its "
      "own")
      ->group(group);
  app.add_flag("--copy", options.copy, "Messages within a GPU are copied, as between GPUs, not just handed over")
      ->group(group);
  app.add_flag("--sm-partition", options.sm_partition,
               "Each rank has multiprocessors of its own (a green context), so that ranks of one GPU run side by side")
      ->group(group);
}

void add_waits(CLI::App& app, RunOptions& options) {
  const auto value = [&](const char* name, std::string& text, const char* help) {
    app.add_option(name, text, help)->type_name("TIME")->group(machine_group);
  };
  value("--timeout", options.timeout,
        "With its unit, as 5s: a rank that waits longer ends the run; at the start at least 10s (60s)");
  value("--link-delay", options.link_delay,
        "A message arrives so long after it was sent (0; timed: the latency of --costs; a bare number is ms)");
}

void add_results(CLI::App& app, RunOptions& options) {
  constexpr auto group = "Results (a file, or - for stdout)";
  const auto output = [&](const char* name, std::string& path, const char* help) {
    return app.add_option(name, path, help)->type_name("FILE")->group(group);
  };
  app.add_flag("--check", options.check,
               "Runs the same without a pipeline, and compares losses and gradients; exit status 1 if they differ")
      ->group(group);
  app.add_flag("--compare", options.compare,
               "The simulator's prediction beside the measurement, from costs measured in the warm-up or from --costs; "
               "the trace then has both")
      ->group(group);
  app.add_flag("--profile", options.profile, "Where the time of each rank went")->group(group);
  output("--calibrate", options.calibrate, "Measured costs, for dualpipe-sim --costs");
  output("--trace", options.trace, "Chrome trace of the step of median time, for ui.perfetto.dev");
  output("--json", options.json, "All figures");
}

// Options that only some values of another one heed. Elsewhere they would do nothing, and are refused.
struct Heeded {
  const char* choice;
  std::string RunOptions::*value;
  std::vector<std::string_view> by;
  std::vector<std::string> options;
};

// "gpt, moe or mlp"
std::string any_of(const std::vector<std::string_view>& values) {
  std::string text(values[0]);
  for (std::size_t i = 1; i < values.size(); ++i) {
    text.append(i + 1 < values.size() ? ", " : " or ").append(values[i]);
  }
  return text;
}

const std::vector<Heeded>& heeded_options() {
  static const std::vector<Heeded> heeded = [] {
    std::map<ModelFeature, std::vector<std::string>> by_feature = {
        {ModelFeature::parameters, {"--layers", "--check"}},
        {ModelFeature::durations,
         {"--forward", "--backward", "--weight", "--recompute-time", "--overlapped", "--inject"}}};
    for (const Setting& setting : train_settings()) {
      if (setting.heeded_with != ModelFeature::any) {
        by_feature[setting.heeded_with].push_back(fmt::format("--{}", setting.name));
      }
    }
    std::vector<Heeded> all;
    for (const auto& [feature, options] : by_feature) {
      all.push_back({"--model", &RunOptions::model, model_names(feature), options});
    }
    all.push_back({"--device", &RunOptions::device, {"cuda"}, {"--copy", "--sm-partition"}});
    all.push_back({"--device", &RunOptions::device, {"cpu"}, {"--link-delay", "--threads-per-rank"}});
    return all;
  }();
  return heeded;
}

// --help names the values after what the option does.
void describe_heeded(CLI::App& app) {
  for (const Heeded& heeded : heeded_options()) {
    for (const std::string& name : heeded.options) {
      CLI::Option& option = *app.get_option(name);
      option.description(fmt::format("{} [{}]", option.get_description(), fmt::join(heeded.by, ", ")));
    }
  }
}

}  // namespace

void RunOptions::add_to(CLI::App& app) {
  add_schedule(app, schedule, "SCHEDULE,--schedule");
  add_model(app, *this);
  add_settings(app, Setting::Group::model, model_group);
  add_settings(app, Setting::Group::training, training_group);
  app.get_option("--save-every")->needs(app.get_option("--save"));
  add_machine(app, *this);
  add_settings(app, Setting::Group::machine, machine_group);
  add_waits(app, *this);
  add_results(app, *this);
  add_durations(app, costs);
  describe_heeded(app);
}

void RunOptions::add_settings(CLI::App& app, Setting::Group group, const std::string& title) {
  for (const Setting& setting : train_settings()) {
    if (setting.group != group) continue;
    const std::string name(setting.name);
    const std::string help(setting.help);
    if (setting.is_flag()) {
      app.add_flag("--" + name, flags[name], help)->group(title);
      continue;
    }
    std::string& value = settings[name];
    if (setting.choices().empty()) {
      app.add_option("--" + name, value, help)->type_name(std::string(setting.type))->group(title);
    } else {
      value = setting.text(run_defaults());
      add_choice(app, "--" + name, value, strings(setting.choices()), help)->group(title);
    }
  }
}

void RunOptions::check_files() const {
  const std::string& save = value_of("save");
  const std::string saved = save == "-" ? "" : save;  // refused later: only a file can be replaced as a whole
  std::vector<NamedFile> results{{"--save", saved, "checkpoint"},
                                 {"--trace", trace, "trace"},
                                 {"--json", json, "figures"},
                                 {"--calibrate", calibrate, "costs"}};
  if (prints_text()) results.push_back({"standard output", "-", "text"});
  check_apart(results, std::vector<NamedFile>{{"SCHEDULE", schedule.file(), "schedule"},
                                              {"--costs", costs.file, "costs"},
                                              {"--data", value_of("data"), "tokens"},
                                              {"--resume", value_of("resume"), "checkpoint"}});
}

void RunOptions::check_usage(const CLI::App& app) const {
  costs.check_usage();
  check_files();
  for (const Heeded& heeded : heeded_options()) {
    const std::string& value = this->*heeded.value;
    if (std::ranges::find(heeded.by, value) != heeded.by.end()) continue;
    for (const std::string& option : heeded.options) {
      if (app.count(option) == 0) continue;
      throw CLI::ValidationError(option, fmt::format("it does nothing with {0} {1}; it is for {0} {2}", heeded.choice,
                                                     value, any_of(heeded.by)));
    }
  }
  for (const char* const option : without_backwards) {
    if (!evaluates() || app.count(option) == 0) continue;
    throw CLI::ValidationError(option, "--eval runs forwards alone, and has no use for it; leave one of the two out");
  }
  if (schedule.file().empty()) check_used(used_by(std::vector{schedule.source}));
}

// Not of costs that a model other than timed takes for its prediction alone: these are from a file.
void RunOptions::check_used(const Used& used) const {
  if (!costs.overlapped.empty()) costs.check_used(used, costs.costs());
  if (used.pairs || !flags.find("no-interleave")->second) return;
  throw CLI::ValidationError("--no-interleave", fmt::format("nothing that runs has F&B pairs; leave it out, or take {}",
                                                            families_with(&Family::has_pairs)));
}

Program RunOptions::program(std::vector<std::string>& remarks) const {
  const GivenCosts given = costs.costs();
  auto loaded = schedule.load(given, &remarks);
  Program program = lower_valid(std::move(loaded), false, remarks);
  schedule.check_memory(program, given);
  check_used(used_by(program.schedule));
  if (evaluates()) program = lower(forwards_of(program.schedule));
  if (const auto deadlock = find_deadlock(program, CommunicationModel::latency)) {
    throw DeadlockError(*deadlock, program.schedule.placement);
  }
  return program;
}

std::unique_ptr<World> RunOptions::world() const {
  if (transport == "nccl") {
    if (device != "cuda") throw InputError("--transport nccl: it moves tensors of GPUs; add --device cuda");
    return store_processes(launch_of(), cuda_nccl(), {.timeout = start_timeout()});
  }
  if (is_mpi()) return mpi_processes();
  check_alone();
  return one_process();
}

bool RunOptions::is_mpi() const { return transport.empty() ? started_by_mpi_launcher() : transport == "mpi"; }

std::chrono::nanoseconds RunOptions::start_timeout() const {
  std::chrono::nanoseconds wait = TransportOptions{}.timeout;
  try {
    wait = wait_timeout();
  } catch (const InputError&) {  // train() throws it, too, when one process can tell it for all
  }
  return std::max<std::chrono::nanoseconds>(wait, start_timeout_least);
}

std::chrono::nanoseconds RunOptions::wait_timeout() const {
  if (timeout.empty()) return TransportOptions{}.timeout;
  return std::chrono::nanoseconds(dualpipe::value_of("--timeout", timeout, parse_time_with_unit));
}

void RunOptions::check_alone() const {
  const Started all = started();
  if (all.processes == 1) return;
  const char* const remedy = device == "cuda" || all.by == "torchrun" ? "--transport nccl with --device cuda"
                             : all.by == "srun"                       ? "srun --mpi=pmix with --transport mpi"
                                                                      : "mpirun with --transport mpi";
  throw CLI::ValidationError(
      "--transport threads",
      fmt::format("{} has started {} processes, and each would run all ranks by itself; {} connects them; or start one",
                  all.by, all.processes, remedy));
}

std::unique_ptr<Hardware> RunOptions::hardware(const World& world) const {
  if (device == "cpu") return nullptr;
  if (world.transport() == "mpi") {
    throw InputError(
        "--device cuda: MPI moves tensors of the host only; use --transport nccl, with a GPU per process; or start "
        "one process, whose ranks share a GPU (--transport threads)");
  }
  if (!has(model, ModelFeature::parameters)) {
    throw InputError(fmt::format("--model {}: it is for ranks on the host; leave --device cuda out", model));
  }
  return cuda_hardware(gpu());
}

std::vector<int> RunOptions::layers_of_stages(const Placement& placement) const {
  const int stages = stages_per_chain(placement);
  std::vector<int> given;
  for (const std::string& each : layers) {
    const auto parse = [](std::string_view text) { return parse_integer(text, 0, std::numeric_limits<int>::max()); };
    given.push_back(static_cast<int>(dualpipe::value_of("--layers", each, parse)));
  }
  if (given.size() > 1 && given.size() != static_cast<std::size_t>(stages)) {
    throw InputError(
        fmt::format("--layers: {} values, but the model is cut into {} stages; give one for each, or the "
                    "number of all",
                    given.size(), stages));
  }
  if (given.size() > 1) return given;
  return split_evenly(given.empty() ? stages : given[0], stages);
}

// Of a model whose ops take the durations that it is given.
void RunOptions::set_costs(ModelShape& shape, const Placement& placement) const {
  shape.costs = stage_costs(costs.costs(), placement);
  if (shape.recompute == Recompute::full) add_recomputation(shape.costs);
}

TrainOptions RunOptions::train(const Placement& placement) const {
  TrainOptions train = run_defaults();
  train.shape.model = model;
  train.shape.layers = layers_of_stages(placement);
  for (const Setting& setting : train_settings()) {
    if (setting.is_flag()) {
      setting.set(train, flags.find(setting.name)->second ? "on" : "off");
    } else if (const std::string& value = value_of(setting.name); !value.empty()) {
      setting.set(train, value);
    }
  }
  if (value_of("expert-hidden").empty()) train.shape.expert_hidden = 2 * train.shape.hidden;
  if (value_of("learning-rate").empty()) train.learning_rate = train.optimizer == OptimizerKind::sgd ? 0.1 : 0.001;
  if (train.save == "-") throw InputError("--save: it needs a file, which can be replaced as a whole");
  train.measure_passes = true;
  train.transport.timeout = wait_timeout();
  if (has(model, ModelFeature::durations)) {
    set_costs(train.shape, placement);
    train.transport.link_delay = std::chrono::nanoseconds(train.shape.costs.latency);
  }
  if (!link_delay.empty()) {
    train.transport.link_delay =
        std::chrono::nanoseconds(dualpipe::value_of("--link-delay", link_delay, parse_duration));
  }
  for (const std::string& fault : inject) {
    dualpipe::value_of("--inject", fault, [&](std::string_view text) {
      add_fault(text, train.faults, train.transport);
      return 0;
    });
  }
  dualpipe::check(train.faults, train.transport, placement);
  if (train.transport.timeout <= train.transport.link_delay) {
    throw InputError("--timeout: it must be longer than --link-delay, and timed's latency");
  }
  return train;
}

}  // namespace dualpipe
