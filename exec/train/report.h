// A training as people and programs read it.
//
//   1f1b: 2 ranks, 2 stages, 1 chain, 4 micro-batches
//
//     step          loss       time
//        0      5.545177    warm-up
//        1      5.544021    12.3 ms
//
//   step       12.3 ms   the median of 1
//   makespan   11.9 ms   of the step of median time, from its first op to its last; predicted 11.7 ms
//   F&B        4.2 ms    0.99 times F + B, 1.4 ms + 2.8 ms; medians                   where there are pairs
//
//   rank     busy    idle  bubble  peak act.  peak memory
//      0  10.1 ms  1.8 ms  15.13%          2    1.221 MiB
//      1  10.0 ms  1.9 ms  15.97%          1    1.175 MiB
#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/train/reference.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/sim/report/difference.h"
#include "dualpipe/sim/report/title.h"
#include "dualpipe/sim/trace/chrome_trace.h"

namespace dualpipe {

// What the training ran on.
struct Machine {
  std::vector<std::string> devices;  // by rank, as TrainObserver::on_begin has them
  std::string transport;             // World::transport()
  Precision precision = Precision::float32;
  CudaOptions gpu;  // all off on a CPU
};

// What a trace says of it besides the devices.
[[nodiscard]] TraceArgs trace_args(const Machine& machine);

struct TrainReport : ReportTitle {
  std::string model;
  Machine machine;
  int first_step = 0;           // done before, of a training that was resumed
  std::vector<double> losses;   // of all steps from there
  std::vector<Time> durations;  // of the measured ones, which come last
  Time step_time = 0;           // their median
  Difference difference;        // of the measured step of median time from its prediction
  std::optional<CheckReport> check;
  std::string failure;  // why the run failed; then there is no difference and no check
};

// `predicted`: of the same program under `costs`; `measured`: of result.records.
[[nodiscard]] TrainReport train_report(const Program& program, const std::string& model, const Machine& machine,
                                       const TrainResult& result, const Costs& costs, const Timeline& predicted,
                                       const Timeline& measured);

// What stands above the steps, and a step's line, for whoever prints them while the training runs.
[[nodiscard]] std::string steps_head(const Program& program);
[[nodiscard]] std::string to_text(const StepReport& step);
// What stands below the steps.
[[nodiscard]] std::string to_text(const TrainReport& report);
// Of a run that failed: what is known of the steps that it had done, and why it did.
[[nodiscard]] TrainReport failed_report(const Program& program, const std::string& model, const Machine& machine,
                                        std::span<const StepReport> steps, const std::string& failure);

// One object; times in nanoseconds, `…_ns`. Of a run that failed it has `failure`, and nothing that is of a whole run.
void write_json(std::ostream& out, const TrainReport& report);

}  // namespace dualpipe
