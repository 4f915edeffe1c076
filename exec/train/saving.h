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

  // When so many steps of the training were done, every rank takes what it holds, on its own thread; that must not
  // change before write(). Throws ReplayError where a value is not finite: what was saved last then stays.
  void take(int rank, const StageSet& stages, const Optimizer& optimizer, int steps_done);
  // When all ranks of the process have: process 0 writes what all processes hold; the others wait until it has.
  // Collective.
  void write(int steps_done);

 private:
  World& world_;
  const TrainOptions& options_;
  std::optional<Saver> saver_;      // in process 0
  std::vector<SafeTensors> taken_;  // by rank
};

}  // namespace dualpipe::detail::train
