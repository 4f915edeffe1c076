// Trains a model on a pipeline whose ranks are threads of this process, or of the processes of a World.
//
//     every step, every rank:   zero the gradients → replay() its part of the Program → sum the gradients of tied
//                               parameters → clip → optimizer
//
// All steps train, the warm-up's, too. A training can be saved, and gone on with by another run: its steps are numbered
// on, so that each takes the samples that it would have taken without a break (exec/train/checkpoint.h).
//
// Between steps all ranks meet, so that a step's time is that of the slowest, and what observers do costs no rank's
// time. Every process calls train() with the same program and options; what it returns is the same in all of them.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/exec/train/faults.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

enum class OptimizerKind : std::uint8_t { sgd, adamw };

// float32 ends at 3e38, and AdamW divides the rate by as little as a tenth.
constexpr double learning_rate_max = 1e30;

struct TrainOptions {
  ModelShape shape;  // its costs: of the placement's stages; its loss_scale is set here: 1 / all micro-batches
  std::string data;  // a file of int32 tokens; empty: synthetic samples, from the shape's seed
  OptimizerKind optimizer = OptimizerKind::sgd;
  double learning_rate = 0.01;  // above 0, up to learning_rate_max
  double clip = 0;              // of the global norm of the gradients; 0: they are left as they are
  int steps = 1;                // that are measured
  int warmup = 0;               // before them
  // Every other step of the warm-up runs split_passes(), so that calibrate() knows passes that the program never runs
  // by themselves. Makes no difference to the training.
  bool measure_passes = false;
  // Before the first step: how long messages of several sizes take. Between threads, size makes no difference.
  bool measure_links = false;
  // Whether the parts of ops and the copies of messages are recorded (RankRecord::parts), of the step of median
  // duration or the one that fails. On a GPU the events for that cost every step a little.
  bool note_parts = false;
  // RankRecord::memory and peak_memory, and so the peaks of the result, and what calibrate() says of memory. Off, the
  // allocators of the process are left alone (exec/replay/memory.h), and a peak is what stays between steps.
  bool measure_memory = true;
  int threads_per_rank = 1;
  bool forward_only = false;  // F only, no gradients, no optimizer
  // A file that the training is saved to after the last step, and in one process also where it fails or is stopped:
  // then as it was after the last step that was done whole. Empty: it is not.
  std::string save;
  int save_every = 0;  // also after every so many steps of the training; 0: only then
  std::string resume;  // a file that the training goes on from; empty: it begins anew
  TransportOptions transport;
  Faults faults;                                // of `timed`
  Hardware* hardware = nullptr;                 // that the ranks of this process run on; null: the host
  std::function<void(int rank, Op)> before_op;  // for tests: called by each rank before each op
  std::stop_token stop;                         // ends the run: train() then throws
};

using RankRecords = std::vector<RankRecord>;  // of one step, by rank

struct StepReport {
  int step = 0;  // of the training: the warm-up's count, and those before a resume
  bool measured = false;
  double loss = 0;                      // the mean of those of the micro-batches: the same as without a pipeline
  Time duration = 0;                    // from when all ranks begin to when all have updated their parameters
  std::span<const RankRecord> records;  // by rank, of the program that the step ran; empty for ranks of other processes
};

// Functions that train() calls while it runs, each of which may be left out. What one of them throws ends the run.
struct TrainObserver {
  // The gradients of a step are complete: summed over what shares weights or is tied, not yet clipped. `stages` by
  // number in the placement, null for those of other processes. All ranks wait. May use the World, in every process
  // alike. What it takes is no part of the step's time.
  std::function<void(int step, std::span<Stage* const> stages)> on_gradients;
  // What each rank runs on, before the first step: Hardware::description(), or "cpu". All ranks wait.
  std::function<void(std::span<const std::string> devices)> on_begin;
  std::function<void(const StepReport&)> on_step;  // all ranks wait
  // The run has failed, and every rank ended. `records` is what was done of the step, which ran `program`. Called in
  // process 0 alone; of processes that could not say any more what they have done the records are empty.
  std::function<void(int step, const Program& program, std::span<const RankRecord> records)> on_failure;
  // After that, with TrainOptions::save and in one process, if this run has done any step: the training was saved with
  // so many steps done; or it was not, and why.
  std::function<void(int steps_done, const std::string& failure)> on_last_save;
};

// What a stage holds between steps.
struct StageBytes {
  Bytes parameters = 0;  // and what the stage holds besides: Stage::working_bytes()
  Bytes gradients = 0;
  Bytes optimizer = 0;

  friend bool operator==(const StageBytes&, const StageBytes&) = default;
};

// Over the measured steps.
struct RankPeaks {
  int activations = 0;
  Bytes memory = 0;  // parameters, gradients and optimizer state included
};

struct TrainResult {
  int first_step = 0;                      // how many were done before, of a training that was resumed
  std::vector<double> losses;              // of all steps from there, the warm-up's too
  std::vector<Time> durations;             // of the measured steps
  Time step_time = 0;                      // their median
  RankRecords records;                     // of the measured step of median duration, or the nearest of those kept
  std::vector<RankRecords> warm_up;        // the last steps of the warm-up, without its first if there are others
  std::vector<RankRecords> measured;       // the last measured steps, without parts
  Program apart;                           // with measure_passes; else it has no ops
  std::vector<RankRecords> warm_up_apart;  // the last steps of the warm-up that ran it
  std::vector<RankRecords> probe;          // with measure_links: of LinkProbe's program, once
  std::vector<RankPeaks> peaks;            // by rank
  std::vector<StageBytes> stages;          // by stage
};

// Throws the first cause where a rank fails, after all ranks have ended: InputError for what the model or its data do
// not allow, else ReplayError or TransportError. The program must be valid and free of deadlock; `forward_only` takes
// the program of a schedule that has nothing but F.
[[nodiscard]] TrainResult train(World& world, const Program& program, const TrainOptions& options,
                                const TrainObserver& observer = {});
// In this process alone.
[[nodiscard]] TrainResult train(const Program& program, const TrainOptions& options,
                                const TrainObserver& observer = {});

// The part of a program that a failed run has done, for its trace, without the ops and messages that it did not reach.
struct PartialRun {
  Program program;
  RankRecords records;
};
[[nodiscard]] PartialRun reached(const Program& program, std::span<const RankRecord> records);

}  // namespace dualpipe
