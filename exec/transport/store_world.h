// Processes that meet at a TCP store, as torchrun, mpirun or srun has started them.
#pragma once

#include <chrono>
#include <memory>
#include <stop_token>

#include "dualpipe/exec/transport/launch.h"
#include "dualpipe/exec/transport/nccl_api.h"
#include "dualpipe/exec/transport/world.h"

namespace dualpipe {

struct StoreOptions {
  // How long each process waits for the others at the start. After that the timeout of each run counts.
  std::chrono::nanoseconds timeout = std::chrono::seconds(60);
  // A request ends whatever this process and the others wait for, as a failure of this one would. The World is of no
  // use after it.
  std::stop_token stop{};
  // For tests: as if the processes were on several hosts.
  bool measure_clock = false;
};

// `nccl`: how ranks reach each other, one in each process; null: through the store, on the host, which is slow.
// Collective. Throws InputError where the store cannot be made or reached, TimeoutError where not all come.
[[nodiscard]] std::unique_ptr<World> store_processes(const Launch& launch, std::shared_ptr<Nccl> nccl,
                                                     const StoreOptions& options = {});

}  // namespace dualpipe
