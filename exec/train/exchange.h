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

// World::all_gather(), after which `read(process, unpacker)` is called with what each process has brought, in the order
// of the processes, and has to read all of it. Throws TransportError, which names the process and the place, where a
// process has brought something else. Collective.
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

// Throws InputError, which says what differs, where not all processes run the same program with the same options.
// Collective.
void check_same_run(World& world, const Program& program, const TrainOptions& options);

// Runs `work`, if there is any in this process, and returns when all processes have done theirs, however long that
// takes: several times within the timeout each says that it is still at work. `place`: as in World::all_gather(). What
// the work throws, this throws at once. Collective.
void work_while_others_wait(World& world, const std::string& place, std::chrono::nanoseconds timeout,
                            const std::function<void()>& work);

// A file that every process opens for itself; it may be on a disk of its own.
struct OpenedFile {
  std::string_view option;            // of the command line, by which the file was given: "--data"
  std::string path;                   // may differ from process to process
  std::function<std::string()> open;  // returns which file it is, for people; throws InputError
};
// Opens the file in every process. Where one process cannot, or the files are not the same, all throw the same
// InputError, which says what each rank has found. Collective.
void open_same_file(World& world, int ranks, std::chrono::nanoseconds timeout, const OpenedFile& file);

// The names that all processes have brought. Collective.
[[nodiscard]] std::vector<std::string> gather_names(World& world, const std::vector<std::string>& own);
// Adds the tensors that other processes hold. Returns the bytes of these, which `contents` looks into. Collective.
[[nodiscard]] std::vector<std::string> add_others(World& world, SafeTensors& contents);

}  // namespace dualpipe::detail::train
