#include <fmt/format.h>

#include <algorithm>

#include "dualpipe/sim/estimate/accelerator.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/sweep/points.h"

namespace dualpipe::detail::sweep {
namespace {

// Whether so many ranks of tensor parallelism can share a layer of it.
bool can_be_tensor(const SweepCluster& cluster, int tensor) {
  const EstimateRequest& request = cluster.estimate;
  return tensor <= accelerator(request.gpu).per_node && request.model.heads % tensor == 0 &&
         request.sequence % (std::int64_t{tensor} * request.context) == 0;
}

bool can_be_data(const SweepCluster& cluster, int data) {
  const EstimateRequest& request = cluster.estimate;
  return cluster.global_batch % (data * request.micro_batch) == 0 && data * request.context % request.expert == 0;
}

std::shared_ptr<const Layout> layout_of(const SweepCluster& cluster, int tensor, int data,
                                        const MachineCosts& machine) {
  EstimateRequest request = cluster.estimate;
  request.tensor = tensor;
  request.data = data;
  const Estimate found = estimate(request);
  Layout layout{tensor, data, {machine, found.costs.parts, {}}, found.flops};
  const Accelerator& gpu = accelerator(request.gpu);
  // All in one node: what goes from stage to stage never leaves it.
  if (cluster.gpus <= gpu.per_node && machine.bandwidth == gpu.network_bandwidth) {
    layout.costs.bandwidth = gpu.peer_bandwidth;
  }
  return std::make_shared<const Layout>(std::move(layout));
}

}  // namespace

std::vector<Place> places_of(const SweepCluster& cluster, const std::vector<int>& ranks, const MachineCosts& machine) {
  const EstimateRequest& request = cluster.estimate;
  std::vector<Place> places;
  const auto layers = static_cast<int>(request.model.layers);
  for (int tensor = 1; tensor <= cluster.gpus; ++tensor) {
    const int stage = tensor * request.context;
    if (cluster.gpus % stage != 0 || !can_be_tensor(cluster, tensor)) continue;
    for (int pipeline = 1; pipeline <= cluster.gpus / stage && pipeline <= layers; ++pipeline) {
      if (cluster.gpus / stage % pipeline != 0) continue;
      if (!ranks.empty() && std::ranges::find(ranks, pipeline) == ranks.end()) continue;
      const int data = cluster.gpus / stage / pipeline;
      if (!can_be_data(cluster, data)) continue;
      places.push_back(
          {pipeline, cluster.global_batch / (data * request.micro_batch), layout_of(cluster, tensor, data, machine)});
    }
  }
  if (!places.empty()) return places;
  throw InputError(fmt::format(
      "{} GPUs cannot share a batch of {} sequences, {} in a micro-batch, of a model of {} heads and {} layers; give "
      "another --global-batch, or other GPUs",
      cluster.gpus, cluster.global_batch, request.micro_batch, request.model.heads, request.model.layers));
}

}  // namespace dualpipe::detail::sweep
