// Runs one rank's part of a Program, and records what happened. It knows nothing of schedules: it does what the Program
// says, slot by slot.
//
//     for each op: issue the slot before it (sends, receives posted) → wait for its inputs → run it
//     then the reductions, in their order
//
// Every stage of the rank has a stream of the device (exec/device/device.h). An op starts when everything that the rank
// did before has ended, on whichever stream; only the two ops of a pair run side by side. On a GPU the thread is ahead
// of the device, and times are known when the device has finished. The thread is at most one op ahead, since what a
// rank has received stays allocated until the device is done with it.
//
// A reduction waits for other ranks. So it must not hold up an op whose result one of these ranks needs. In the
// simulator reductions have a stream of their own; here a rank comes to them when all its ops are done.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

// A rank failed in an op: which, and why. What was thrown there is nested in it (std::rethrow_if_nested).
class ReplayError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Memory of the rank's thread around an op, or a pair, above what it held when the step began. Memory that only waits
// for the GPU (Device::pending_bytes()) counts in `peak` alone, and so is a part of the op's workspace.
struct OpMemory {
  Bytes before = 0;  // when it started: what it had received is there
  Bytes peak = 0;    // while it ran
  Bytes after = 0;   // when it ended: what it made is still there
  Bytes output = 0;  // of that, what its F made

  friend bool operator==(const OpMemory&, const OpMemory&) = default;
};

// What one rank did in one step. Times are by the host's monotonic clock, on a GPU those of its events. The spans are
// those of the rank's part of the Program, in its order; spans of what was not reached are empty.
struct RankRecord {
  std::vector<Span> ops;            // both of a pair have the pair's
  std::vector<Span> communication;  // a send: when it was handed over; a receive: from its post, or its arrival if
                                    // that was earlier, until it was there
  std::vector<Time> waited;         // before each op, for its inputs; of a pair at its first
  std::vector<OpMemory> memory;     // where it is measured: of each op; of a pair at its first
  std::vector<PartSpan> parts;      // where they are noted: of ops that have run, and copies of messages
  std::size_t done = 0;             // ops that ran
  int peak_activations = 0;         // forwards whose B or I had not ended
  Bytes peak_memory = 0;            // where it is measured: allocated by the rank's thread, above what it held when
                                    // the step began
  std::vector<double> losses;       // of the micro-batches, in the order in which their last stage ran
  std::string stopped_at;           // the op in which the rank was when it failed, or was stopped
};

// What goes into the chains of a step, and what comes out at their ends, where the stages do not see to it themselves.
// Called by replay() in the op, whose time it is part of.
class ChainEnds {
 public:
  ChainEnds() = default;
  ChainEnds(const ChainEnds&) = delete;
  ChainEnds& operator=(const ChainEnds&) = delete;

  // What the first stage of a chain takes in an F.
  [[nodiscard]] virtual Tensors inputs(Op forward) = 0;
  // The loss of what the last stage of a chain has made in an F: one number; undefined where there is none.
  [[nodiscard]] virtual at::Tensor loss(Op forward, Tensors outputs) = 0;
  // The gradients of these outputs, for the B or I; none where the stage has computed the loss.
  [[nodiscard]] virtual Tensors gradients(Op backward) = 0;

 protected:
  ~ChainEnds() = default;
};

struct ReplayOptions {
  bool forward_only = false;          // skip all but F and its messages, with gradients off (evaluation)
  std::function<void(Op)> before_op;  // for tests: called before each op
  Device* device = &host_device();    // the rank's, with a stream for each of its stages
  bool note_parts = false;            // RankRecord::parts, which takes two events for each
  bool measure_memory = false;        // RankRecord::memory and peak_memory, by a MemoryMeter (exec/replay/memory.h)
  ChainEnds* ends = nullptr;          // null: the first stages read their own data, and the last ones give the loss
};

// `stages`: by stage of the placement; null for those of other ranks. Throws ReplayError naming rank, op and cause
// after it has aborted the transport, or TransportError if another rank did; `record` then holds what was done so far.
// A program that the rank cannot run, as it was made by hand or read from a file, is such a cause, too: what can be
// seen of it before it runs fails in "its start".
void replay(const Program& program, int rank, std::span<Stage* const> stages, Transport& transport, RankRecord& record,
            const ReplayOptions& options = {});

// The records of all ranks as one Timeline whose time 0 is the first start. A message travels from when it was handed
// over until it was there. What was not reached stands, empty, at the end. Throws InputError where the records are not
// those of the program.
[[nodiscard]] Timeline merge(const Program& program, std::span<const RankRecord> records);

}  // namespace dualpipe
