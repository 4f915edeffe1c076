#include "python/binding/exec/runner.h"

#include <algorithm>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <utility>

#include "dualpipe/exec/train/records.h"
#include "dualpipe/exec/transport/pack.h"
#include "dualpipe/exec/transport/process_group.h"
#include "dualpipe/sim/explain/measured_costs.h"
#include "dualpipe/sim/schedule/fingerprint.h"
#include "dualpipe/sim/schedule/rewrite.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "python/binding/exec/interrupt.h"

namespace dualpipe::python {

namespace nb = nanobind;

Plan::Plan(Program program, const std::vector<int>& rank_of, bool reduces) : program_(std::move(program)) {
  if (const auto deadlock = find_deadlock(program_, CommunicationModel::links)) {
    throw DeadlockError(*deadlock, placement());
  }
  if (!rank_of.empty()) program_ = renumber_ranks(program_, rank_of);
  if (!reduces) program_ = without_reductions(std::move(program_));
  fingerprint_ = dualpipe::fingerprint(program_);
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
