// Adds the communication to a Schedule.
//
// A send stands in the slot right after the op that makes what it sends. Where its receive stands decides whether the
// program can run at all with streams in which everything waits for what is before it (NCCL): a receive posted too late
// holds up the sender's stream, one posted too early the receiver's. So the schedule is run once with nominal durations
// (F = I = W = 1, B = 2, F&B = 3) and free communication, and when an op ends, its receive goes into the slot that the
// receiver is in, or will come to next:
//
//     1F1B, 2 ranks     time 1: rank 0 ends F0, sends it; rank 1 is in slot 0, so there it receives
//
//       rank 0: 0F0 [0SEND_F0] 0F1 [0SEND_F1] …                 [ ] a batch: all messages of one slot
//       rank 1: [1RECV_F0] 1F0 [1RECV_F1] 1B0 [1SEND_B0] …
//
// Then no stream can block for ever: by induction over that run, whatever stands before an op in its rank has been sent
// by an op that ended before it started. (PyTorch's lowering is the same idea without durations, `_add_send_recv`.)
//
// Neighbours in a chain that sit on one rank exchange nothing. After the last weight gradient of a stage whose weights
// others share: REDUCE_GRAD, in the same order of weights on all ranks, so that no two wait for each other's.
#pragma once

#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// A pure function, in time linear in the ops; the schedule must be valid (validate.h). If its order hangs, so does the
// program's: then receives that the run did not come to stand right before their ops.
[[nodiscard]] Program lower(Schedule schedule);

// The same, and whether the run came to the end. If so the program hangs under no model of communication, and nobody
// need ask find_deadlock(); if not it hangs under all of them, and find_deadlock() names the cycle.
struct Lowered {
  Program program;
  bool completes;
};
[[nodiscard]] Lowered lower_checked(Schedule schedule);

}  // namespace dualpipe
