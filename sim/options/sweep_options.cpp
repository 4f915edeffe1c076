#include "dualpipe/sim/options/sweep_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/costs/set_cost.h"
#include "dualpipe/sim/estimate/estimate_file.h"
#include "dualpipe/sim/options/schedule_options.h"
#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/schedule/op.h"

namespace dualpipe {
namespace {

template <typename Number>
std::vector<Number> counts_of(std::string_view option, const std::vector<std::string>& texts, std::int64_t most) {
  std::vector<Number> counts;
  for (const std::string& text : texts) {
    const auto whole = [&](std::string_view number) { return parse_integer(number, 1, most); };
    counts.push_back(static_cast<Number>(value_of(option, text, whole)));
  }
  return counts;
}

std::vector<SweepSchedule> files_of(const SweepOptions& options, std::vector<std::string>& remarks) {
  std::vector<SweepSchedule> files;
  for (const std::string& name : options.schedules) {
    const bool is_read = std::ranges::find(files, name, &SweepSchedule::name) != files.end();
    if (is_read) continue;  // which the sweep refuses
    auto loaded = load_file_of_list(name, options.standard_input, remarks);
    if (loaded) files.push_back({name, std::move(*loaded)});
  }
  return files;
}

SweepAxis axis_of_set(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == text.npos || equals == 0) {
    throw InputError(fmt::format("--set: '{}' is not a name and values, as latency=0,20us", text));
  }
  SweepAxis axis{text.substr(0, equals), split_list(std::string_view(text).substr(equals + 1))};
  if (std::ranges::find(axis.values, "") != axis.values.end()) {
    throw InputError(fmt::format("--set: {}: a value is empty", axis.name));
  }
  return axis;
}

SweepCluster cluster_of_options(const SweepOptions& options, const std::optional<EstimateRequest>& estimated) {
  if (options.gpus.empty()) throw UsageError("--global-batch", "it is of a step on --gpus; give these, too");
  if (options.global_batch.empty()) {
    throw InputError("--gpus: how many sequences a step has decides how they are shared; give --global-batch");
  }
  if (!options.micro_batches.empty()) {
    throw UsageError("--microbatches", "how many there are follows from --global-batch; leave it out");
  }
  if (!estimated) {
    throw InputError(
        "--gpus: what a layer costs depends on how many GPUs share it; give --costs that dualpipe-sim estimate wrote");
  }
  SweepCluster cluster;
  const auto count = [](std::string_view text) { return parse_integer(text, 1, 1'000'000); };
  cluster.gpus = static_cast<int>(value_of("--gpus", options.gpus, count));
  cluster.global_batch = value_of("--global-batch", options.global_batch,
                                  [](std::string_view text) { return parse_integer(text, 1, 1'000'000'000); });
  cluster.estimate = *estimated;
  return cluster;
}

std::vector<SweepAxis> axes_of_seeds(const CostOptions& costs, const std::string& seeds) {
  constexpr int seeds_max = 1'000'000;
  const auto count =
      value_of("--seeds", seeds, [](std::string_view text) { return parse_integer(text, 1, seeds_max); });
  const std::int64_t first = costs.seed.empty() ? 0 : parse_integer(costs.seed, 0, INT64_MAX - count);
  SweepAxis axis{"seed", {}};
  for (std::int64_t i = 0; i < count; ++i) axis.values.push_back(fmt::format("{}", first + i));
  return {axis};
}

bool varies(const SweepGrid& grid, std::string_view name) {
  return std::ranges::find(grid.axes, name, &SweepAxis::name) != grid.axes.end();
}

// What no point has a use for.
void check_sweep_used(const SweepOptions& options, const SweepGrid& grid) {
  std::vector<std::string> families;
  for (const Family& each : catalog()) {
    const bool is_named = std::ranges::find(grid.schedules, each.name) != grid.schedules.end();
    if (is_named || grid.schedules.empty()) families.emplace_back(each.name);
  }
  for (std::size_t i = 0; i < options.parameters.size(); ++i) {
    ShapeOptions shape;
    if (!options.parameters[i].empty()) shape.values[i] = options.parameters[i][0];
    shape.check_used(families);
  }
  Used used = used_by(families);
  for (const SweepSchedule& each : grid.files) used.add(used_by(schedule_of(each.schedule)));
  used.reduces = false;  // when reductions end stands in no line
  if (!varies(grid, "comm")) {
    CostOptions said = options.costs;
    if (varies(grid, "jitter")) said.seed.clear();
    if (varies(grid, "bytes")) said.bandwidth.clear();
    said.check_used(used, grid.costs);
  }
  if (varies(grid, "straggler") && !varies(grid, "seed")) {
    throw UsageError("--straggler", "it is another rank in each of several runs; add --seeds");
  }
  const bool draws = machine_of(grid.costs).jitter > 0 || varies(grid, "jitter") || varies(grid, "straggler");
  if (varies(grid, "seed") && !draws) throw UsageError("--seeds", "nothing is drawn; add --jitter");
  if (varies(grid, "bandwidth") && machine_of(grid.costs).model == CommunicationModel::latency &&
      !varies(grid, "comm")) {
    throw UsageError("--set", "bandwidth does nothing with --comm latency; add --comm links or --comm stream");
  }
}

}  // namespace

SweepGrid SweepOptions::grid(GivenCosts given, std::vector<std::string>& remarks) const {
  SweepGrid grid;
  grid.schedules = schedules;
  grid.files = files_of(*this, remarks);
  grid.costs = std::move(given);
  const auto estimated = costs.file.empty() ? std::nullopt : load_estimate_request(costs.file);
  if (!gpus.empty() || !global_batch.empty()) grid.cluster = cluster_of_options(*this, estimated);
  const bool has_shapes_of_files = !grid.files.empty() && ranks.empty() && micro_batches.empty();
  if (!grid.cluster && !has_shapes_of_files && (ranks.empty() || micro_batches.empty())) {
    throw InputError("a sweep needs its shapes: give --ranks and --microbatches, or --gpus and --global-batch");
  }
  if (estimated) grid.tokens = static_cast<double>(estimated->sequence * estimated->micro_batch);
  grid.ranks = counts_of<int>("--ranks", ranks, stage_count_max);
  grid.micro_batches = counts_of<std::int64_t>("--microbatches", micro_batches, micro_batch_count_max);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& each = dualpipe::parameters()[i];
    grid.parameters.push_back(counts_of<int>(option_of(each), parameters[i], each.most));
    if (each.value == &Shape::chunks && parameters[i].empty()) grid.parameters.back() = {default_chunks};
  }
  if (grid.cluster && memory_limits.empty()) {
    const Bytes memory = accelerator(grid.cluster->estimate.gpu).memory;
    grid.axes.push_back({"memory-limit", {fmt::format("{}GB", memory / 1'000'000'000)}});
  }
  if (!memory_limits.empty()) grid.axes.push_back({"memory-limit", memory_limits});
  if (!recompute.empty()) grid.axes.push_back({"recompute", recompute});
  if (!cuts.empty()) grid.axes.push_back({"cut", cuts});
  for (const std::string& each : sets) grid.axes.push_back(axis_of_set(each));
  if (!stragglers.empty()) grid.axes.push_back({"straggler", stragglers});
  if (!seeds.empty()) {
    for (SweepAxis& each : axes_of_seeds(costs, seeds)) grid.axes.push_back(std::move(each));
  }
  if (!tokens.empty()) grid.tokens = value_of("--tokens", tokens, parse_real);
  check_sweep_used(*this, grid);
  return grid;
}

SweepShard shard_of_environment(const char* (*value_of_variable)(const char* name)) {
  const auto number = [&](const char* name) -> std::optional<std::int64_t> {
    const char* const text = value_of_variable(name);
    if (text == nullptr) return std::nullopt;
    return value_of(name, text, [](std::string_view digits) { return parse_integer(digits, 0, INT32_MAX); });
  };
  const auto id = number("SLURM_ARRAY_TASK_ID");
  if (!id) return {};
  const auto first = number("SLURM_ARRAY_TASK_MIN");
  const auto last = number("SLURM_ARRAY_TASK_MAX");
  const auto count = number("SLURM_ARRAY_TASK_COUNT");
  const std::int64_t begin = first.value_or(0);
  if (!count || *count < 1 || *id < begin || *id - begin >= *count || (last && *last - begin + 1 != *count)) {
    throw InputError(fmt::format(
        "SLURM_ARRAY_TASK_ID is {}, but no task of an array of consecutive numbers ({} from {} on); submit it as "
        "--array=1-N, or give --shard",
        *id, count.value_or(0), begin));
  }
  return {static_cast<std::size_t>(*id - begin + 1), static_cast<std::size_t>(*count)};
}

}  // namespace dualpipe
