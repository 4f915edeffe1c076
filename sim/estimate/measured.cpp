#include "dualpipe/sim/estimate/measured.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "dualpipe/sim/costs/rules.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

bool is_measured(const StageCosts& part) { return part.forward + part.backward > 0; }

// An embedding, the layers, a head.
std::size_t parts_of(const EstimateRequest& request) { return static_cast<std::size_t>(request.model.layers) + 2; }

void check_measured(const EstimateRequest& request) {
  const std::size_t count = request.measured->parts.size();
  if (count == 1 || count == parts_of(request)) return;
  throw InputError(
      fmt::format("the measured costs have {} parts, but the model has {}: an embedding, {} layers and a head; measure "
                  "each, or give "
                  "one for every layer",
                  count, parts_of(request), request.model.layers));
}

// Of the model's parts, the measured one that stands for it; null: none does.
const StageCosts* measured_part(const EstimateRequest& request, std::size_t part) {
  const auto& parts = request.measured->parts;
  const bool is_layer = part > 0 && part + 1 < parts_of(request);
  if (parts.size() == 1) return is_layer ? &parts[0] : nullptr;
  return is_measured(parts[part]) ? &parts[part] : nullptr;
}

EstimateRequest where_measured(const EstimateRequest& request) {
  EstimateRequest there = request;
  there.micro_batch = request.measured->micro_batch;
  there.tensor = request.measured->tensor;
  there.context = request.measured->context;
  there.data = request.measured->data;
  there.expert = request.measured->expert;
  return there;
}

// What counts no bytes was measured for its times alone; those of the estimate stay. Where the forward is to run again
// it takes as long as the one that was measured.
StageCosts with_bytes(const StageCosts& measured, const StageCosts& estimated) {
  if (detail::costs::counts_bytes(measured)) return measured;
  StageCosts costs = estimated;
  costs.forward = measured.forward;
  costs.backward = measured.backward;
  costs.input_gradient = measured.input_gradient;
  costs.weight_gradient = measured.weight_gradient;
  costs.overlapped = measured.overlapped;
  if (estimated.recompute > 0) costs.recompute = measured.recompute > 0 ? measured.recompute : measured.forward;
  return costs;
}

// Takes figures of one part from where they were measured to where they are wanted.
class Moved {
 public:
  Moved(const StageCosts& there, const StageCosts& here) : there_(there), here_(here) {}

  [[nodiscard]] StageCosts operator()(StageCosts costs) const {
    const Time halves = costs.input_gradient + costs.weight_gradient;
    const double forward = ratio(&StageCosts::forward, 1);
    const double backward = ratio(&StageCosts::backward, forward);
    scale(costs.forward, forward);
    scale(costs.input_gradient, ratio(&StageCosts::input_gradient, backward));
    scale(costs.weight_gradient, ratio(&StageCosts::weight_gradient, backward));
    // B has as much of its halves there as here.
    const auto moved_halves = static_cast<double>(costs.input_gradient + costs.weight_gradient);
    scale(costs.backward, halves > 0 ? moved_halves / static_cast<double>(halves) : backward);
    scale(costs.recompute, forward);
    if (costs.overlapped) scale(*costs.overlapped, both());
    move_bytes(costs);
    return costs;
  }

 private:
  // What the estimate knows nothing of changes as something does that is like it.
  [[nodiscard]] double ratio(std::int64_t StageCosts::*figure, double otherwise) const {
    if (there_.*figure <= 0) return otherwise;
    return static_cast<double>(here_.*figure) / static_cast<double>(there_.*figure);
  }
  [[nodiscard]] double both() const {
    const Time there = there_.forward + there_.backward;
    return there > 0 ? static_cast<double>(here_.forward + here_.backward) / static_cast<double>(there) : 1;
  }
  static void scale(std::int64_t& figure, double by) {
    figure = by == 1 ? figure : std::llround(static_cast<double>(figure) * by);
  }

  void move_bytes(StageCosts& costs) const {
    const double activation = ratio(&StageCosts::activation, 1);
    const double held = costs.activation > 0 && costs.recompute_activation
                            ? static_cast<double>(*costs.recompute_activation) / static_cast<double>(costs.activation)
                            : 0;
    scale(costs.activation, activation);
    if (costs.recompute_activation) {
      *costs.recompute_activation = std::llround(static_cast<double>(costs.activation) * held);
    }
    scale(costs.weight_stash, ratio(&StageCosts::weight_stash, activation));
    scale(costs.message, ratio(&StageCosts::message, activation));
    for (auto* const workspace : {&costs.forward_workspace, &costs.backward_workspace, &costs.input_gradient_workspace,
                                  &costs.weight_gradient_workspace}) {
      scale(*workspace, activation);
    }
    if (costs.overlapped_workspace) scale(*costs.overlapped_workspace, activation);
    const double parameters = ratio(&StageCosts::parameters, 1);
    scale(costs.parameters, parameters);
    scale(costs.gradients, ratio(&StageCosts::gradients, parameters));
    scale(costs.optimizer, ratio(&StageCosts::optimizer, parameters));
  }

  const StageCosts& there_;
  const StageCosts& here_;
};

}  // namespace

namespace detail::estimate {

void take_measured(std::vector<StageCosts>& parts, const EstimateRequest& request) {
  check_measured(request);
  EstimateRequest there = where_measured(request);
  const bool is_here = there == request;
  there.measured.reset();
  const std::vector<StageCosts> parts_there = is_here ? parts : dualpipe::estimate(there).costs.parts;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const StageCosts* const measured = measured_part(request, i);
    if (measured == nullptr) continue;
    parts[i] = Moved(parts_there[i], parts[i])(with_bytes(*measured, parts_there[i]));
  }
}

}  // namespace detail::estimate

void set_measured(EstimateRequest& request, const GivenCosts& measured) {
  const auto entries = entries_of(measured);
  request.measured = MeasuredParts{{entries.begin(), entries.end()},
                                   request.micro_batch,
                                   request.tensor,
                                   request.context,
                                   request.data,
                                   request.expert};
  check_measured(request);
}

std::size_t measured_count(const EstimateRequest& request) {
  std::size_t count = 0;
  for (std::size_t i = 0; request.measured && i < parts_of(request); ++i) {
    if (measured_part(request, i) != nullptr) ++count;
  }
  return count;
}

}  // namespace dualpipe
