// In place of mpi.cpp where MPI was not found.
#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

std::unique_ptr<World> mpi_processes(const MpiOptions& /*options*/) {
  throw InputError(
      "dualpipe-run was built without MPI, so that its ranks cannot be processes; tools/setup.sh run installs Open MPI "
      "(Debian: libopenmpi-dev, openmpi-bin), then configure and build again");
}

}  // namespace dualpipe
