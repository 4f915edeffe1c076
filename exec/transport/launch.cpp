#include "dualpipe/exec/transport/launch.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string_view>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

constexpr int processes_max = 1 << 20;

class Reader {
 public:
  explicit Reader(const Environment& environment) : environment_(environment) {}

  [[nodiscard]] bool has(const char* name) const { return environment_(name) != nullptr; }
  [[nodiscard]] std::string text(const char* name) const {
    const char* const value = environment_(name);
    return value == nullptr ? "" : value;
  }

  [[nodiscard]] int number(const char* name, int least, int most) const {
    const std::string value = text(name);
    int number = 0;
    const char* const end = value.data() + value.size();
    const auto [stop, error] = std::from_chars(value.data(), end, number);
    if (error == std::errc() && stop == end && number >= least && number <= most) return number;
    throw InputError(
        has(name)
            ? fmt::format("{} is '{}' in the environment; it must be a number from {} to {}", name, value, least, most)
            : fmt::format("{} is not set in the environment, though the launcher has set others", name));
  }

 private:
  const Environment& environment_;
};

// How a launcher names things.
struct Names {
  const char* launcher;
  const char* sign;  // it is set where this launcher has started the process, and nowhere else
  const char* process;
  const char* processes;
  const char* local;
};
constexpr Names launchers[] = {
    {"torchrun", "RANK", "RANK", "WORLD_SIZE", "LOCAL_RANK"},
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
    {"srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"},
};

std::string address_of(const Reader& reader, const Names& names) {
  if (const std::string address = reader.text("MASTER_ADDR"); !address.empty()) return address;
  if (const std::string address = reader.text("SLURM_LAUNCH_NODE_IPADDR"); !address.empty()) return address;
  throw InputError(fmt::format(
      "{} does not say where its processes meet: set MASTER_ADDR to the host of process 0, and MASTER_PORT to "
      "a free port there, for all of them",
      names.launcher));
}

std::uint16_t port_of(const Reader& reader, const Names& names) {
  if (!reader.has("MASTER_PORT")) {
    throw InputError(
        fmt::format("{} does not say at which port its processes meet: set MASTER_PORT to a free one of the host of "
                    "process 0, for all "
                    "of them",
                    names.launcher));
  }
  return static_cast<std::uint16_t>(reader.number("MASTER_PORT", 1, std::numeric_limits<std::uint16_t>::max()));
}

}  // namespace

const char* process_environment(const char* name) { return std::getenv(name); }

Launch launch_of(const Environment& environment) {
  const Reader reader(environment);
  Launch launch;
  for (const Names& names : launchers) {
    if (!reader.has(names.sign)) continue;
    launch.processes = reader.number(names.processes, 1, processes_max);
    launch.process = reader.number(names.process, 0, launch.processes - 1);
    (void)reader.number(names.local, 0, launch.process);  // of processes with one GPU each none may lack it
    if (launch.processes == 1 && !reader.has("MASTER_PORT")) break;
    launch.address = address_of(reader, names);
    launch.port = port_of(reader, names);
    launch.is_served = reader.text("TORCHELASTIC_USE_AGENT_STORE") == "True";
    launch.run = fmt::format("{}/{}", reader.text("TORCHELASTIC_RUN_ID"), reader.text("TORCHELASTIC_RESTART_COUNT"));
    return launch;
  }
  launch.address = "localhost";
  return launch;
}

Started started(const Environment& environment) {
  const Reader reader(environment);
  for (const Names& names : launchers) {
    if (!reader.has(names.sign) || !reader.has(names.processes)) continue;
    return {names.launcher, reader.number(names.processes, 1, processes_max)};
  }
  constexpr auto of_another_mpi = "PMI_SIZE";
  if (reader.has(of_another_mpi)) return {"another MPI's launcher", reader.number(of_another_mpi, 1, processes_max)};
  return {};
}

std::optional<LocalProcess> local_process(const Environment& environment) {
  const Reader reader(environment);
  for (const Names& names : launchers) {
    if (reader.has(names.local)) return LocalProcess{names.local, reader.number(names.local, 0, processes_max)};
  }
  return std::nullopt;
}

}  // namespace dualpipe
