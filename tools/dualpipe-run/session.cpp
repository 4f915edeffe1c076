#include "session.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <csignal>
#include <exception>
#include <iostream>
#include <new>
#include <optional>

#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/sim/schedule/error.h"
#include "start_up.h"
#include "tools/common/command_line.h"

namespace dualpipe {

void Session::run(const RunOptions& options) {
  interrupt_.emplace();
  {
    const StartUp start_up(interrupt_->token(),
                           options.is_mpi() ? std::optional(options.start_timeout()) : std::nullopt);
    world_ = options.world();
  }
  Ending ending = run_in_world(options);
  ending.is_urgent = interrupt_->signal() != 0;
  const auto causes = world_->end(ending);
  if (!causes.empty()) throw std::runtime_error(fmt::format("{}", fmt::join(causes, "\n       ")));
  if (ending.failed) throw Reported();
}

Ending Session::run_in_world(const RunOptions& options) {
  try {
    dualpipe::run(options, *world_, interrupt_->token());
    return {};
  } catch (const TimeoutError& error) {
    return {.failed = true, .is_cause = true, .text = error.what()};
  } catch (const TransportError& error) {
    const bool is_terminated = world_->processes() > 1 && interrupt_->signal() == SIGTERM;
    const auto hint =
        is_terminated ? " (by SIGTERM, which mpirun sends when it is interrupted or a process has died)" : "";
    return {.failed = true, .text = fmt::format("{}{}", error.what(), hint)};
  } catch (const std::bad_alloc&) {
    (void)world_->end({.failed = true, .is_cause = true, .text = "out of memory"});
    throw;
  } catch (const std::exception& error) {
    return {.failed = true, .is_cause = true, .text = text_of(error)};
  }
}

int Session::close(int status) {
  if (world_ && !world_->close()) {
    std::cout << std::flush;
    _exit(status);
  }
  return status;
}

}  // namespace dualpipe
