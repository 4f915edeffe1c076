// What a training has come to, to be compared with the same over threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::test {

// By step and stage.
using Gradients = std::map<std::pair<int, std::size_t>, std::vector<at::Tensor>>;
[[nodiscard]] bool are_equal(const Gradients& left, const Gradients& right);

struct Outcome {
  std::vector<std::string> errors;  // by process
  std::vector<double> losses;
  Gradients gradients;
};

// In each of the processes that `in_processes` runs. Both are of all of them.
[[nodiscard]] Outcome trained(
    const Program& program, const TrainOptions& options,
    const std::function<std::vector<std::string>(const std::function<void(World&)>& run)>& in_processes);
[[nodiscard]] Outcome trained_over_threads(const Program& program, const TrainOptions& options);

// Two steps of a tiny model, with clipped gradients.
[[nodiscard]] TrainOptions two_clipped_steps(const Program& program, const std::string& model);

}  // namespace dualpipe::test
