// A World whose processes send each other messages, over an engine that carries these. Private to exec/transport.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/engine.h"
#include "dualpipe/exec/transport/message_router.h"
#include "dualpipe/exec/transport/wait.h"
#include "dualpipe/exec/transport/wire_message.h"
#include "dualpipe/exec/transport/world.h"

namespace dualpipe::detail::transport {

struct EngineWorldOptions {
  std::string_view transport;                                     // World::transport()
  bool through_engine = false;                                    // between ranks of one process, too
  int on_this_host = 1;                                           // how many of the processes share it
  std::chrono::nanoseconds timeout = TransportOptions{}.timeout;  // before the first run, which brings its own
};

class EngineWorld : public World, protected RemoteLink, protected Engine::Receiver {
 public:
  EngineWorld(int process, int processes, const EngineWorldOptions& options);
  ~EngineWorld() override;

  [[nodiscard]] std::string_view transport() const override { return options_.transport; }
  [[nodiscard]] Time clock_offset() const override { return offsets_[static_cast<std::size_t>(process())]; }
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& what, std::string part) override;
  [[nodiscard]] std::vector<std::optional<std::string>> hand_over(std::string part) override;
  [[nodiscard]] std::vector<std::string> end(const Ending& ending) override;
  [[nodiscard]] bool close() override;

 protected:
  // To be called by the constructor of the derived class before anything else. From now on the engine calls this.
  void connect(std::unique_ptr<Engine> engine);
  // Ends the engine, so that nothing comes or goes any more. To be called by the destructor of the derived class, also
  // after close(), which calls it, too.
  virtual void disconnect();
  // The user wants this process to end. May be called by any thread.
  void interrupt();
  void set_on_this_host(int processes) { options_.on_this_host = processes; }
  // Collective: compares the clocks of the processes, where these are on several hosts.
  void measure_clocks();

  [[nodiscard]] std::vector<std::unique_ptr<Transport>> make_transports(const Placement& placement,
                                                                        const TransportOptions& options) override;
  // Of the run that has begun.
  [[nodiscard]] std::shared_ptr<MessageRouter> router() const;
  [[nodiscard]] std::shared_ptr<AbortFlag> abort_flag() const;

  void deliver(int from, WireMessage message) override;

 private:
  // After a failure process 0 waits so long for the others, and they for it.
  static constexpr std::chrono::nanoseconds grace = std::chrono::milliseconds(400);
  static constexpr std::chrono::nanoseconds spin_time = std::chrono::microseconds(100);

  using Part = std::optional<std::string>;
  // What a process brings to an all_gather.
  struct Contribution {
    std::string what;
    std::string part;
  };
  using GatherKey = std::tuple<int, int, int>;  // run, number in it, and the process that it comes from

  // --- RemoteLink
  [[nodiscard]] bool are_apart(int rank, int other) const override;
  void send(int to_rank, WireMessage message) override;
  void progress() override { engine_->progress(); }
  void abort(const std::string& reason) override;

  void take_in(int from, WireMessage message);
  void take_in_message(int from, WireMessage message);
  void take_in_gather(int from, const WireMessage& message);
  void answer_roll_call(int from, const WireMessage& message);
  void take_in_presence(int from, const WireMessage& message);

  // --- Engine::Receiver
  [[nodiscard]] bool is_awaited() const override { return is_watched(); }
  void refused(int from, const std::string& reason) override;
  void broken(const std::string& reason) override;
  void lost(int process, std::chrono::nanoseconds silence) override;

  // `run`: the one that was aborted, which does not matter if it is over. Nothing: the present one.
  void hear_abort(std::optional<int> run, const std::string& reason);
  [[nodiscard]] bool spins() const;
  [[nodiscard]] std::vector<std::string> end_all(const Ending& own);
  [[nodiscard]] std::vector<std::string> end_with_first(const Ending& own);
  void begin_grace();

  void send_to_others(const WireMessage& message);

  // What has come, and who waits for it.
  template <typename Action>
  void note(const Action& action) {
    {
      const std::lock_guard lock(mutex_);
      action();
    }
    changed_.notify_all();
  }

  // Returns whether it has come true in time.
  template <typename Condition>
  [[nodiscard]] bool wait(Clock::time_point deadline, const Condition& condition);

  [[nodiscard]] std::vector<Contribution> passed_on(const std::string& what, GatherKey key,
                                                    Clock::time_point& deadline);
  [[nodiscard]] std::string absent_from(int gather);
  void check_same_place(const std::string& what, int other, const std::string& place) const;
  [[nodiscard]] std::string name_of(int process) const;
  // "process 1 (ranks 2 to 3), rank 4"; before the first run "process 1, process 2"
  template <typename Condition>
  [[nodiscard]] std::string names_if(const Condition& condition) const {
    std::vector<std::string> names;
    for (int each = 0; each < processes(); ++each) {
      if (condition(each)) names.push_back(name_of(each));
    }
    return fmt::format("{}", fmt::join(names, ", "));
  }
  [[nodiscard]] std::shared_ptr<MessageRouter> router_of(const WireMessage& message) const;
  [[nodiscard]] Time clock_behind(int other) const;

  EngineWorldOptions options_;
  int ranks_ = 0;
  std::chrono::nanoseconds timeout_;
  std::optional<Clock::time_point> grace_end_;
  bool all_ended_ = false;

  mutable std::mutex mutex_;  // of what follows; the thread that calls the World's functions reads run_ without
  std::condition_variable changed_;
  int run_ = 0;            // number of this run, from 1; 0 before the first
  int gathers_begun_ = 0;  // in it
  std::shared_ptr<AbortFlag> abort_flag_ = std::make_shared<AbortFlag>();
  std::vector<std::shared_ptr<MessageRouter>> routers_;      // of each run: what a failed one has sent may still come
  std::map<GatherKey, std::vector<Contribution>> gathered_;  // has come, but this process has not come to it yet
  std::vector<std::optional<bool>> presence_;                // by process: what it has answered to the last roll call
  std::vector<Part> records_;                                // by process
  std::vector<Part> endings_;
  Part farewell_;
  std::optional<Clock::time_point> first_clock_;

  std::vector<Time> offsets_;  // by process, never changed once ranks send
  std::unique_ptr<Engine> engine_;
};

template <typename Condition>
bool EngineWorld::wait(Clock::time_point deadline, const Condition& condition) {
  const Watch watch(this);
  const auto spin_end = std::min(deadline, Clock::now() + spin_time);
  std::unique_lock lock(mutex_);
  while (!condition() && Clock::now() < spin_end) {
    lock.unlock();
    engine_->progress();
    std::this_thread::yield();
    lock.lock();
  }
  return changed_.wait_until(lock, deadline, condition);
}

}  // namespace dualpipe::detail::transport
