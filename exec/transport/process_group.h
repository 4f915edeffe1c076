// The processes of a process group of LibTorch's (c10d), which somebody else has made: torch.distributed in Python,
// where init_process_group or new_group returns it, and c10d::resolve_process_group(pg.group_name) finds it in C++.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <memory>

#include "dualpipe/exec/transport/store_world.h"
#include "dualpipe/exec/transport/world.h"

namespace c10d {
class ProcessGroup;
}  // namespace c10d

namespace dualpipe {

// Process and rank r of the pipeline is rank r of the group. Messages are sent and received by the group: on the host
// by gloo, on GPUs by a backend that coalesces (nccl). What goes beside them (what messages look like, the sums of the
// losses, an abort) goes through the group's store.
//
// Collective among the ranks of the group, which may run one pipeline at a time; pipelines over different groups may
// run side by side in one process. The World holds the group, and leaves it as it is when it ends; only where a run is
// aborted on GPUs, the group is, too. Messages have tags from 0x44500000 on: others may be sent meanwhile on the host,
// with other tags, but none on GPUs, where order alone matches them.
//
// A wait of this World ends by its own timeout, and that leaves a group of gloo usable. Throws InputError where there
// is no group, or it has no store; at a step's beginning also where its backend cannot do this; TimeoutError where not
// all ranks come.
[[nodiscard]] std::unique_ptr<World> process_group(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                                   const StoreOptions& options = {});

}  // namespace dualpipe
