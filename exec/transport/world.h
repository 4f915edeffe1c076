// The processes that a run is made of, and which ranks each of them holds.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/sim/costs/units.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe {

// How a process comes to its end.
struct Ending {
  bool failed = false;
  bool is_cause = false;   // it failed by itself, and did not only hear of another's failure
  bool is_urgent = false;  // it was told to end, and will be killed if it does not
  std::string text;        // of the error
};

// A function that is called collective here has to be called by all processes, in the same order, by one thread of
// each. The ranks of a process are contiguous, and dealt out as evenly as they can be: 4 ranks in 3 processes are
// 0 | 1 | 2 3.
class World {
 public:
  World(int process, int processes) : process_(process), processes_(processes) {}
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  virtual ~World() = default;

  // How ranks reach each other: "threads", "mpi", "nccl", "store".
  [[nodiscard]] virtual std::string_view transport() const = 0;
  [[nodiscard]] int process() const { return process_; }
  [[nodiscard]] int processes() const { return processes_; }
  // Of so many ranks: which process holds a rank, and which ranks this process, or another one, holds.
  [[nodiscard]] int process_of(int rank, int ranks) const;
  [[nodiscard]] std::vector<int> ranks_here(int ranks) const { return ranks_of(process_, ranks); }
  [[nodiscard]] std::vector<int> ranks_of(int process, int ranks) const;

  // The transports by rank; null for ranks of other processes. They are of a new run, and those of the run before are
  // of no use any more. Collective. Throws InputError if there are more processes than ranks.
  [[nodiscard]] std::vector<std::unique_ptr<Transport>> transports(const Placement& placement,
                                                                   const TransportOptions& options);

  // Collective: waits for all processes, and returns what each of them brings, by process. `what` says where in the run
  // this is ("the start"). Throws std::runtime_error where another process is at another place, and what
  // Transport::wait() throws.
  [[nodiscard]] virtual std::vector<std::string> all_gather(const std::string& what, std::string part) = 0;

  // The nanoseconds that, added to a time of this process, give the time of process 0, whose host may have another
  // clock.
  [[nodiscard]] virtual Time clock_offset() const { return 0; }

  // After a failure each process calls this with what it can still tell process 0. There the result is what each has
  // told, by process; nothing for those that do not within 0.4 s, or the timeout where that is shorter. In the other
  // processes the result is empty.
  [[nodiscard]] virtual std::vector<std::optional<std::string>> hand_over(std::string part) = 0;

  // The end of the run in this process. Returns what this process has to tell the user, where the run failed: process 0
  // waits a while for the others and tells all causes, each once; another one tells its own only if process 0 does not.
  [[nodiscard]] virtual std::vector<std::string> end(const Ending& ending) = 0;
  // To be called after end(), when all is printed and written. Returns false if a process is missing. Then this one
  // must end at once (_exit), since destructors would wait for the missing one.
  [[nodiscard]] virtual bool close() = 0;

 protected:
  [[nodiscard]] virtual std::vector<std::unique_ptr<Transport>> make_transports(const Placement& placement,
                                                                                const TransportOptions& options) = 0;

 private:
  int process_;
  int processes_;
};

// This process alone: its ranks are threads.
[[nodiscard]] std::unique_ptr<World> one_process();

struct MpiOptions {
  // For tests:
  bool through_mpi = false;    // messages between ranks of one process go over MPI, too
  bool measure_clock = false;  // as if the processes were on several hosts
};
// The processes that mpirun or srun has started; without these, this one alone. Throws InputError where this was built
// without MPI, or MPI does not see what the launcher has started.
[[nodiscard]] std::unique_ptr<World> mpi_processes(const MpiOptions& options = {});

// Whether a launcher has started this process as one of several that MPI connects.
[[nodiscard]] bool started_by_mpi_launcher();

}  // namespace dualpipe
