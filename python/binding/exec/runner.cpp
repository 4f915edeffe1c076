#include "python/binding/exec/runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <utility>

#include "dualpipe/exec/train/records.h"
#include "dualpipe/exec/transport/pack.h"
#include "dualpipe/exec/transport/process_group.h"
#include "dualpipe/sim/explain/measured_costs.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "python/binding/exec/interrupt.h"

namespace dualpipe::python {

namespace nb = nanobind;

namespace {

void check_names_each_once(const std::vector<int>& rank_of, int ranks) {
  const std::set<int> different(rank_of.begin(), rank_of.end());
  const bool fits = std::ssize(rank_of) == ranks && std::ssize(different) == ranks && *different.begin() == 0 &&
                    *different.rbegin() == ranks - 1;
  if (fits) return;
  throw InputError(fmt::format(
      "rank_mapping has to name each of the {} ranks of the pipeline once, one for each rank of the group", ranks));
}

// The same, with rank r's part on rank `rank_of[r]`.
Program renumbered(const Program& program, const std::vector<int>& rank_of) {
  const Schedule& old = program.schedule;
  std::vector<int> old_of(rank_of.size());
  for (std::size_t rank = 0; rank < rank_of.size(); ++rank) {
    old_of[static_cast<std::size_t>(rank_of[rank])] = static_cast<int>(rank);
  }
  Program result;
  Schedule& schedule = result.schedule;
  schedule = {old.name, old.placement, old.micro_batches, {}, {0}};
  for (auto& rank : schedule.placement.rank_of) rank = static_cast<std::uint16_t>(rank_of[rank]);
  for (const int rank : old_of) {
    const auto ops = old.rank(rank);
    for (std::size_t position = 0; position <= ops.size(); ++position) {
      const auto slot = program.slot(rank, position);
      result.slot_begin.push_back(static_cast<std::uint32_t>(result.communication.size()));
      result.communication.insert(result.communication.end(), slot.begin(), slot.end());
    }
    schedule.ops.insert(schedule.ops.end(), ops.begin(), ops.end());
    schedule.rank_begin.push_back(schedule.ops.size());
  }
  result.slot_begin.push_back(static_cast<std::uint32_t>(result.communication.size()));
  return result;
}

void drop_reductions(Program& program) {
  auto& weights = program.schedule.placement.weights_of;
  std::iota(weights.begin(), weights.end(), std::uint16_t{0});
  std::vector<Op> kept;
  std::size_t from = 0;
  for (auto slot = program.slot_begin.begin(); slot != program.slot_begin.end(); ++slot) {
    for (; from < *slot; ++from) {
      const Op op = program.communication[from];
      if (op.kind != Kind::reduce_gradients) kept.push_back(op);
    }
    *slot = static_cast<std::uint32_t>(kept.size());
  }
  program.communication = std::move(kept);
}

void check_runs(const Program& program) {
  if (const auto violations = validate(program); !violations.empty()) {
    throw InputError(
        fmt::format("schedule {}: {}", program.schedule.name, to_text(violations.front(), program.schedule.placement)));
  }
  if (const auto deadlock = find_deadlock(program, CommunicationModel::links)) {
    throw DeadlockError(*deadlock, program.schedule.placement);
  }
}

}  // namespace

Plan::Plan(Program program, const std::vector<int>& rank_of, bool reduces) : program_(std::move(program)) {
  check_runs(program_);
  if (!rank_of.empty()) {
    check_names_each_once(rank_of, placement().ranks);
    program_ = renumbered(program_, rank_of);
  }
  if (!reduces) drop_reductions(program_);
}

// FNV-1a.
std::uint32_t Plan::digest() const {
  std::uint32_t hash = 2166136261U;
  const auto add = [&](std::uint64_t value) { hash = (hash ^ static_cast<std::uint32_t>(value)) * 16777619U; };
  for (const auto* ops : {&program_.schedule.ops, &program_.communication}) {
    for (const Op& op : *ops) {
      for (const std::uint64_t value : {std::uint64_t{op.micro_batch}, std::uint64_t{op.stage},
                                        static_cast<std::uint64_t>(op.kind), std::uint64_t{op.with_next}}) {
        add(value);
      }
    }
  }
  for (const auto rank : placement().rank_of) add(rank);
  for (const auto begin : placement().chain_begin) add(begin);
  return hash;
}

bool Plan::splits_backward(int rank) const {
  return std::ranges::any_of(program_.schedule.rank(rank), [](Op op) { return op.kind == Kind::weight_gradient; });
}

// Without the GIL, which who waits must not have; and where the user's Ctrl-C ends the wait.
template <typename Call>
auto Runner::guarded(const Call& call) {
  const nb::gil_scoped_release released;
  const StopAtInterrupt stop(stop_, options_.catches_interrupt);
  return call();
}

Runner::Runner(std::shared_ptr<const Plan> plan, int rank, const std::string& group, std::vector<nb::object> stages,
               const RunnerOptions& options)
    : plan_(std::move(plan)),
      rank_(rank),
      options_(options),
      held_(std::move(stages)),
      by_stage_(plan_->placement().rank_of.size()) {
  const std::vector<int> numbers = plan_->placement().stages_on(rank);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    stages_.push_back(nb::cast<PythonStage*>(held_.at(i)));
    by_stage_[static_cast<std::size_t>(numbers[i])] = stages_.back();
  }
  const auto timeout =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(options.timeout));
  guarded([&] {
    ReplayOptions replay;
    replay.measure_memory = options.measures_memory;
    if (options.cuda_device) {
      hardware_ = cuda_hardware({.local = LocalProcess{"torch.cuda.current_device()", *options.cuda_device}});
      device_ = hardware_->device(0, 1, static_cast<int>(numbers.size()));
      replay.device = device_.get();
    }
    if (options.measures_memory) watch_.emplace(*replay.device);
    world_ = group.empty()
                 ? one_process()
                 : process_group(c10d::resolve_process_group(group), {.timeout = timeout, .stop = stop_.get_token()});
    transport_ =
        std::move(world_->transports(plan_->placement(), {.timeout = timeout}).at(static_cast<std::size_t>(rank)));
    pipeline_.emplace(plan_->program(), rank, by_stage_, *transport_, record_, replay);
  });
}

Runner::~Runner() {
  if (PyGILState_Check() == 0) return;
  const nb::gil_scoped_release released;
  pipeline_.reset();
  transport_.reset();
  world_.reset();
}

std::vector<std::string> Runner::all_gather(const std::string& what, std::string part) {
  return guarded([&] { return world_->all_gather(what, std::move(part)); });
}

void Runner::expect(std::uint64_t id, std::vector<std::uint32_t> of_place) {
  transport_->expect({id, std::move(of_place)});
}

void Runner::abort(const std::string& reason) {
  const nb::gil_scoped_release released;
  transport_->abort(reason);
}

std::vector<at::Tensor> Runner::step(std::vector<Tensors> inputs, double loss_scale, bool has_loss) {
  for (PythonStage* each : stages_) each->set_loss_scale(loss_scale);
  return guarded([&] { return pipeline_->step({.inputs = std::move(inputs), .return_outputs = !has_loss}).losses; });
}

TimelineValue Runner::timeline() {
  return guarded([&] {
    detail::transport::Packer packer;
    detail::train::pack(packer, record_, world_->clock_offset());
    std::vector<RankRecord> records;
    for (const std::string& part : world_->all_gather("the profile", packer.take())) {
      detail::transport::Unpacker unpacker(part);
      records.push_back(
          detail::train::unpack_record(unpacker, plan_->program(), static_cast<int>(std::ssize(records))));
    }
    TimelineValue value{plan_->program(), {}, merge(plan_->program(), records)};
    MeasuredCosts measured = measured_costs(value.program, value.timeline);
    value.costs = std::move(measured.costs);
    value.remarks = std::move(measured.remarks);
    for (const RankRecord& each : records) value.peaks.push_back({each.peak_activations, each.peak_memory});
    return value;
  });
}

int Runner::traverse(visitproc visit, void* arg) const {
  for (const nb::object& each : held_) Py_VISIT(each.ptr());
  return 0;
}

}  // namespace dualpipe::python
