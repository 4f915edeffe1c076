// What a launcher tells a process through its environment: which of the processes it is, and where they meet.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "dualpipe/exec/device/device.h"

namespace dualpipe {

struct Launch {
  int process = 0;
  int processes = 1;
  std::string address;     // of the host where they meet (a TCP store): process 0's, or torchrun's agent's
  std::uint16_t port = 0;  // 0 for a process by itself: any
  bool is_served = false;  // torchrun's agent has the store; else process 0 makes it
  std::string run;         // differs for each run that uses the same store, also after a restart

  friend bool operator==(const Launch&, const Launch&) = default;
};

using Environment = std::function<const char*(const char* name)>;  // null: not set
[[nodiscard]] const char* process_environment(const char* name);

//            process               of                    meets at
//   torchrun RANK                  WORLD_SIZE            MASTER_ADDR, MASTER_PORT
//   mpirun   OMPI_COMM_WORLD_RANK  OMPI_COMM_WORLD_SIZE  the same, which the user sets (mpirun -x)
//   srun     SLURM_PROCID          SLURM_STEP_NUM_TASKS  MASTER_ADDR or SLURM_LAUNCH_NODE_IPADDR
//
// The first launcher whose variables are set counts; if none is, the process is by itself. A batch script, or the shell
// of salloc, is not a step of srun, although SLURM_NTASKS is set in it. Throws InputError that names what is missing or
// wrong.
[[nodiscard]] Launch launch_of(const Environment& environment = process_environment);

// Which launcher has started this process, and how many processes it has started in all: 1 where there is no launcher,
// or one that does not say. Throws InputError where it says something that is no number.
struct Started {
  std::string by;
  int processes = 1;

  friend bool operator==(const Started&, const Started&) = default;
};
[[nodiscard]] Started started(const Environment& environment = process_environment);

// Which of the processes of its host this one is, for CudaOptions, by the first of LOCAL_RANK,
// OMPI_COMM_WORLD_LOCAL_RANK and SLURM_LOCALID that is set; nothing if none is. Throws InputError where it is no
// number.
[[nodiscard]] std::optional<LocalProcess> local_process(const Environment& environment = process_environment);

}  // namespace dualpipe
