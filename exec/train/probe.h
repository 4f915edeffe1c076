// How long messages take, by their size. A training cannot tell that, as all messages over a boundary are of one size.
//
// It is a Program of its own over the same ranks, with a chain for each size. One message at a time is under way:
//
//   rank 0: 0F0 0B0 2F0 2B0 0F1 …      stages 0 and 1: a chain of small messages
//   rank 1: 1F0 1B0 3F0 3B0 1F1 …      stages 2 and 3: a chain of large ones
#pragma once

#include <span>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::detail::train {

class LinkProbe {
 public:
  explicit LinkProbe(int ranks);

  [[nodiscard]] const Program& program() const { return program_; }
  // To be called by all ranks at the same time. The messages lie on the rank's device. `transport`: over the placement
  // of program(). Throws like replay().
  void run(int rank, Transport& transport, RankRecord& record, Device& device = host_device()) const;
  // Bytes per second; 0, which stands for infinite, where the size makes no difference. `records`: by rank.
  [[nodiscard]] double bandwidth(std::span<const RankRecord> records) const;

 private:
  Program program_;
};

// Runs a LinkProbe on all ranks of the world, and returns what was recorded, by rank. It makes transports of its own,
// and with that ends the run whose transports were made before. Collective. Throws like train().
[[nodiscard]] RankRecords probe_links(World& world, int ranks, const TrainOptions& options);

}  // namespace dualpipe::detail::train
