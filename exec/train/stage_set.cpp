#include "dualpipe/exec/train/stage_set.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/AutogradState.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "dualpipe/exec/train/optimizer.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::train {

using detail::model::DeviceData;

namespace {

Time scaled(Time time, double speed) { return static_cast<Time>(static_cast<double>(time) / speed); }

void slow_down(StageCosts& costs, double speed) {
  for (Time StageCosts::*time : {&StageCosts::forward, &StageCosts::backward, &StageCosts::input_gradient,
                                 &StageCosts::weight_gradient, &StageCosts::recompute}) {
    costs.*time = scaled(costs.*time, speed);
  }
  if (costs.overlapped) costs.overlapped = scaled(*costs.overlapped, speed);
}

// Of one stage, as fast as its rank.
StageCosts costs_on_rank(const Costs& costs, int stage, int rank) {
  StageCosts own = costs.of(stage);
  if (!costs.speed.empty()) slow_down(own, costs.speed[static_cast<std::size_t>(rank)]);
  return own;
}

// Those of a stage of `timed`.
void add_faults(const Faults& faults, const Placement& placement, int stage, ModelShape& shape) {
  const int rank = placement.rank_of[static_cast<std::size_t>(stage)];
  for (const Faults::SlowRank& each : faults.ranks) {
    if (each.rank == rank && !shape.costs.stages.empty()) slow_down(shape.costs.stages[0], 1 / each.factor);
  }
  for (const LateOp& each : faults.ops) {
    if (each.op.stage == stage) shape.late.push_back(each);
  }
}

ModelShape shape_of(const Schedule& schedule, const TrainOptions& options, int stage) {
  const Placement& placement = schedule.placement;
  ModelShape shape = options.shape;
  shape.loss_scale = 1 / static_cast<double>(schedule.total_micro_batches());
  if (!shape.costs.stages.empty()) {
    shape.costs.speed.clear();
    shape.costs.stages = {
        costs_on_rank(options.shape.costs, stage, placement.rank_of[static_cast<std::size_t>(stage)])};
  }
  add_faults(options.faults, placement, stage, shape);
  return shape;
}

void check_layers(const Placement& placement, const ModelShape& shape) {
  for (int chain = 0; chain < placement.chains(); ++chain) {
    const auto begin = placement.chain_begin.begin() + chain;
    const int stages = *(begin + 1) - *begin;
    if (static_cast<std::size_t>(stages) == shape.layers.size()) continue;
    throw InputError(fmt::format("the layers are split into {} parts, but chain {} of the schedule has {} stages",
                                 shape.layers.size(), chain, stages));
  }
}

// Of all chains.
std::vector<int> tied_stages_of(const Placement& placement, const ModelShape& shape) {
  std::vector<int> stages;
  for (int chain = 0; chain < placement.chains(); ++chain) {
    for (const int stage : tied_stages(shape)) {
      stages.push_back(placement.chain_begin[static_cast<std::size_t>(chain)] + stage);
    }
  }
  return stages;
}

}  // namespace

StageSet::StageSet(const Schedule& schedule, const TrainOptions& options, std::span<const int> numbers, Device& device,
                   std::shared_ptr<Data> data)
    : device_(device),
      data_(data ? std::move(data) : make_data(schedule, options)),
      by_number_(schedule.placement.rank_of.size()),
      tied_stages_(tied_stages_of(schedule.placement, options.shape)) {
  const Placement& placement = schedule.placement;
  check_layers(placement, options.shape);
  if (!device.where().is_cpu()) {
    auto on_device = std::make_shared<DeviceData>(std::move(data_), device);
    on_device_ = on_device.get();
    data_ = std::move(on_device);
    device.use({});
  }
  for (const int number : numbers) {
    const int chain = placement.chain_of(number);
    const int in_chain = number - placement.chain_begin[static_cast<std::size_t>(chain)];
    const auto first_micro_batch = std::int64_t{chain} * schedule.micro_batches;
    note_samples(schedule, number, first_micro_batch);
    feeds_.push_back(std::make_unique<Feed>(Feed{data_.get(), 0, first_micro_batch}));
    stages_.push_back(make_stage(shape_of(schedule, options, number), in_chain, *feeds_.back(), device));
    by_number_[static_cast<std::size_t>(number)] = stages_.back().get();
    parameters_.push_back(stages_.back()->parameters());
    const auto count = [this](const std::vector<at::Tensor>& parameters) {
      counted_parameters_.insert(counted_parameters_.end(), parameters.begin(), parameters.end());
    };
    if (is_first_with_weights(placement, number)) count(untied_parameters(*stages_.back()));
    if (!tied_stages_.empty() && number == tied_stages_.front()) count(stages_.back()->tied_parameters());
  }
}

void StageSet::note_samples(const Schedule& schedule, int number, std::int64_t first_micro_batch) {
  const DeviceData::Range all_of_chain{first_micro_batch, schedule.micro_batches};
  if (!schedule.placement.previous(number)) inputs_.push_back(all_of_chain);
  if (!schedule.placement.next(number)) targets_.push_back(all_of_chain);
}

void StageSet::begin_step(int step) {
  for (const auto& feed : feeds_) feed->step = step;
  if (on_device_ == nullptr) return;
  device_.use({});
  on_device_->begin_step(step, inputs_, targets_);
}

void StageSet::add_up_gradients() const {
  for (const auto& stage : stages_) stage->add_up_gradients();
}

std::vector<at::Tensor> StageSet::all_parameters() const {
  std::vector<at::Tensor> all;
  for (const auto& each : parameters_) all.insert(all.end(), each.begin(), each.end());
  return all;
}

std::vector<NamedTensor> StageSet::named_parameters() const {
  std::vector<NamedTensor> all;
  for (const auto& stage : stages_) {
    for (NamedTensor& parameter : stage->named_parameters()) all.push_back(std::move(parameter));
  }
  return all;
}

StageBytes StageSet::resident(int number, const TrainOptions& options) const {
  Stage& stage = *by_number_[static_cast<std::size_t>(number)];
  Bytes parameters = 0;
  for (const at::Tensor& parameter : stage.parameters()) parameters += static_cast<Bytes>(parameter.nbytes());
  StageBytes bytes;
  bytes.parameters = parameters + stage.working_bytes();
  if (options.forward_only) return bytes;
  bytes.gradients = parameters;
  bytes.optimizer = options.optimizer == OptimizerKind::adamw ? 2 * parameters : 0;
  return bytes;
}

void reduce_tied(const StageSet& stages, Transport& transport) {
  for (const int number : stages.tied_stages()) {
    Stage* const stage = stages.by_number()[static_cast<std::size_t>(number)];
    if (stage == nullptr) continue;
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& parameter : stage->tied_parameters()) gradients.push_back(parameter.grad());
    transport.reduce(stages.tied_stages(), number, gradients);
  }
}

void clip(const StageSet& stages, Transport& transport, double norm_max) {
  const std::vector<double> own = gradient_squares(stages.counted_parameters());
  const double magnitude = transport.sum(plain_sum(own));
  const double global = transport.sum(sum_in_any_order(own, magnitude));
  for (const auto& parameters : stages.parameters()) clip_gradients(parameters, global, norm_max);
}

std::shared_ptr<Data> make_data(const Schedule& schedule, const TrainOptions& options) {
  if (options.data.empty()) return synthetic_data(options.shape, options.shape.seed);
  return token_file(options.shape, options.data, static_cast<std::int64_t>(schedule.total_micro_batches()));
}

std::unique_ptr<Device> device_of(const TrainOptions& options, std::span<const int> here, int rank,
                                  std::size_t stages) {
  if (options.hardware == nullptr) return nullptr;
  const auto index = static_cast<int>(std::ranges::find(here, rank) - here.begin());
  return options.hardware->device(index, static_cast<int>(here.size()), static_cast<int>(stages));
}

void set_up_arithmetic() {
  [[maybe_unused]] static const bool is_set_up = [] {
    at::Context& context = at::globalContext();
    context.setAllowTF32CuBLAS(false);
    context.setAllowTF32CuDNN(false);
    context.setAllowBF16ReductionCuBLAS(/*allow_reduced_precision=*/false);
    context.setSDPUseCuDNN(false);  // it builds a plan for each shape in the midst of a step
    return true;
  }();
}

void set_up_thread(int threads) {
  at::set_num_threads(threads);
  // Else the backwards of all ranks would run, one after the other, on a thread of the process for each GPU.
  c10::AutogradState::get_tls_state().set_multithreading_enabled(false);
}

double mean_loss(std::span<const double> losses) {
  double sum = 0;
  for (const double loss : losses) sum += loss;
  return sum / static_cast<double>(losses.size());
}

}  // namespace dualpipe::detail::train
