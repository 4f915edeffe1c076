// Adds the communication to a Schedule.
//
// A send stands in the slot right after the op whose result it sends. The place of its receive matters more. On a
// stream of NCCL everything waits for what was put there before: a receive that is posted too late holds up the
// sender's stream, and one that is posted too early holds up the receiver's, perhaps for ever. So lower() runs the
// schedule once, with nominal durations (F = I = W = 1, B = 2, F&B = 3) and messages that take no time. When an op
// ends, the receive of its result goes into the slot that the receiving rank is in at that time, or comes to next:
//
//     1F1B, 2 ranks     time 1: rank 0 ends F0, sends it; rank 1 is in slot 0, so there it receives
//
//       rank 0: 0F0 [0SEND_F0] 0F1 [0SEND_F1] …                 [ ] a batch: all messages of one slot
//       rank 1: [1RECV_F0] 1F0 [1RECV_F1] 1B0 [1SEND_B0] …
//
// Then no stream can block for ever. The proof is an induction over that run: every receive that stands before an op in
// its rank belongs to a message that was sent before that op started. (PyTorch's lowering, `_add_send_recv`, follows
// the same idea without durations.)
//
// Neighbours in a chain that are on one rank exchange no messages. After the last weight gradient of a stage that
// shares its weights stands a REDUCE_GRAD. All ranks reduce the sets of weights in the same order, so that no two ranks
// wait for each other.
#pragma once

#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// A pure function; its time is linear in the number of ops. The schedule must be valid (validate.h). If the schedule
// hangs, so does the program: then each receive that the run did not come to stands right before the op that needs it.
[[nodiscard]] Program lower(Schedule schedule);

// The same, and whether that run came to the end. If it did, the program hangs under no model of communication, and
// there is no need to call find_deadlock(). If not, the program hangs under every model, and find_deadlock() names the
// cycle.
struct Lowered {
  Program program;
  bool completes;
};
[[nodiscard]] Lowered lower_checked(Schedule schedule);

}  // namespace dualpipe
