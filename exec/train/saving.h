// The saves of a training, by all ranks together. Private to exec/train.
#pragma once

#include <optional>
#include <vector>

#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/train/checkpoint.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/world.h"

namespace dualpipe::detail::train {

class Saving {
 public:
  // `data`: what the training reads. Throws as Saver does, in process 0.
  Saving(World& world, const Schedule& schedule, const TrainOptions& options, Data& data);

  // Called by every rank, on its own thread, after so many steps of the training: takes what the rank holds, which must
  // not change before write(). Throws ReplayError where a value is not finite; the file that was saved last then stays.
  void take(int rank, const StageSet& stages, const Optimizer& optimizer, int steps_done);
  // Called once in each process, after take() of all its ranks: process 0 writes what all processes hold, and the
  // others wait until it has. Collective.
  void write(int steps_done);

 private:
  World& world_;
  const TrainOptions& options_;
  std::optional<Saver> saver_;      // in process 0
  std::vector<SafeTensors> taken_;  // by rank
};

}  // namespace dualpipe::detail::train
