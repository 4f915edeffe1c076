// What the processes of a training tell each other. Private to exec/train.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dualpipe/exec/train/safetensors.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/pack.h"
#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::train {

// World::all_gather(), and of what each process has brought `read(process, unpacker)`, which must read all of it.
// Throws TransportError, which names the process and the place, where that is not what is expected. Collective.
template <typename Read>
void gather(World& world, const std::string& place, std::string own, Read read) {
  const std::vector<std::string> parts = world.all_gather(place, std::move(own));
  for (std::size_t process = 0; process < parts.size(); ++process) {
    try {
      detail::transport::Unpacker unpacker(parts[process]);
      read(process, unpacker);
      unpacker.expect_end();
    } catch (const InputError&) {  // of what was read
      throw;
    } catch (const std::runtime_error& error) {
      throw TransportError(fmt::format("{}: process {} brings what cannot be read: {}", place, process, error.what()));
    }
  }
}

// All processes run the same program with the same options, or InputError says what differs. Collective.
void check_same_run(World& world, const Program& program, const TrainOptions& options);

// Does `work` in this process, however long it takes; the others wait for as long as it comes and says that it is at
// it, each within the timeout. `place`: as in World::all_gather(). Where it throws, so does this, at once. Collective.
void work_while_others_wait(World& world, const std::string& place, std::chrono::nanoseconds timeout,
                            const std::function<void()>& work);

// A file that every process opens for itself, from a disk of its own perhaps.
struct OpenedFile {
  std::string_view option;            // that names it
  std::string path;                   // may be another one in each process
  std::function<std::string()> open;  // returns what tells it from any other, for people; throws InputError
};
// Has every process open it. All throw the same InputError where one could not, or where they do not all see the same:
// it says which ranks see what. Collective.
void open_same_file(World& world, int ranks, std::chrono::nanoseconds timeout, const OpenedFile& file);

// Those of all processes. Collective.
[[nodiscard]] std::vector<std::string> gather_names(World& world, const std::vector<std::string>& own);
// Adds the tensors that other processes hold. Returns the bytes of these, which `contents` looks into. Collective.
[[nodiscard]] std::vector<std::string> add_others(World& world, SafeTensors& contents);

}  // namespace dualpipe::detail::train
