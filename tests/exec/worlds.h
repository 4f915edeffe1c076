// Worlds over a TCP store, the processes of which are threads of this one; and what any world can do.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/transport/launch.h"
#include "dualpipe/exec/transport/nccl_api.h"
#include "dualpipe/exec/transport/store_world.h"
#include "dualpipe/exec/transport/world.h"

namespace dualpipe::test {

inline constexpr const char* this_host = "localhost";

// Of this host, and free a moment ago.
[[nodiscard]] std::uint16_t free_port();

// Returns when somebody listens there: LibTorch's client, where nobody does, tries again only after some seconds.
void await_listener(std::uint16_t port);

// Of processes that meet on this host.
[[nodiscard]] Launch launch(int process, int processes, std::uint16_t port);

// Runs this in each process, a thread, which joins the others before; and ends and closes its world. Returns what each
// threw, "": nothing.
[[nodiscard]] std::vector<std::string> in_processes(int processes,
                                                    const std::function<std::unique_ptr<World>(int process)>& join,
                                                    const std::function<void(World& world)>& run);
// Of a TCP store.
[[nodiscard]] std::vector<std::string> in_worlds(int processes, const std::shared_ptr<Nccl>& nccl,
                                                 const StoreOptions& options,
                                                 const std::function<void(World& world)>& run);

// What rank 0 sends, and what it gets back for it.
struct Messages {
  Tensors there;
  Tensors back;
};
// Of none, one and several tensors, of several types and shapes, undefined ones among them.
[[nodiscard]] std::vector<Messages> many_messages();

// In each process of a world: two ranks send each other these, twice. Throws what goes wrong, also where something else
// arrives. `hardware`: null: the host.
void exchange_messages(World& world, const Messages& messages, Hardware* hardware = nullptr);

}  // namespace dualpipe::test
