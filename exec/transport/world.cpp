#include "dualpipe/exec/transport/world.h"

#include <fmt/format.h>

#include <cstdlib>
#include <numeric>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

int World::process_of(int rank, int ranks) const { return ((rank + 1) * processes_ - 1) / ranks; }

std::vector<int> World::ranks_of(int process, int ranks) const {
  const int begin = process * ranks / processes_;
  const int end = (process + 1) * ranks / processes_;
  std::vector<int> numbers(static_cast<std::size_t>(end - begin));
  std::iota(numbers.begin(), numbers.end(), begin);
  return numbers;
}

std::vector<std::unique_ptr<Transport>> World::transports(const Placement& placement, const TransportOptions& options) {
  if (processes_ > placement.ranks) {
    throw InputError(
        fmt::format("{} processes, but only {} ranks; start at most {} (mpirun -n {}), or give more --ranks",
                    processes_, placement.ranks, placement.ranks, placement.ranks));
  }
  return make_transports(placement, options);
}

// mpirun says how many processes there are. srun with PMIx numbers them, and Slurm says how many the step has; what a
// batch script alone has (SLURM_NTASKS) does not tell whether there is a step. Another MPI's launcher (PMI_SIZE) cannot
// connect us, which MPI will find out.
bool started_by_mpi_launcher() {
  const auto number = [](const char* name) {
    const char* const text = std::getenv(name);
    return text == nullptr ? 0 : std::atoi(text);
  };
  if (std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr) return number("OMPI_COMM_WORLD_SIZE") > 1;
  if (std::getenv("PMIX_RANK") != nullptr) return number("SLURM_STEP_NUM_TASKS") != 1;
  return number("PMI_SIZE") > 1;
}

}  // namespace dualpipe
