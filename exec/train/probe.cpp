#include "dualpipe/exec/train/probe.h"

#include <ATen/ops/zeros.h>

#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

#include "dualpipe/exec/model/empty.h"
#include "dualpipe/exec/pipeline/pipeline.h"
#include "dualpipe/exec/train/calibrate.h"
#include "dualpipe/exec/train/rank_team.h"
#include "dualpipe/exec/train/records.h"
#include "dualpipe/exec/train/stage_set.h"
#include "dualpipe/sim/schedule/lower.h"

namespace dualpipe::detail::train {

using detail::model::EmptyStage;

namespace {

constexpr std::array<Bytes, 3> sizes{Bytes{64} << 10U, Bytes{512} << 10U, Bytes{2} << 20U};  // of each chain's messages
constexpr std::uint32_t messages_per_link = 4;  // of each size, and as many back

// A chain 0 … ranks-1 for each size, no shared weights.
Placement placement_of(int ranks) {
  Placement placement = straight(ranks, static_cast<int>(sizes.size()));
  for (std::size_t chain = 1; chain < sizes.size(); ++chain) {
    const auto begin = static_cast<std::uint16_t>(chain * static_cast<std::size_t>(ranks));
    placement.chain_begin.insert(placement.chain_begin.end() - 1, begin);
  }
  return placement;
}

Schedule schedule_of(int ranks) {
  Schedule schedule;
  schedule.name = "link probe";
  schedule.placement = placement_of(ranks);
  schedule.micro_batches = messages_per_link;
  schedule.rank_begin = {0};
  for (int rank = 0; rank < ranks; ++rank) {
    for (std::uint32_t micro_batch = 0; micro_batch < messages_per_link; ++micro_batch) {
      for (const int stage : schedule.placement.stages_on(rank)) {
        for (const Kind pass : {Kind::forward, Kind::backward}) {
          schedule.ops.push_back({micro_batch, static_cast<std::uint16_t>(stage), pass, false});
        }
      }
    }
    schedule.rank_begin.push_back(schedule.ops.size());
  }
  return schedule;
}

}  // namespace

LinkProbe::LinkProbe(int ranks) : program_(lower(schedule_of(ranks))) {}

void LinkProbe::run(int rank, Transport& transport, RankRecord& record, Device& device) const {
  const Placement& placement = program_.schedule.placement;
  device.use({});
  std::vector<std::unique_ptr<Stage>> stages;
  std::vector<Stage*> by_number(placement.rank_of.size());
  for (const int stage : placement.stages_on(rank)) {
    const Bytes bytes = sizes[static_cast<std::size_t>(placement.chain_of(stage))];
    const at::Tensor message = at::zeros({bytes}, at::TensorOptions(at::kByte).device(device.where()));
    stages.push_back(std::make_unique<EmptyStage>(message, !placement.previous(stage), !placement.next(stage)));
    by_number[static_cast<std::size_t>(stage)] = stages.back().get();
  }
  device.finish();  // the stages send from streams of their own
  ReplayOptions options;
  options.device = &device;
  Pipeline(program_, rank, by_number, transport, record, options).step();
}

double LinkProbe::bandwidth(std::span<const RankRecord> records) const {
  const RankRecords step(records.begin(), records.end());
  std::vector<MessageTimes> times;
  for (const Bytes size : sizes) times.push_back({size, {}});
  for (const AwaitedMessage& message : awaited_messages({program_, {&step, 1}})) {
    const int chain = program_.schedule.placement.chain_of(message.sender);
    times[static_cast<std::size_t>(chain)].times.push_back(message.time);
  }
  return bandwidth_of(times);
}

RankRecords probe_links(World& world, int ranks, const TrainOptions& options) {
  const LinkProbe probe(ranks);
  const auto transports = world.transports(probe.program().schedule.placement, options.transport);
  const std::vector<int> here = world.ranks_here(ranks);
  RankRecords records(static_cast<std::size_t>(ranks));
  RankTeam team(here, transports, options.stop);
  team.run(options.threads_per_rank, [&](int rank, Transport& transport) {
    const auto own = device_of(options, here, rank, sizes.size());
    probe.run(rank, transport, records[static_cast<std::size_t>(rank)], own ? *own : host_device());
  });
  if (team.error()) std::rethrow_exception(team.error());
  gather_records(world, probe.program(), records);
  return records;
}

}  // namespace dualpipe::detail::train
