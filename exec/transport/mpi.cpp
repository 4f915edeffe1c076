// Ranks in processes that MPI connects.
#include <mpi.h>

#include <cstdlib>
#include <memory>

#include "dualpipe/exec/transport/engine_world.h"
#include "dualpipe/exec/transport/launch.h"
#include "dualpipe/exec/transport/mpi_engine.h"
#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

using detail::transport::Engine;
using detail::transport::EngineWorld;
using detail::transport::MpiEngine;

namespace {

class MpiWorld final : public EngineWorld {
 public:
  // `on_this_host`: how many of the processes are. Those of one host share its clock.
  MpiWorld(MPI_Comm communicator, int process, int processes, int on_this_host, const MpiOptions& options)
      : EngineWorld(process, processes, {"mpi", options.through_mpi, on_this_host}), communicator_(communicator) {
    connect(std::make_unique<MpiEngine>(communicator, options.through_mpi, static_cast<Engine::Receiver&>(*this)));
  }
  ~MpiWorld() override { leave(); }

  using EngineWorld::measure_clocks;

  [[nodiscard]] bool close() override {
    if (!EngineWorld::close() || MpiEngine::has_left_requests()) return false;
    MPI_Finalize();
    return true;
  }

 private:
  void disconnect() override { leave(); }

  // Before this, nobody else may use MPI any more.
  void leave() {
    if (communicator_ == MPI_COMM_NULL) return;
    EngineWorld::disconnect();
    MPI_Comm_free(&communicator_);
  }

  MPI_Comm communicator_;
};

// One that no other part of the process uses.
MPI_Comm own_communicator() {
  MPI_Comm communicator = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &communicator);
  MPI_Comm_set_errhandler(communicator, MPI_ERRORS_RETURN);
  return communicator;
}

int processes_on_this_host(MPI_Comm communicator) {
  MPI_Comm host = MPI_COMM_NULL;
  int size = 0;
  MPI_Comm_split_type(communicator, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
  MPI_Comm_size(host, &size);
  MPI_Comm_free(&host);
  return size;
}

void check_mpi(bool was_launched) {
  int level = 0;
  MPI_Query_thread(&level);
  if (level < MPI_THREAD_SERIALIZED) {
    throw InputError("this MPI is built for processes of one thread; ranks need MPI_THREAD_SERIALIZED");
  }
  int processes = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &processes);
  if (was_launched && processes == 1) {
    throw InputError(
        "the launcher has started several processes, but MPI sees only this one: it is another MPI's launcher, or srun "
        "without --mpi=pmix; use mpirun of the Open MPI that this was built with");
  }
}

void start_mpi() {
  int is_started = 0;
  MPI_Initialized(&is_started);
  if (is_started != 0) return;
  // Asked before: for a process alone, too, MPI sets up the environment as a launcher would.
  const bool was_launched = started_by_mpi_launcher() || started().processes > 1;
  // Where processes share cores, Open MPI gives up the core inside of each call, with our lock held. We do it outside.
  setenv("OMPI_MCA_mpi_yield_when_idle", "0", 0);
  int provided = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
  check_mpi(was_launched);
}

}  // namespace

std::unique_ptr<World> mpi_processes(const MpiOptions& options) {
  start_mpi();
  const MPI_Comm communicator = own_communicator();
  int process = 0;
  int processes = 0;
  MPI_Comm_rank(communicator, &process);
  MPI_Comm_size(communicator, &processes);
  const int on_this_host = processes_on_this_host(communicator);
  auto world = std::make_unique<MpiWorld>(communicator, process, processes, on_this_host, options);
  if (options.measure_clock || on_this_host != processes) world->measure_clocks();
  return world;
}

}  // namespace dualpipe
