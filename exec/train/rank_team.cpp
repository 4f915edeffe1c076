#include "dualpipe/exec/train/rank_team.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <pthread.h>

#include <string_view>
#include <system_error>
#include <thread>

#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/train/stage_set.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::train {

void RankTeam::run(int threads_per_rank, const std::function<void(int rank, Transport& transport)>& work) {
  const std::stop_callback on_stop(stop_, [this] {
    transport_of(here_.front()).abort(interrupted);
    barrier_.stop();
  });
  std::vector<std::jthread> threads;
  try {
    for (const int rank : here_) {
      threads.emplace_back([this, rank, threads_per_rank, &work] { run_rank(rank, threads_per_rank, work); });
      pthread_setname_np(threads.back().native_handle(), fmt::format("rank {}", rank).c_str());
    }
  } catch (const std::system_error& error) {  // those that run wait for the missing ones
    const InputError refused(fmt::format(
        "the system does not give {} threads, one for each rank: {}; use fewer --ranks", here_.size(), error.what()));
    end_all(transport_of(here_.front()), refused.what(), std::make_exception_ptr(refused));
  }
  threads.clear();  // all have ended
}

void RankTeam::run_rank(int rank, int threads, const std::function<void(int rank, Transport& transport)>& work) {
  Transport& transport = transport_of(rank);
  try {
    set_up_thread(threads);
    work(rank, transport);
  } catch (const StepBarrier::Stopped&) {
    if (!stop_.stop_requested()) return;
    is_interrupted_ = true;
    note(std::make_exception_ptr(TransportError(interrupted)), false);
  } catch (const TimeoutError& error) {
    end_all(transport, error.what(), std::current_exception());
  } catch (const TransportError& error) {
    if (error.what() == std::string_view(interrupted)) is_interrupted_ = true;
    note(std::current_exception(), false);
    barrier_.stop();
  } catch (const c10::Error& error) {  // of LibTorch, which adds a stack trace
    const ReplayError failure(fmt::format("rank {} failed: {}", rank, error.what_without_backtrace()));
    end_all(transport, failure.what(), std::make_exception_ptr(failure));
  } catch (const std::exception& error) {
    end_all(transport, fmt::format("rank {} failed: {}", rank, error.what()), std::current_exception());
  } catch (...) {
    end_all(transport, fmt::format("rank {} failed: an exception without a message", rank), std::current_exception());
  }
}

void RankTeam::note(const std::exception_ptr& error, bool is_own) {
  const std::lock_guard lock(mutex_);
  if (error_ && (!is_own || is_own_)) return;
  error_ = error;
  is_own_ = is_own;
}

void RankTeam::end_all(Transport& transport, const std::string& reason, const std::exception_ptr& error) {
  note(error, true);
  transport.abort(reason);
  barrier_.stop();
}

}  // namespace dualpipe::detail::train
