#include "session.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <exception>
#include <iostream>
#include <new>
#include <optional>

#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/schedule/error.h"
#include "tools/common/command_line.h"
#include "watchdog.h"

namespace dualpipe {

using detail::replay::text_of;

namespace {

[[noreturn]] void end_at_start(Watchdog::Cause cause, std::chrono::nanoseconds timeout) {
  constexpr int exit_failed = 1;
  if (cause == Watchdog::Cause::stop) {
    std::cerr << "error: the run was interrupted while its processes started\n";
  } else {
    std::cerr << fmt::format(
        "error: MPI has not connected the processes within {} s: one of them has ended already, or has not begun, and "
        "what it printed tells why; --timeout gives them more time\n",
        std::chrono::duration<double>(timeout).count());
  }
  _exit(exit_failed);
}

}  // namespace

void Session::run(const RunOptions& options) {
  interrupt_.emplace();
  timeout_ = options.start_timeout();
  {
    // For a process that has ended before, MPI_Init waits for good; what else connects processes keeps to a timeout.
    const Watchdog watchdog(interrupt_->token(), options.is_mpi() ? std::optional(timeout_) : std::nullopt,
                            [this](Watchdog::Cause cause) { end_at_start(cause, timeout_); });
    world_ = options.world();
  }
  Ending ending = run_in_world(options);
  ending.is_urgent = interrupt_->signal() != 0;
  const auto causes = world_->end(ending);
  const std::string text = fmt::format("{}", fmt::join(causes, "\n       "));
  if (!causes.empty() && is_wrong_usage_) throw CLI::ParseError(text, CLI::ExitCodes::ValidationError);
  if (!causes.empty()) throw std::runtime_error(text);
  if (ending.failed) throw Reported();
}

Ending Session::run_in_world(const RunOptions& options) {
  try {
    dualpipe::run(options, *world_, interrupt_->token());
    return {};
  } catch (const CLI::ParseError& error) {  // each process finds it, and one tells
    is_wrong_usage_ = true;
    return {.failed = true, .is_cause = true, .text = error.what()};
  } catch (const UsageError& error) {
    is_wrong_usage_ = true;
    return {.failed = true, .is_cause = true, .text = error.what()};
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
  if (!world_) return status;
  std::cout << std::flush;
  // MPI_Finalize, too, waits for good for a process that does not come to it.
  const Watchdog watchdog({}, timeout_, [status](Watchdog::Cause) { _exit(status); });
  if (!world_->close()) _exit(status);
  return status;
}

}  // namespace dualpipe
