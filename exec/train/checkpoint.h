// A training in a file, to be gone on with, by another process, on other ranks, by another schedule.
//
// A safetensors file (exec/train/safetensors.h). Names are the model's, however it is split:
//
//     blocks.3.up.weight                       a parameter; where two stages hold copies, one of them
//     optimizer.exp_avg.blocks.3.up.weight     what AdamW keeps of it (SGD keeps nothing)
//     optimizer.exp_avg_sq.blocks.3.up.weight
//
// Its metadata say how many steps were done, and what the training must have in common with one that goes on from it:
// the model and its sizes, the number of its layers, the type of its parameters (which is float32 in bfloat16, too: a
// training can go on in the other of the two); the optimizer; and what the order of the samples depends
// on: their source (with the seed, if they are synthetic), samples per micro-batch, micro-batches per step. An
// evaluation needs only the model. All else may change: ranks, schedule, split, threads, learning rate, clipping.
//
// Nothing is gone on with that is not what was saved: a file without its checksums is refused, as one that another tool
// has written anew, and so is a tensor whose data have another; an evaluation does not read those of the optimizer.
// Nor is anything saved, or loaded, that has a NaN or an infinite number in it.
//
// Then each step has the bits that it would have had without a break, as long as the gradients of the micro-batches are
// added in the same order: by all schedules with one chain whose backwards run in the micro-batches' order. DualPipe
// adds those of its two chains each for itself, looped BFS the other way round; to change to one of these, or from it,
// or to another number of threads per rank, changes the steps that follow within rounding.
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
#include "dualpipe/sim/schedule/schedule.h"

namespace dualpipe::detail::train {

// What options.resume names.
class Checkpoint {
 public:
  // Opens the file. `data`: what the training reads. Throws InputError if its header is damaged, or it is of another
  // training.
  Checkpoint(const Schedule& schedule, const TrainOptions& options, Data& data);

  [[nodiscard]] int steps() const { return steps_; }  // done
  // Tells it from any other file, for people.
  [[nodiscard]] std::string description() const;

  // Gives the parameters, and the state of the optimizer, the values in the file. May be called by several threads at
  // once, each for its own. Returns the names of the tensors. Throws InputError if the file lacks one, or has it in
  // another shape, or damaged, or if it is not finite.
  std::vector<std::string> load(const StageSet& stages, Optimizer& optimizer) const;

  // Throws InputError if the file has a tensor that is none of these, which were loaded by all stages together.
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

// What some stages hold, on whatever device, to be saved; they must not change before it is. Throws InputError that
// names a tensor that is not finite.
[[nodiscard]] SafeTensors contents_of(const StageSet& stages, const Optimizer& optimizer);

// Saves trainings of one schedule and options to options.save.
class Saver {
 public:
  // `data`: what the training reads. Throws InputError if the file could not be written, or this schedule's weights not
  // be saved.
  Saver(const Schedule& schedule, const TrainOptions& options, Data& data);

  // Replaces the file by one that is there whole, or leaves it as it was and throws InputError.
  void save(SafeTensors contents, int steps_done) const;

 private:
  std::string path_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace dualpipe::detail::train
