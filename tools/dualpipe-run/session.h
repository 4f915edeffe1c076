// One process of a run: it may be the only one, or one of several that mpirun or srun has started.
#pragma once

#include <chrono>
#include <memory>
#include <optional>

#include "dualpipe/exec/transport/world.h"
#include "interrupt.h"
#include "options.h"

namespace dualpipe {

class Session {
 public:
  // Throws what this process is to tell the user, or Reported where another one does.
  void run(const RunOptions& options);
  // When all is printed. Returns the exit status; where other processes are missing, or do not come to their end within
  // the timeout of the start, ends this one with it.
  [[nodiscard]] int close(int status);

 private:
  [[nodiscard]] Ending run_in_world(const RunOptions& options);

  std::optional<Interrupt> interrupt_;  // before the world: its threads, too, must not take the signals
  std::chrono::nanoseconds timeout_{};  // of its start, and of its end
  std::unique_ptr<World> world_;
  bool is_wrong_usage_ = false;
};

}  // namespace dualpipe
