#include "dualpipe/sim/sweep/sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>
#include <mutex>
#include <utility>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/costs/rules.h"
#include "dualpipe/sim/costs/set_cost.h"
#include "dualpipe/sim/evaluate/draws.h"
#include "dualpipe/sim/evaluate/evaluate.h"
#include "dualpipe/sim/evaluate/in_order.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "dualpipe/sim/sweep/points.h"

namespace dualpipe {

using detail::sweep::Axes;

namespace {

std::vector<int> parse_cut(std::string_view text) {
  std::vector<int> cut;
  for (const std::string_view each : split_at('-', text)) {
    cut.push_back(static_cast<int>(parse_integer(each, 1, stage_count_max)));
  }
  return cut;
}

double parse_speed(std::string_view text) {
  const double speed = parse_real(text);
  if (detail::costs::is_speed(speed)) return speed;
  throw InputError(fmt::format("{}; {} is not", detail::costs::speed_rule, text));
}

// "0.9": of each of so many ranks; "0.9@3": of rank 3; "1-1-0.9-1": one after the other.
std::vector<double> speeds_of(std::string_view text, std::size_t ranks) {
  if (const std::size_t at = text.find('@'); at != text.npos) {
    const auto rank = static_cast<std::size_t>(parse_integer(text.substr(at + 1), 0, stage_count_max - 1));
    if (rank >= ranks) throw InputError(fmt::format("speed {}: there is no rank {}, of {}", text, rank, ranks));
    std::vector<double> speeds(ranks, 1);
    speeds[rank] = parse_speed(text.substr(0, at));
    return speeds;
  }
  if (text.find('-') == text.npos) return std::vector<double>(ranks, parse_speed(text));
  std::vector<double> speeds;
  for (const std::string_view each : split_at('-', text)) speeds.push_back(parse_speed(each));
  return speeds;
}

bool is_cost(std::string_view axis) {
  const auto names = sweep_axis_names();
  return std::ranges::find(names, axis) == names.end();
}

void check_recompute(const SweepAxis& axis, const GivenCosts& costs) {
  for (const std::string& each : axis.values) {
    if (each != "none" && each != "full") {
      throw InputError(fmt::format("recompute: '{}' is neither none nor full", each));
    }
  }
  if (knows_both_recomputes(entries_of(costs))) return;
  throw InputError(
      "recompute: to choose whether to recompute, the costs must know both: recompute_ns, and "
      "recompute_activation_bytes beside activation_bytes");
}

}  // namespace

// What points with the same order and the same stages share.
struct Sweep::Prepared {
  std::shared_ptr<const Program> program;
  Costs costs;  // their machine is that of the grid
  std::vector<RankMemory> memory;
};

// The last few, for several threads.
class Sweep::PreparedCache {
 public:
  template <typename Make>
  std::shared_ptr<const Prepared> of(std::size_t key, Make make) {
    if (auto found = find(key)) return found;
    auto made = std::make_shared<const Prepared>(make());
    const std::scoped_lock lock(mutex_);
    kept_[next_++ % kept_.size()] = {key, made};
    return made;
  }

 private:
  std::shared_ptr<const Prepared> find(std::size_t key) {
    const std::scoped_lock lock(mutex_);
    for (const auto& [of, prepared] : kept_) {
      if (prepared && of == key) return prepared;
    }
    return nullptr;
  }

  std::mutex mutex_;
  std::array<std::pair<std::size_t, std::shared_ptr<const Prepared>>, 4> kept_;
  std::size_t next_ = 0;
};

class Sweep::Points {
 public:
  explicit Points(SweepGrid grid) : grid_(std::move(grid)), axes_(grid_) {
    std::visit([](const auto& costs) { check(costs); }, grid_.costs);
    if (grid_.tokens && !(*grid_.tokens > 0)) throw InputError("tokens: they must be more than 0");
    set_application_order();
    for (std::size_t i = 0; i < grid_.axes.size(); ++i) check_values(i);
    set_columns();
  }

  [[nodiscard]] const SweepGrid& grid() const { return grid_; }
  [[nodiscard]] const Axes& axes() const { return axes_; }
  [[nodiscard]] const std::vector<std::string>& columns() const { return columns_; }

  [[nodiscard]] Request request(const Axes::Values& values) const {
    Request request;
    request.family = values.variant->name;
    request.shape = values.variant->shape;
    request.shape.ranks = values.place->ranks;
    request.shape.micro_batches = values.place->micro_batches;
    const auto& layout = values.place->layout;
    request.costs = layout ? layout->costs : of_model(grid_.costs, values.place->ranks);
    for (const std::size_t axis : application_order_)
      set_cost(request.costs, grid_.axes[axis].name, value(values, axis));
    for (std::size_t axis = 0; axis < grid_.axes.size(); ++axis) {
      const std::string& name = grid_.axes[axis].name;
      const std::string& text = value(values, axis);
      if (name == "memory-limit") request.memory_limit = parse_memory_limit(text);
      if (name == "speed") set_speeds(request.costs, values, text);
      if (name == "cut" && text != "best") std::get<ModelCosts>(request.costs).cut = parse_cut(text);
      if (name == "recompute" && text == "none") {
        for (StageCosts& each : entries_of(request.costs)) each = without_recompute(each);
      }
    }
    return request;
  }

  [[nodiscard]] SweepRun run_of(const Axes::Values& values) const {
    const auto prepared = prepare(values);
    return {prepared->program, {machine(values), prepared->costs.stages}};
  }

  void add_line(std::string& lines, std::size_t point) const;

 private:
  [[nodiscard]] const std::string& value(const Axes::Values& values, std::size_t axis) const {
    return grid_.axes[axis].values[values.of_axis[axis]];
  }

  [[nodiscard]] static std::size_t ranks_of(const Axes::Values& values) {
    return static_cast<std::size_t>(values.place->ranks);
  }
  static void set_speeds(GivenCosts& costs, const Axes::Values& values, const std::string& text) {
    std::visit([&](MachineCosts& machine) { machine.speed = speeds_of(text, ranks_of(values)); }, costs);
  }

  // Costs are set in the order of their names: W is a part of B, which is there first.
  void set_application_order() {
    for (const std::string& name : cost_names()) {
      if (const auto axis = axis_named(name)) application_order_.push_back(*axis);
    }
  }

  [[nodiscard]] std::optional<std::size_t> axis_named(std::string_view name) const {
    const auto axis = std::ranges::find(grid_.axes, name, &SweepAxis::name);
    if (axis == grid_.axes.end()) return std::nullopt;
    return static_cast<std::size_t>(axis - grid_.axes.begin());
  }

  void check_value(const std::string& axis, const std::string& text) const {
    if (is_cost(axis)) {
      GivenCosts costs = grid_.costs;
      return set_cost(costs, axis, text);
    }
    try {
      if (axis == "memory-limit") (void)parse_memory_limit(text);
      if (axis == "cut" && text != "best") (void)parse_cut(text);
      if (axis == "speed") (void)speeds_of(text, stage_count_max);
      if (axis == "straggler") (void)parse_speed(text);
    } catch (const InputError& error) {
      throw InputError(fmt::format("{}: {}", axis, error.what()));
    }
  }

  // Each by itself, so that what can never work is said at once.
  void check_values(std::size_t axis) const {
    const auto& [name, values] = grid_.axes[axis];
    if (name == "recompute") return check_recompute(grid_.axes[axis], grid_.costs);
    for (const std::string& each : values) check_value(name, each);
    if (name != "memory-limit") return;
    if (std::ranges::any_of(entries_of(grid_.costs), detail::costs::counts_bytes)) return;
    if (std::ranges::all_of(values, [](const std::string& each) { return each.find("micro") != each.npos; })) return;
    throw InputError(
        "memory-limit: it needs the bytes that it limits: give those of a micro-batch, or a costs file that has them");
  }

  void set_columns() {
    columns_ = {"point", "schedule"};
    if (grid_.cluster) columns_.insert(columns_.end(), {"tensor_parallel", "data_parallel"});
    columns_.insert(columns_.end(), {"ranks", "microbatches"});
    for (std::size_t i = 0; i < grid_.parameters.size(); ++i) {
      if (!grid_.parameters[i].empty()) columns_.emplace_back(parameters()[i].name);
    }
    for (const SweepAxis& each : grid_.axes) columns_.push_back(each.name);
    for (const char* const figure : {"stages", "makespan_ns", "span_ns", "bubble_rate_makespan", "bubble_rate_span",
                                     "peak_activations_most", "peak_memory_bytes", "fits", "data_parallel_ns",
                                     "step_ns", "tokens_per_second", "flops_utilization", "left_out"}) {
      const std::string_view name = figure;
      if (!grid_.cluster && (name == "data_parallel_ns" || name == "step_ns" || name == "flops_utilization")) continue;
      columns_.emplace_back(figure);
    }
  }

  [[nodiscard]] std::shared_ptr<const Prepared> prepare(const Axes::Values& values) const {
    const auto make = [&] {
      const Request asked = request(values);
      Prepared prepared;
      prepared.program = values.variant->program;
      if (!prepared.program) prepared.program = std::make_shared<const Program>(lower(generate(asked)));
      prepared.costs = stage_costs(asked.costs, prepared.program->schedule.placement);
      prepared.memory = memory_of_ranks(*prepared.program, prepared.costs);
      return prepared;
    };
    // Whoever plans for costs plans for each.
    const Family* const family = values.variant->family;
    if (family != nullptr && family->is_automatic) return std::make_shared<const Prepared>(make());
    return cache_.of(values.prepared, make);
  }

  // Of a point whose stages are prepared.
  [[nodiscard]] MachineCosts machine(const Axes::Values& values) const {
    const auto& layout = values.place->layout;
    GivenCosts costs = Costs{layout ? MachineCosts(layout->costs) : machine_of(grid_.costs), {}};
    for (const std::size_t axis : application_order_) {
      if (is_machine_cost(grid_.axes[axis].name)) set_cost(costs, grid_.axes[axis].name, value(values, axis));
    }
    if (const auto axis = axis_named("speed")) set_speeds(costs, values, value(values, *axis));
    MachineCosts machine = machine_of(costs);
    if (const auto axis = axis_named("straggler")) {
      machine.speed.resize(ranks_of(values), 1);
      machine.speed[straggler_of(machine.seed, ranks_of(values))] *= parse_speed(value(values, *axis));
    }
    return machine;
  }

  void add_place(std::string& line, std::size_t point, const Axes::Values& values) const;
  [[nodiscard]] std::string figures(const Axes::Values& values) const;
  [[nodiscard]] std::string step_figures(const Axes::Values& values, const Prepared& prepared, double bandwidth,
                                         Time makespan) const;
  [[nodiscard]] std::optional<bool> fits(const Axes::Values& values, const Prepared& prepared, Bytes peak) const;

  SweepGrid grid_;
  Axes axes_;
  std::vector<std::size_t> application_order_;  // axes that are costs
  std::vector<std::string> columns_;
  mutable PreparedCache cache_;
};

void Sweep::Points::add_place(std::string& line, std::size_t point, const Axes::Values& values) const {
  const auto out = std::back_inserter(line);
  fmt::format_to(out, "{{\"point\":{},\"schedule\":{}", point, json_string(values.variant->name));
  if (const auto& layout = values.place->layout) {
    fmt::format_to(out, ",\"tensor_parallel\":{},\"data_parallel\":{}", layout->tensor, layout->data);
  }
  fmt::format_to(out, ",\"ranks\":{},\"microbatches\":{}", values.place->ranks, values.place->micro_batches);
  for (std::size_t i = 0; i < grid_.parameters.size(); ++i) {
    const Parameter& each = parameters()[i];
    const Family* const family = values.variant->family;
    if (grid_.parameters[i].empty() || family == nullptr || !(family->*each.is_taken)) continue;
    fmt::format_to(out, ",\"{}\":{}", each.name, values.variant->shape.*each.value);
  }
  for (std::size_t axis = 0; axis < grid_.axes.size(); ++axis) {
    fmt::format_to(out, ",\"{}\":{}", grid_.axes[axis].name, json_string(value(values, axis)));
  }
}

std::optional<bool> Sweep::Points::fits(const Axes::Values& values, const Prepared& prepared, Bytes peak) const {
  const auto axis = axis_named("memory-limit");
  if (!axis) return std::nullopt;
  const MemoryLimit limit = parse_memory_limit(value(values, *axis));
  if (limit.unit == MemoryLimit::Unit::bytes) return peak <= limit.amount;
  const auto needed = memory_needed(*prepared.program, prepared.costs, limit.unit);
  return std::ranges::all_of(needed, [&](const MemoryLimit& each) { return each.amount <= limit.amount; });
}

// Of a step: after the last op the copies add up their gradients, and share what the optimizer made, in ZeRO-1's
// scatter and gather. None of it is hidden behind the backwards: the worst case.
std::string Sweep::Points::step_figures(const Axes::Values& values, const Prepared& prepared, double bandwidth,
                                        Time makespan) const {
  const SweepCluster& cluster = *grid_.cluster;
  const detail::sweep::Layout& layout = *values.place->layout;
  const Placement& placement = prepared.program->schedule.placement;
  std::vector<double> bytes(static_cast<std::size_t>(placement.ranks));
  for (int stage = 0; stage < placement.stages(); ++stage) {
    const StageCosts& costs = prepared.costs.of(stage);
    bytes[placement.rank_of[static_cast<std::size_t>(stage)]] +=
        static_cast<double>(costs.gradients + costs.parameters);
  }
  const Accelerator& gpu = accelerator(cluster.estimate.gpu);
  const int copies = layout.data * cluster.estimate.context;
  const bool in_node = layout.tensor * copies <= gpu.per_node;
  const double rate = in_node && copies > 1 ? gpu.bandwidth_among(copies)
                      : bandwidth > 0       ? bandwidth
                                            : gpu.network_bandwidth;
  const double seconds = std::ranges::max(bytes) * (copies - 1) / copies / rate;
  const auto reduction = static_cast<Time>(std::llround(seconds * 1e9));
  const auto step = static_cast<double>(makespan + reduction) * 1e-9;
  const double peak = cluster.estimate.precision == MatmulPrecision::fp8 ? gpu.flops_8bit : gpu.flops_16bit;
  const double tokens = static_cast<double>(cluster.global_batch) * static_cast<double>(cluster.estimate.sequence);
  const double flops = layout.flops * static_cast<double>(values.place->micro_batches) * layout.data;
  return fmt::format(",\"data_parallel_ns\":{},\"step_ns\":{},\"tokens_per_second\":{},\"flops_utilization\":{}",
                     reduction, makespan + reduction, tokens / step, flops / (step * cluster.gpus * peak));
}

std::string Sweep::Points::figures(const Axes::Values& values) const {
  const auto prepared = prepare(values);
  const Costs costs{machine(values), prepared->costs.stages};
  Evaluation found;
  found.stages = prepared->program->schedule.placement.stages();
  found.timeline = simulate(*prepared->program, costs, Record::ranks);
  found.memory = prepared->memory;
  const Time makespan = found.timeline.makespan();
  std::string text = fmt::format(
      ",\"stages\":{},\"makespan_ns\":{},\"span_ns\":{},\"bubble_rate_makespan\":{},\"bubble_rate_span\":{},"
      "\"peak_activations_most\":{},\"peak_memory_bytes\":{}",
      found.stages, makespan, found.timeline.span(), found.timeline.bubble_rate_makespan(),
      found.timeline.bubble_rate_span(), found.peak_activations_most(), found.peak_memory());
  if (const auto fit = fits(values, *prepared, found.peak_memory())) text += fmt::format(",\"fits\":{}", *fit);
  if (values.place->layout) {
    text += step_figures(values, *prepared, costs.bandwidth, makespan);
  } else if (grid_.tokens && makespan > 0) {
    const double tokens = *grid_.tokens * static_cast<double>(values.place->micro_batches);
    text += fmt::format(",\"tokens_per_second\":{}", tokens / (static_cast<double>(makespan) * 1e-9));
  }
  return text;
}

void Sweep::Points::add_line(std::string& lines, std::size_t point) const {
  const Axes::Values values = axes_.at(point);
  add_place(lines, point, values);
  try {
    lines += figures(values);
  } catch (const DeadlockError&) {
    lines += ",\"left_out\":\"it hangs under this communication\"";
  } catch (const InputError& error) {
    lines += fmt::format(",\"left_out\":{}", json_string(error.what()));
  }
  lines += "}\n";
}

std::string to_text(const SweepShard& shard) { return fmt::format("{}/{}", shard.index, shard.count); }

SweepShard parse_shard(std::string_view text) {
  const std::size_t slash = std::min(text.find('/'), text.size());
  const auto number = [](std::string_view digits, std::size_t most) {
    std::size_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc{} && end == digits.data() + digits.size() && value <= most ? value : 0;
  };
  const SweepShard shard{number(text.substr(0, slash), sweep_points_max),
                         number(text.substr(std::min(slash + 1, text.size())), sweep_points_max)};
  if (shard.index == 0 || shard.count == 0 || shard.index > shard.count) {
    throw InputError(fmt::format("'{}' is no shard; the second of four is 2/4, and the first 1/4", text));
  }
  return shard;
}

Sweep::Sweep(SweepGrid grid) : points_(std::make_unique<const Points>(std::move(grid))) {}
Sweep::~Sweep() = default;

const SweepGrid& Sweep::grid() const { return points_->grid(); }
std::size_t Sweep::size() const { return points_->axes().size(); }
const std::vector<std::string>& Sweep::columns() const { return points_->columns(); }

std::string Sweep::header(const SweepShard& shard) const {
  const std::string part = shard.count == 1 ? "" : fmt::format("\"shard\":\"{}\",", to_text(shard));
  return fmt::format("{{\"format\":\"dualpipe-sweep\",\"version\":1,\"points\":{},{}\"grid\":{}}}\n", size(), part,
                     to_json_line(grid()));
}

Request Sweep::request(std::size_t point) const { return points_->request(points_->axes().at(point)); }
SweepRun Sweep::run_of(std::size_t point) const { return points_->run_of(points_->axes().at(point)); }

std::string Sweep::lines(const SweepShard& shard, std::size_t begin, std::size_t end) const {
  std::string lines;
  for (std::size_t place = begin; place < end; ++place) points_->add_line(lines, shard.point(place));
  return lines;
}

void Sweep::run(const SweepShard& shard, std::size_t begin, unsigned threads,
                const std::function<void(std::string_view lines, std::size_t count)>& take) const {
  struct Block {
    std::string lines;
    std::size_t count = 0;
    std::exception_ptr error;
  };
  constexpr std::size_t block_points = 32;
  const std::size_t end = shard.size(size());
  const std::size_t blocks = begin < end ? (end - begin + block_points - 1) / block_points : 0;
  const auto work = [&](std::size_t block) {
    const std::size_t first = begin + block * block_points;
    const std::size_t last = std::min(first + block_points, end);
    try {
      return Block{lines(shard, first, last), last - first, nullptr};
    } catch (...) {
      return Block{{}, 0, std::current_exception()};
    }
  };
  const auto take_block = [&](std::size_t, const Block& block) {
    if (block.error) std::rethrow_exception(block.error);
    take(block.lines, block.count);
  };
  detail::evaluate::in_order<Block>(blocks, threads, work, take_block);
}

}  // namespace dualpipe
