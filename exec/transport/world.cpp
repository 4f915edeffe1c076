#include "dualpipe/exec/transport/world.h"

#include <fmt/format.h>

#include <cstdlib>
#include <numeric>
#include <thread>
#include <utility>

#include "dualpipe/exec/transport/message_router.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

using detail::transport::AbortFlag;
using detail::transport::MessageRouter;
using detail::transport::transports_of;

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

// --- ranks that are threads of one process: a tensor is handed over as it is, nothing is copied

namespace {

class OneProcess final : public World {
 public:
  OneProcess() : World(0, 1) {}

  [[nodiscard]] std::string_view transport() const override { return "threads"; }
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& /*what*/, std::string part) override {
    return {std::move(part)};
  }
  [[nodiscard]] std::vector<std::optional<std::string>> hand_over(std::string part) override {
    return {std::move(part)};
  }
  [[nodiscard]] std::vector<std::string> end(const Ending& ending) override {
    if (!ending.failed) return {};
    return {ending.text};
  }
  [[nodiscard]] bool close() override { return true; }

 private:
  [[nodiscard]] std::vector<std::unique_ptr<Transport>> make_transports(const Placement& placement,
                                                                        const TransportOptions& options) override {
    return thread_transports(placement, options);
  }
};

}  // namespace

std::vector<std::unique_ptr<Transport>> thread_transports(const Placement& placement, const TransportOptions& options) {
  std::vector<int> here(static_cast<std::size_t>(placement.ranks));
  std::iota(here.begin(), here.end(), 0);
  const bool spins = std::thread::hardware_concurrency() >= static_cast<unsigned>(placement.ranks);
  return transports_of(
      std::make_shared<MessageRouter>(placement, options, std::make_shared<AbortFlag>(), spins, nullptr),
      placement.ranks, here);
}

std::unique_ptr<World> one_process() { return std::make_unique<OneProcess>(); }

}  // namespace dualpipe
