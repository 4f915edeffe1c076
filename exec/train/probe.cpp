#include "dualpipe/exec/train/probe.h"

#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <array>
#include <exception>
#include <memory>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/exec/train/calibrate.h"
#include "dualpipe/exec/train/cause.h"
#include "dualpipe/exec/train/exchange.h"
#include "dualpipe/exec/train/rank_threads.h"
#include "dualpipe/exec/train/stage_set.h"
#include "dualpipe/sim/schedule/lower.h"

namespace dualpipe::detail::train {

using detail::replay::text_of;

namespace {

constexpr std::array<Bytes, 3> sizes{Bytes{64} << 10U, Bytes{512} << 10U, Bytes{2} << 20U};  // of each chain's messages
constexpr std::uint32_t messages_per_link = 4;  // of each size, and as many back

// Computes nothing: its outputs and gradients are so many bytes.
class SendingStage final : public Stage {
 public:
  SendingStage(Bytes bytes, bool is_first, bool is_last, at::Device where) {
    const at::Tensor message = at::zeros({bytes}, at::TensorOptions(at::kByte).device(where));
    output_ = is_last ? at::zeros({}, where) : message;
    if (!is_first) input_gradient_ = message;
  }

  at::Tensor forward(std::uint32_t /*micro_batch*/, at::Tensor /*input*/) override { return output_; }
  at::Tensor backward(std::uint32_t /*micro_batch*/, at::Tensor /*gradient*/) override { return input_gradient_; }
  at::Tensor backward_input(std::uint32_t /*micro_batch*/, at::Tensor /*gradient*/) override { return input_gradient_; }
  void backward_weight(std::uint32_t /*micro_batch*/) override {}
  std::vector<NamedTensor> named_parameters() override { return {}; }

 private:
  at::Tensor output_;
  at::Tensor input_gradient_;  // undefined in a first stage
};

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
    stages.push_back(
        std::make_unique<SendingStage>(bytes, !placement.previous(stage), !placement.next(stage), device.where()));
    by_number[static_cast<std::size_t>(stage)] = stages.back().get();
  }
  device.finish();  // the stages send from lanes of their own
  ReplayOptions options;
  options.device = &device;
  dualpipe::replay(program_, rank, by_number, transport, record, options);
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
  const auto transport_of = [&](int rank) -> Transport& { return *transports[static_cast<std::size_t>(rank)]; };
  RankRecords records(static_cast<std::size_t>(ranks));
  Cause cause;
  const std::size_t stages_per_rank = sizes.size();
  // What the others do not hear from replay().
  const auto fail = [&](int rank, const std::string& reason, const std::exception_ptr& error) {
    cause.note(error, true);
    transport_of(rank).abort(reason);
  };
  const auto run_rank = [&](int rank) {
    try {
      set_up_thread(options.threads_per_rank);
      const auto own = device_of(options, here, rank, stages_per_rank);
      probe.run(rank, transport_of(rank), records[static_cast<std::size_t>(rank)], own ? *own : host_device());
    } catch (const ReplayError&) {
      cause.note(std::current_exception(), true);
    } catch (const TransportError&) {
      cause.note(std::current_exception(), false);
    } catch (const std::exception& error) {
      fail(rank, fmt::format("rank {} failed: {}", rank, text_of(error)), std::current_exception());
    }
  };
  {
    const std::stop_callback on_stop(options.stop, [&] { transport_of(here.front()).abort(interrupted); });
    run_rank_threads(here, run_rank, [&](const InputError& error) {
      fail(here.front(), error.what(), std::make_exception_ptr(error));
    });
  }
  if (cause.error()) std::rethrow_exception(cause.error());
  gather_records(world, records);
  return records;
}

}  // namespace dualpipe::detail::train
