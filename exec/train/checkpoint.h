// A training in a file, from which another process can go on, on other ranks and with another schedule.
//
// A safetensors file (exec/train/safetensors.h). Names are the model's, however it is split:
//
//     blocks.3.up.weight                       a parameter; where two stages hold copies, one of them
//     optimizer.exp_avg.blocks.3.up.weight     what AdamW keeps of it (SGD keeps nothing)
//     optimizer.exp_avg_sq.blocks.3.up.weight
//
// Its metadata say how many steps were done, and what a training that goes on from it must have in common with it:
// - the model: its name and sizes, the number of its layers, the type of its parameters (float32 for a training in
//   bfloat16, too, so that a training can change from one of the two to the other)
// - the optimizer
// - what the order of the samples depends on: their source (with the seed, if they are synthetic), samples per
//   micro-batch, micro-batches per step
// An evaluation needs only the model to be the same. All else may change: ranks, schedule, split, threads, learning
// rate, clipping.
//
// A file without checksums is refused, since another tool may have changed it. So is a tensor whose data do not have
// their checksum; an evaluation does not read the tensors of the optimizer. A NaN or an infinite number is neither
// saved nor loaded.
//
// Each step that follows has the bits that it would have had without the break, as long as the gradients of the
// micro-batches are added in the same order. All schedules with one chain whose backwards run in the order of the
// micro-batches do that. DualPipe adds up each of its two chains separately, and looped BFS adds in reverse order: to
// change to one of these, or from it, or to another number of threads per rank, changes the steps within rounding.
//
// Private to exec/train.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/exec/model/mapped_file.h"
#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/train/optimizer.h"
#include "dualpipe/exec/train/safetensors.h"
#include "dualpipe/exec/train/stage_set.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/schedule/schedule.h"

namespace dualpipe::detail::train {

// What options.resume names.
class Checkpoint {
 public:
  // Opens the file. `data`: what the training reads. Throws InputError if its header is damaged, or it is of another
  // training.
  Checkpoint(const Schedule& schedule, const TrainOptions& options, Data& data);

  [[nodiscard]] int steps() const { return steps_; }  // done
  // Which file it is, for people: "6 steps, checksum 1c291ca3". Two files with different contents differ in it.
  [[nodiscard]] std::string description() const;

  // Gives the parameters, and the state of the optimizer, the values in the file. May be called by several threads at
  // once, each for its own. Returns the names of the tensors. Throws InputError if the file lacks one, or has it in
  // another shape, or damaged, or if it is not finite.
  std::vector<std::string> load(const StageSet& stages, Optimizer& optimizer) const;

  // `loaded`: the names of what all stages together have loaded. Throws InputError if the file has a tensor besides.
  void check_complete(const std::vector<std::string>& loaded) const;

 private:
  std::string path_;
  detail::model::MappedFile file_;
  SafeTensors contents_;
  int steps_ = 0;
  bool parameters_only_;
};

// After so many steps of the training: whether it is to be saved, every options.save_every and after the `last`.
[[nodiscard]] bool is_save_due(const TrainOptions& options, int steps_done, int last);

// The saves of a training, by all ranks together, to options.save.
class Saving {
 public:
  // `data`: what the training reads. Throws InputError, in process 0, if the file could not be written, or this
  // schedule's weights not be saved.
  Saving(World& world, const Schedule& schedule, const TrainOptions& options, Data& data);

  // Called by every rank, on its own thread, after so many steps of the training: takes what the rank holds, which must
  // not change before write(). Throws ReplayError where a value is not finite; the file that was saved last then stays.
  void take(int rank, const StageSet& stages, const Optimizer& optimizer, int steps_done);
  // Called once in each process, after take() of all its ranks: process 0 writes what all processes hold, and the
  // others wait until it has. The file is replaced by one that is there whole, or stays as it was, and this throws
  // InputError. Collective.
  void write(int steps_done);

 private:
  World& world_;
  const TrainOptions& options_;
  std::map<std::string, std::string> metadata_;  // of the file, in process 0
  std::vector<SafeTensors> taken_;               // by rank
};

}  // namespace dualpipe::detail::train
