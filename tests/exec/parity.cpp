#include "tests/exec/parity.h"

#include <ATen/ops/equal.h>

#include <algorithm>
#include <chrono>
#include <span>

#include "tests/exec/training.h"

namespace dualpipe::test {

bool are_equal(const Gradients& left, const Gradients& right) {
  return std::ranges::equal(left, right, [](const auto& a, const auto& b) {
    return a.first == b.first && std::ranges::equal(a.second, b.second, [](const at::Tensor& x, const at::Tensor& y) {
             return at::equal(x, y);
           });
  });
}

Outcome trained(const Program& program, const TrainOptions& options,
                const std::function<std::vector<std::string>(const std::function<void(World&)>& run)>& in_processes) {
  Outcome outcome;
  std::mutex mutex;
  const auto run = [&](World& world) {
    TrainObserver observer;
    observer.on_gradients = [&](int step, std::span<Stage* const> stages) {
      const std::lock_guard lock(mutex);
      for (std::size_t stage = 0; stage < stages.size(); ++stage) {
        if (stages[stage] == nullptr) continue;
        for (const at::Tensor& each : stages[stage]->parameters()) {
          outcome.gradients[{step, stage}].push_back(each.grad().clone());
        }
      }
    };
    const TrainResult result = train(world, program, options, observer);
    const std::lock_guard lock(mutex);
    outcome.losses = result.losses;
  };
  outcome.errors = in_processes(run);
  return outcome;
}

Outcome trained_over_threads(const Program& program, const TrainOptions& options) {
  return trained(program, options, [](const std::function<void(World&)>& run) {
    run(*one_process());
    return std::vector<std::string>(1);
  });
}

TrainOptions two_clipped_steps(const Program& program, const std::string& model) {
  TrainOptions options = two_steps(program, model);
  options.clip = 0.5;
  options.transport.timeout = std::chrono::seconds(10);
  return options;
}

}  // namespace dualpipe::test
