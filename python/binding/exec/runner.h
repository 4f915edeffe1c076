// One rank of a pipeline whose stages are Python objects. Private to the binding.
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/pipeline/pipeline.h"
#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/schedule/program.h"
#include "python/binding/exec/stage.h"
#include "python/binding/sim/timeline.h"

namespace dualpipe::python {

// What all ranks run.
class Plan {
 public:
  // Of a valid program. `rank_of`: which rank of the process group each rank of the schedule is; empty: the same.
  // `reduces`: gradients of stages with the same weights are summed. Throws DeadlockError where it hangs.
  Plan(Program program, const std::vector<int>& rank_of, bool reduces);

  [[nodiscard]] const Program& program() const { return program_; }
  [[nodiscard]] const Placement& placement() const { return program_.schedule.placement; }
  // dualpipe::fingerprint of the program.
  [[nodiscard]] std::uint64_t fingerprint() const { return fingerprint_; }
  [[nodiscard]] bool splits_backward(int rank) const;

 private:
  Program program_;
  std::uint64_t fingerprint_ = 0;
};

struct RunnerOptions {
  double timeout = 60;               // seconds, of one wait
  std::optional<int> cuda_device{};  // the rank's stages are on this GPU; none: on the host
  bool catches_interrupt = false;    // it is made by the main thread, and nobody else handles SIGINT
  bool measures_memory = false;
};

// Collective where nothing else is said: all ranks call it, in the same order. After an error it is of no use any more.
class Runner {
 public:
  // `group`: the name of a process group, whose ranks are those of the plan; empty: this process is the only rank.
  // `stages`: those of the rank, in their order.
  Runner(std::shared_ptr<const Plan> plan, int rank, const std::string& group, std::vector<nanobind::object> stages,
         const RunnerOptions& options);
  ~Runner();

  [[nodiscard]] bool catches_interrupt() const { return options_.catches_interrupt; }
  void set_catches_interrupt(bool catches) { options_.catches_interrupt = catches; }

  // Waits for all ranks, and returns what each of them brings.
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& what, std::string part);
  void expect(std::uint64_t id, std::vector<std::uint32_t> of_place);
  // Not collective.
  void abort(const std::string& reason);

  // Returns the losses by place. `has_loss`: the last stages return one.
  [[nodiscard]] std::vector<at::Tensor> step(std::vector<Tensors> inputs, double loss_scale, bool has_loss);

  // What all ranks did in the last step, with the costs that it shows.
  [[nodiscard]] TimelineValue timeline();

  int traverse(visitproc visit, void* arg) const;
  void clear() { held_.clear(); }

 private:
  template <typename Call>
  auto guarded(const Call& call);

  std::shared_ptr<const Plan> plan_;
  int rank_;
  RunnerOptions options_;
  std::vector<nanobind::object> held_;
  std::vector<PythonStage*> stages_;  // these
  std::vector<Stage*> by_stage_;      // of the placement
  std::stop_source stop_;
  std::unique_ptr<Hardware> hardware_;
  std::unique_ptr<Device> device_;
  std::optional<detail::replay::WatchMemory> watch_;
  std::unique_ptr<World> world_;
  std::unique_ptr<Transport> transport_;
  RankRecord record_;
  std::optional<Pipeline> pipeline_;
};

}  // namespace dualpipe::python
