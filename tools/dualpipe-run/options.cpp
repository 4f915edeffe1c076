#include "options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>

#include "dualpipe/exec/transport/launch.h"
#include "dualpipe/exec/transport/nccl_api.h"
#include "dualpipe/exec/transport/store_world.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/rewrite.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

constexpr std::int64_t size_max = std::int64_t{1} << 30U;
constexpr std::int64_t steps_max = 1'000'000'000;
constexpr auto start_timeout_least = std::chrono::seconds(10);

std::int64_t whole_number(std::string_view option, const std::string& text, std::int64_t least, std::int64_t most,
                          std::int64_t otherwise) {
  if (text.empty()) return otherwise;
  return value_of(option, text, [&](std::string_view value) { return parse_integer(value, least, most); });
}

double positive_number(std::string_view option, const std::string& text, double otherwise,
                       double most = std::numeric_limits<double>::max()) {
  if (text.empty()) return otherwise;
  const double value = value_of(option, text, parse_real);
  if (!(value > 0)) throw InputError(fmt::format("{}: it must be above 0, and is {}", option, text));
  if (value > most) throw InputError(fmt::format("{}: it must be at most {}, and is {}", option, most, text));
  return value;
}

int stages_per_chain(const Placement& placement) { return placement.chain_begin[1] - placement.chain_begin[0]; }

// A forward that runs again takes as long as it did, unless --recompute-time says otherwise.
void add_recomputation(Costs& costs) {
  for (StageCosts& stage : costs.stages) {
    if (stage.recompute == 0) stage.recompute = stage.forward;
  }
}

void add_model(CLI::App& app, RunOptions& options) {
  constexpr auto group = "Model";
  const auto value = [&](const char* name, std::string& text, const char* type, const char* help) {
    app.add_option(name, text, help)->type_name(type)->group(group);
  };
  app.add_option(
         "--model", options.model,
         "gpt; moe: a mixture of experts; mlp; timed: no arithmetic, ops take the durations given, and of --costs "
         "also messages their latency, but no bandwidth and no launch overhead; empty: nothing at all")
      ->check(CLI::IsMember({"gpt", "moe", "mlp", "timed", "empty"}))
      ->group(group)
      ->capture_default_str();
  app.add_option("--layers", options.layers, "N: split evenly; A,B,…: of each stage (one per stage)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("N")
      ->group(group);
  value("--hidden", options.hidden, "N", "Width (64)");
  value("--heads", options.heads, "N", "Of the attention (4)");
  value("--sequence", options.sequence, "N", "Tokens of a sample (32)");
  value("--vocabulary", options.vocabulary, "N", "Different tokens (256)");
  value("--batch", options.batch, "N", "Samples per micro-batch (2)");
  value("--experts", options.experts, "N", "Of each layer, beside the shared one (8)");
  value("--top-k", options.top_k, "N", "Experts that a token goes to (2)");
  value("--expert-hidden", options.expert_hidden, "N", "Width inside an expert (twice --hidden)");
  value("--capacity", options.capacity, "X",
        "Most tokens of an expert, in shares of the tokens if all experts had as many (1.25)");
  app.add_flag("--no-interleave", options.no_interleave, "The two of an F&B pair one after the other, not part by part")
      ->group(group);
  app.add_option("--norm", options.norm, "LayerNorm (layer) or RMSNorm (rms)")
      ->check(CLI::IsMember({"layer", "rms"}))
      ->group(group)
      ->capture_default_str();
  app.add_flag("--tied", options.tied, "The head's weight is the token embedding's")->group(group);
  app.add_option("--recompute", options.recompute,
                 "What is not kept for the backward but computed again: none; full: all of a stage but its input; "
                 "attention: selective, gpt and moe")
      ->check(CLI::IsMember({"none", "full", "attention"}))
      ->group(group)
      ->capture_default_str();
  app.add_option("--dtype", options.dtype, "float32, float64, or bfloat16: mixed precision, with parameters in float32")
      ->check(CLI::IsMember({"float32", "float64", "bfloat16"}))
      ->group(group)
      ->capture_default_str();
}

void add_training(CLI::App& app, RunOptions& options) {
  constexpr auto group = "Training";
  const auto value = [&](const char* name, std::string& text, const char* type, const char* help) {
    return app.add_option(name, text, help)->type_name(type)->group(group);
  };
  value("--steps", options.steps, "N", "Measured (10)");
  value("--warmup", options.warmup, "N", "Steps before them; costs are measured in these (3)");
  app.add_option("--optimizer", options.optimizer, "sgd or adamw")
      ->check(CLI::IsMember({"sgd", "adamw"}))
      ->group(group)
      ->capture_default_str();
  value("--learning-rate", options.learning_rate, "X", "(0.001 for adamw, 0.1 for sgd)");
  value("--clip", options.clip, "X", "Largest global norm of the gradients (any)");
  value("--seed", options.seed, "N", "Of parameters and synthetic samples (0)");
  value("--data", options.data, "FILE", "int32 tokens (synthetic samples)");
  auto* const save = value("--save", options.save, "FILE",
                           "Parameters and optimizer after the last step, as safetensors; replaced as a whole");
  value("--save-every", options.save_every, "N", "Also after every N steps")->needs(save);
  value(
      "--resume", options.resume, "FILE",
      "Goes on from what was saved; ranks, schedule, split, learning rate and clip may be others. Warm-up steps train, "
      "too, and count");
  app.add_flag("--eval", options.eval, "Forwards only")->group(group)->excludes(save);
}

void add_machine(CLI::App& app, RunOptions& options) {
  constexpr auto group = "Machine";
  const auto value = [&](const char* name, std::string& text, const char* type, const char* help) {
    app.add_option(name, text, help)->type_name(type)->group(group);
  };
  app.add_option("--transport", options.transport,
                 "threads: all ranks in this process; mpi: in those that mpirun or srun started (what there is); nccl: "
                 "each in one that torchrun, mpirun or srun started, with a GPU")
      ->check(CLI::IsMember({"threads", "mpi", "nccl"}))
      ->group(group);
  app.add_option("--device", options.device,
                 "cpu; cuda: an NVIDIA GPU, which the ranks of a process share, each with streams of its own")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->group(group)
      ->capture_default_str();
  app.add_flag("--copy", options.copy, "Messages within a GPU are copied, as between GPUs, not just handed over")
      ->group(group);
  app.add_flag("--sm-partition", options.sm_partition,
               "Each rank has multiprocessors of its own (a green context), so that ranks of one GPU run side by side")
      ->group(group);
  value("--threads-per-rank", options.threads_per_rank, "N", "For one op (1)");
  value("--timeout", options.timeout, "TIME", "A rank that waits longer ends the run; at the start at least 10s (60s)");
  value("--link-delay", options.link_delay, "TIME",
        "A message arrives so long after it was sent (0; timed: the latency of --costs)");
}

void add_results(CLI::App& app, RunOptions& options) {
  constexpr auto group = "Results (a file, or - for stdout)";
  const auto output = [&](const char* name, std::string& path, const char* help) {
    return app.add_option(name, path, help)->type_name("FILE")->group(group);
  };
  auto* check = app.add_flag("--check", options.check,
                             "Runs the same without a pipeline, and compares losses and gradients; exit status 1 if "
                             "they differ")
                    ->group(group);
  check->excludes(app.get_option("--eval"));
  app.add_flag("--compare", options.compare,
               "The simulator's prediction beside the measurement, from costs measured in the warm-up or from --costs; "
               "the trace then has both")
      ->group(group);
  app.add_flag("--profile", options.profile, "Where the time of each rank went")->group(group);
  output("--calibrate", options.calibrate, "Measured costs, for dualpipe-sim --costs")
      ->excludes(app.get_option("--eval"));  // which runs no backward
  output("--trace", options.trace, "Chrome trace of the step of median time, for ui.perfetto.dev");
  output("--json", options.json, "All figures");
}

// Options that only some values of another one heed. Elsewhere they would do nothing, and are refused.
struct Heeded {
  const char* choice;
  std::string RunOptions::*value;
  std::vector<std::string> by;
  std::vector<const char*> options;
};

// "gpt, moe or mlp"
std::string one_of(const std::vector<std::string>& values) {
  std::string text = values[0];
  for (std::size_t i = 1; i < values.size(); ++i) text += (i + 1 < values.size() ? ", " : " or ") + values[i];
  return text;
}

const std::vector<Heeded>& heeded_options() {
  constexpr auto model = &RunOptions::model;
  constexpr auto device = &RunOptions::device;
  static const std::vector<Heeded> heeded{
      {"--model",
       model,
       {"gpt", "moe", "mlp"},
       {"--layers", "--hidden", "--batch", "--dtype", "--optimizer", "--learning-rate", "--clip", "--seed", "--save",
        "--save-every", "--resume", "--check", "--threads-per-rank"}},
      {"--model", model, {"gpt", "moe", "mlp", "timed"}, {"--recompute"}},
      {"--model", model, {"gpt", "moe"}, {"--heads", "--sequence", "--vocabulary", "--norm", "--tied", "--data"}},
      {"--model", model, {"moe"}, {"--experts", "--top-k", "--expert-hidden", "--capacity", "--no-interleave"}},
      {"--model", model, {"timed"}, {"--forward", "--backward", "--weight", "--recompute-time", "--overlapped"}},
      {"--device", device, {"cuda"}, {"--copy", "--sm-partition"}},
      {"--device", device, {"cpu"}, {"--link-delay", "--threads-per-rank"}},
  };
  return heeded;
}

// --help names the values after what the option does.
void describe_heeded(CLI::App& app) {
  for (const Heeded& heeded : heeded_options()) {
    for (const char* name : heeded.options) {
      CLI::Option& option = *app.get_option(name);
      option.description(fmt::format("{} [{}]", option.get_description(), fmt::join(heeded.by, ", ")));
    }
  }
}

}  // namespace

void RunOptions::add_to(CLI::App& app) {
  schedule.add_to(app, "--schedule");
  add_model(app, *this);
  add_training(app, *this);
  add_machine(app, *this);
  add_results(app, *this);
  costs.add_durations_to(app);
  describe_heeded(app);
}

void RunOptions::check_files() const {
  const std::string saved = save == "-" ? "" : save;  // refused later: only a file can be replaced as a whole
  std::vector<NamedFile> results{{"--save", saved, "checkpoint"},
                                 {"--trace", trace, "trace"},
                                 {"--json", json, "figures"},
                                 {"--calibrate", calibrate, "costs"}};
  if (prints_text()) results.push_back({"standard output", "-", "text"});
  check_apart(results, std::vector<NamedFile>{{"--schedule", schedule.file(), "schedule"},
                                              {"--costs", costs.file, "costs"},
                                              {"--data", data, "tokens"},
                                              {"--resume", resume, "checkpoint"}});
}

void RunOptions::check_usage(const CLI::App& app) const {
  costs.check_usage();
  check_files();
  for (const Heeded& heeded : heeded_options()) {
    const std::string& value = this->*heeded.value;
    if (std::ranges::find(heeded.by, value) != heeded.by.end()) continue;
    for (const char* option : heeded.options) {
      if (app.count(option) == 0) continue;
      throw CLI::ValidationError(option, fmt::format("it does nothing with {0} {1}; it is for {0} {2}", heeded.choice,
                                                     value, one_of(heeded.by)));
    }
  }
}

Program RunOptions::program() const {
  Program program = lower_valid(schedule.load());
  if (eval) program = lower(forwards_of(program.schedule));
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
  return std::chrono::nanoseconds(value_of("--timeout", timeout, parse_duration));
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
  if (model == "timed" || model == "empty") {
    throw InputError(fmt::format("--model {}: it is for ranks on the host; leave --device cuda out", model));
  }
  return cuda_hardware(gpu());
}

std::vector<int> RunOptions::layers_of_stages(const Placement& placement) const {
  const int stages = stages_per_chain(placement);
  std::vector<int> given;
  for (const std::string& each : layers) {
    given.push_back(static_cast<int>(whole_number("--layers", each, 0, std::numeric_limits<int>::max(), 0)));
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

ModelShape RunOptions::shape(const Placement& placement) const {
  ModelShape shape;
  shape.model = model;
  shape.hidden = whole_number("--hidden", hidden, 1, size_max, shape.hidden);
  shape.heads = whole_number("--heads", heads, 1, size_max, shape.heads);
  shape.sequence = whole_number("--sequence", sequence, 1, size_max, shape.sequence);
  shape.vocabulary = whole_number("--vocabulary", vocabulary, 1, size_max, shape.vocabulary);
  shape.batch = whole_number("--batch", batch, 1, size_max, shape.batch);
  shape.experts = whole_number("--experts", experts, 1, size_max, shape.experts);
  shape.top_k = whole_number("--top-k", top_k, 1, size_max, shape.top_k);
  shape.expert_hidden = whole_number("--expert-hidden", expert_hidden, 1, size_max, 2 * shape.hidden);
  shape.capacity = positive_number("--capacity", capacity, shape.capacity);
  shape.interleave = !no_interleave;
  shape.layers = layers_of_stages(placement);
  shape.norm = norm == "rms" ? NormKind::rms : NormKind::layer;
  shape.tied = tied;
  shape.recompute = recompute == "full"        ? Recompute::full
                    : recompute == "attention" ? Recompute::attention
                                               : Recompute::none;
  shape.precision = dtype == "float64"    ? Precision::float64
                    : dtype == "bfloat16" ? Precision::bfloat16
                                          : Precision::float32;
  shape.seed = static_cast<std::uint64_t>(whole_number("--seed", seed, 0, std::numeric_limits<std::int64_t>::max(), 0));
  if (model == "timed") {
    shape.costs = stage_costs(costs.costs(), placement);
    if (shape.recompute == Recompute::full) add_recomputation(shape.costs);
  }
  return shape;
}

TrainOptions RunOptions::train(const Placement& placement) const {
  TrainOptions train;
  train.shape = shape(placement);
  train.data = data;
  train.optimizer = optimizer == "sgd" ? OptimizerKind::sgd : OptimizerKind::adamw;
  train.learning_rate =
      positive_number("--learning-rate", learning_rate, optimizer == "sgd" ? 0.1 : 0.001, learning_rate_max);
  train.clip = positive_number("--clip", clip, 0);
  train.steps = static_cast<int>(whole_number("--steps", steps, 1, steps_max, 10));
  train.warmup = static_cast<int>(whole_number("--warmup", warmup, 0, steps_max, 3));
  train.threads_per_rank = static_cast<int>(whole_number("--threads-per-rank", threads_per_rank, 1, 1024, 1));
  train.forward_only = eval;
  if (save == "-") throw InputError("--save: it needs a file, which can be replaced as a whole");
  train.save = save;
  train.save_every = static_cast<int>(whole_number("--save-every", save_every, 1, steps_max, 0));
  train.resume = resume;
  train.measure_passes = true;
  train.transport.timeout = wait_timeout();
  if (model == "timed") train.transport.link_delay = std::chrono::nanoseconds(train.shape.costs.latency);
  if (!link_delay.empty()) {
    train.transport.link_delay = std::chrono::nanoseconds(value_of("--link-delay", link_delay, parse_duration));
  }
  if (train.transport.timeout <= train.transport.link_delay) {
    throw InputError("--timeout: it must be longer than --link-delay, and timed's latency");
  }
  return train;
}

}  // namespace dualpipe
