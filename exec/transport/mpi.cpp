// Ranks in processes that MPI connects.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "exec/transport/hub.h"
#include "exec/transport/mpi_engine.h"
#include "exec/transport/pack.h"
#include "exec/transport/parcel.h"
#include "exec/transport/world.h"
#include "sim/schedule/error.h"

namespace dualpipe {
namespace {

using namespace std::chrono_literals;

// After a failure, process 0 waits so long for the others, and they for it. Where mpirun has asked all to end (SIGTERM)
// it kills them a second later.
constexpr std::chrono::nanoseconds grace = 400ms;
constexpr std::chrono::nanoseconds grace_of_first_if_urgent = 750ms;
// One that has done its work waits so much longer for process 0, which simulates and writes files.
constexpr int patience_with_first = 10;
constexpr auto spin_time = 100us;
constexpr int clock_rounds = 64;

Time time_of(Clock::time_point point) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(point.time_since_epoch()).count();
}

std::string pack(const Ending& ending) {
  Packer packer;
  packer.put(ending.failed);
  packer.put(ending.is_cause);
  packer.put(ending.text);
  return packer.take();
}

Ending unpack_ending(const std::string& bytes) {
  Unpacker unpacker(bytes);
  Ending ending;
  unpacker.get(ending.failed);
  unpacker.get(ending.is_cause);
  unpacker.get(ending.text);
  return ending;
}

class MpiWorld final : public World, private Wire, private MpiEngine::Receiver {
 public:
  // `on_this_host`: how many of the processes are. Those of one host share its clock.
  MpiWorld(MPI_Comm communicator, int process, int processes, int on_this_host, const MpiOptions& options)
      : World(process, processes),
        communicator_(communicator),
        options_(options),
        on_this_host_(on_this_host),
        records_(static_cast<std::size_t>(processes)),
        endings_(static_cast<std::size_t>(processes)),
        offsets_(static_cast<std::size_t>(processes)),
        engine_(
            std::make_unique<MpiEngine>(communicator, options.through_mpi, static_cast<MpiEngine::Receiver&>(*this))) {
    engine_->start();
    if (options.measure_clock || on_this_host != processes) measure_clocks();
  }

  ~MpiWorld() override { leave_mpi(); }

  [[nodiscard]] std::string_view transport() const override { return "mpi"; }
  [[nodiscard]] Time clock_offset() const override { return offsets_[static_cast<std::size_t>(process())]; }

  [[nodiscard]] std::vector<std::string> all_gather(const std::string& what, std::string part) override {
    const int number = gathers_begun_++;
    Packer packer;
    packer.put(what);
    packer.put(part);
    send_to_others({.kind = Parcel::Kind::gather, .index = number, .run = run_, .note = packer.take()});
    std::vector<std::optional<std::string>> parts;
    const GatherKey key{run_, number};
    const auto is_complete = [&] { return std::ranges::all_of(gather(key), &Part::has_value); };
    (void)wait(Clock::now() + timeout_, [&] { return is_complete() || verdict_->aborted(); });
    {
      const std::lock_guard lock(mutex_);
      parts = std::exchange(gather(key), {});
      gathers_.erase(key);
    }
    verdict_->throw_if_aborted();
    const auto is_absent = [&](int other) {
      return other != process() && !parts[static_cast<std::size_t>(other)].has_value();
    };
    if (const std::string absent = names_if(is_absent); !absent.empty()) {
      throw TimeoutError(fmt::format("{} did not come to {} within {}", absent, what, seconds(timeout_)));
    }
    std::vector<std::string> all;
    for (int other = 0; other < processes(); ++other) {
      auto& each = parts[static_cast<std::size_t>(other)];
      all.push_back(other == process() ? std::move(part) : open(what, other, *each));
    }
    return all;
  }

  [[nodiscard]] std::vector<std::optional<std::string>> hand_over(std::string part) override {
    begin_grace();
    if (process() != 0) {
      (void)engine_->send(0, {.kind = Parcel::Kind::records, .run = run_, .note = std::move(part)});
      return {};
    }
    (void)wait(*grace_end_, [&] { return std::ranges::count_if(records_, &Part::has_value) + 1 == processes(); });
    const std::lock_guard lock(mutex_);
    records_[0] = std::move(part);
    return std::exchange(records_, std::vector<Part>(records_.size()));
  }

  [[nodiscard]] std::vector<std::string> end(const Ending& ending) override {
    const Parcel parcel{.kind = Parcel::Kind::ending, .run = run_, .note = pack(ending)};
    if (ending.failed) {
      begin_grace();
      send_to_others(parcel);
    } else if (process() != 0) {
      (void)engine_->send(0, parcel);
    }
    return process() == 0 ? end_all(ending) : end_with_first(ending);
  }

  [[nodiscard]] bool close() override {
    if (process() == 0) {
      send_to_others({.kind = Parcel::Kind::farewell, .note = all_ended_ ? "all" : ""});
      const auto deadline = Clock::now() + grace;
      while (!engine_->all_sent() && Clock::now() < deadline) {
        engine_->progress();
        std::this_thread::yield();
      }
    }
    if (!all_ended_) return false;
    leave_mpi();
    MPI_Finalize();
    return true;
  }

 private:
  using Part = std::optional<std::string>;
  using GatherKey = std::pair<int, int>;  // run, and number in it

  // --- Wire

  [[nodiscard]] bool apart(int rank, int other) const override {
    if (options_.through_mpi) return rank != other;
    return process_of(rank, ranks_) != process_of(other, ranks_);
  }
  Departed send(int to_rank, Parcel parcel) override {
    parcel.run = run_;
    return engine_->send(process_of(to_rank, ranks_), std::move(parcel));
  }
  void progress() override { engine_->progress(); }
  void abort(const std::string& reason) override {
    send_to_others({.kind = Parcel::Kind::abort, .run = run_, .note = reason});
    notify();
  }

  // --- MpiEngine::Receiver

  [[nodiscard]] std::vector<Form> forms_of(const Parcel& parcel) override { return hub_of(parcel)->forms_of(parcel); }
  [[nodiscard]] bool is_awaited() const override { return is_watched(); }

  void deliver(int from, Parcel parcel) override {
    const auto source = static_cast<std::size_t>(from);
    switch (parcel.kind) {
      case Parcel::Kind::message:
      case Parcel::Kind::part:
      case Parcel::Kind::sums:
        parcel.sent += std::chrono::nanoseconds(clock_behind(from));
        return hub_of(parcel)->deliver(std::move(parcel));
      case Parcel::Kind::gather:
        return note([&] { gather({parcel.run, parcel.index})[source] = std::move(parcel.note); });
      case Parcel::Kind::records:
        return note([&] {
          if (parcel.run == run_) records_[source] = std::move(parcel.note);
        });
      case Parcel::Kind::ending: {
        const Ending ending = unpack_ending(parcel.note);
        note([&] { endings_[source] = std::move(parcel.note); });
        if (ending.failed) hear_abort({}, ending.text);  // it takes part in no run any more
        return;
      }
      case Parcel::Kind::farewell:
        return note([&] { farewell_ = std::move(parcel.note); });
      case Parcel::Kind::abort:
        return hear_abort(parcel.run, parcel.note);
      case Parcel::Kind::ping:
        (void)engine_->send(from, {.kind = Parcel::Kind::pong, .sent = Clock::now()});
        return;
      case Parcel::Kind::pong:
        return note([&] { first_clock_ = parcel.sent; });
    }
  }

  void broken(const std::string& reason) override { hear_abort({}, fmt::format("process {}: {}", process(), reason)); }

  // `run`: which was aborted; one that is over does not matter any more. Nothing: whichever there is.
  void hear_abort(std::optional<int> run, const std::string& reason) {
    std::shared_ptr<Hub> hub;
    {
      const std::lock_guard lock(mutex_);
      if (run && *run < run_) return;
      verdict_->abort(reason);
      if (!hubs_.empty()) hub = hubs_.back();
    }
    if (hub) hub->wake();
    notify();
  }

  // --- World

  [[nodiscard]] std::vector<std::unique_ptr<Transport>> make_transports(const Placement& placement,
                                                                        const TransportOptions& options) override {
    std::shared_ptr<Hub> made;
    {
      const std::lock_guard lock(mutex_);
      if (!hubs_.empty()) verdict_ = std::make_shared<Verdict>();
      for (const Part& part : endings_) {
        if (!part) continue;
        if (const Ending ending = unpack_ending(*part); ending.failed) verdict_->abort(ending.text);
      }
      ++run_;
      gathers_begun_ = 0;
      grace_end_.reset();
      ranks_ = placement.ranks;
      timeout_ = options.timeout;
      made = std::make_shared<Hub>(placement, options, verdict_, spins(), static_cast<Wire*>(this));
      hubs_.push_back(made);
    }
    (void)all_gather("the start", {});  // before the first message all must be able to take it
    return transports_of(made, placement.ranks, ranks_here(placement.ranks));
  }

  // A launcher may have bound this process to some of the cores; and all processes share those of the host.
  [[nodiscard]] bool spins() const {
    const auto ranks_max = (ranks_ + processes() - 1) / processes();
    return std::thread::hardware_concurrency() >= static_cast<unsigned>(ranks_max) &&
           sysconf(_SC_NPROCESSORS_ONLN) >= long{ranks_max} * on_this_host_;
  }

  std::vector<std::string> end_all(const Ending& own) {
    const auto deadline = own.failed ? std::max(*grace_end_, Clock::now() + grace / 4) : Clock::now() + timeout_;
    all_ended_ = wait(deadline, [&] { return std::ranges::count_if(endings_, &Part::has_value) + 1 == processes(); });
    std::vector<std::string> causes;
    std::string heard = own.text;
    const std::lock_guard lock(mutex_);
    for (int each = 0; each < processes(); ++each) {
      const Part& part = endings_[static_cast<std::size_t>(each)];
      if (each != 0 && !part) continue;
      const Ending ending = each == 0 ? own : unpack_ending(*part);
      if (!ending.failed) continue;
      if (heard.empty()) heard = ending.text;
      if (ending.is_cause && std::ranges::find(causes, ending.text) == causes.end()) causes.push_back(ending.text);
    }
    if (causes.empty() && !heard.empty()) causes.push_back(heard);
    if (!all_ended_) {
      causes.push_back(fmt::format("no answer from {}", names_if([&](int each) {
                                     return each != 0 && !endings_[static_cast<std::size_t>(each)];
                                   })));
    }
    return causes;
  }

  std::vector<std::string> end_with_first(const Ending& own) {
    const std::chrono::nanoseconds patience = own.is_urgent ? grace_of_first_if_urgent
                                              : own.failed  ? timeout_
                                                            : timeout_ * patience_with_first;
    const bool answered = wait(Clock::now() + patience, [&] { return farewell_.has_value(); });
    all_ended_ = answered && !farewell_->empty();
    if (answered) return {};
    std::vector<std::string> texts;
    if (own.failed) texts.push_back(own.text);
    texts.emplace_back("no answer from process 0, which writes traces and results");
    return texts;
  }

  void begin_grace() {
    if (!grace_end_) grace_end_ = Clock::now() + std::min(timeout_, grace);
  }

  // Before this, nobody else may use MPI any more.
  void leave_mpi() {
    if (!engine_) return;
    engine_.reset();
    MPI_Comm_free(&communicator_);
  }

  // --- to and from the others

  void send_to_others(const Parcel& parcel) {
    for (int other = 0; other < processes(); ++other) {
      if (other != process()) (void)engine_->send(other, parcel);
    }
  }

  // What has come, and who waits for it.
  template <typename Action>
  void note(const Action& action) {
    {
      const std::lock_guard lock(mutex_);
      action();
    }
    changed_.notify_all();
  }
  void notify() {
    note([] {});
  }

  // Returns whether it has come true in time.
  template <typename Condition>
  [[nodiscard]] bool wait(Clock::time_point deadline, const Condition& condition) {
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

  // What processes bring to an all_gather; this one's own stays empty but for its presence.
  [[nodiscard]] std::vector<Part>& gather(GatherKey key) {
    auto& parts = gathers_[key];
    if (parts.empty()) {
      parts.resize(static_cast<std::size_t>(processes()));
      parts[static_cast<std::size_t>(process())] = "";
    }
    return parts;
  }

  [[nodiscard]] std::string open(const std::string& what, int other, const std::string& bytes) const {
    Unpacker unpacker(bytes);
    if (const auto others = unpacker.get<std::string>(); others != what) {
      const bool is_first = process() < other;
      throw std::runtime_error(
          fmt::format("process {} is at {}, and process {} at {}; were they started with the same command line?",
                      is_first ? process() : other, is_first ? what : others, is_first ? other : process(),
                      is_first ? others : what));
    }
    return unpacker.get<std::string>();
  }

  // "process 1 (ranks 2 to 3), rank 4"; before the first run "process 1, process 2"
  template <typename Condition>
  [[nodiscard]] std::string names_if(const Condition& condition) const {
    std::vector<std::string> names;
    for (int each = 0; each < processes(); ++each) {
      if (!condition(each)) continue;
      const int begin = each * ranks_ / processes();
      const int end = (each + 1) * ranks_ / processes();
      if (ranks_ == 0) {
        names.push_back(fmt::format("process {}", each));
      } else if (end == begin + 1) {
        names.push_back(fmt::format("rank {}", begin));
      } else {
        names.push_back(fmt::format("process {} (ranks {} to {})", each, begin, end - 1));
      }
    }
    return fmt::format("{}", fmt::join(names, ", "));
  }

  [[nodiscard]] std::shared_ptr<Hub> hub_of(const Parcel& parcel) const {
    const std::lock_guard lock(mutex_);
    assert(parcel.run <= run_ && "ranks send before all have begun");
    return hubs_[static_cast<std::size_t>(parcel.run) - 1];
  }

  // --- clocks

  // Process 0 is asked for its time, again and again; the answer that came fastest tells most.
  void measure_clocks() {
    (void)all_gather("the start of the clocks", {});
    Time offset = 0;
    Time shortest = std::numeric_limits<Time>::max();
    for (int round = 0; process() != 0 && round < clock_rounds; ++round) {
      const Time asked = time_of(Clock::now());
      (void)engine_->send(0, {.kind = Parcel::Kind::ping});
      if (!wait(Clock::now() + timeout_, [&] { return first_clock_.has_value(); })) break;
      const Time answered = time_of(Clock::now());
      const std::lock_guard lock(mutex_);
      const Time there = time_of(*std::exchange(first_clock_, {}));
      if (answered - asked >= shortest) continue;
      shortest = answered - asked;
      offset = there - (asked + answered) / 2;
    }
    const auto all = all_gather("the clocks", {reinterpret_cast<const char*>(&offset), sizeof(offset)});
    for (std::size_t each = 0; each < all.size(); ++each) offsets_[each] = Unpacker(all[each]).get<Time>();
  }

  // To be added to a time of that process, it gives ours.
  [[nodiscard]] Time clock_behind(int other) const {
    return offsets_[static_cast<std::size_t>(other)] - clock_offset();
  }

  MPI_Comm communicator_;
  MpiOptions options_;
  int on_this_host_;
  int ranks_ = 0;
  std::chrono::nanoseconds timeout_ = TransportOptions{}.timeout;
  int run_ = 0;            // number of this run, from 1; 0 before the first
  int gathers_begun_ = 0;  // in it
  std::optional<Clock::time_point> grace_end_;
  bool all_ended_ = false;

  mutable std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::shared_ptr<Verdict> verdict_ = std::make_shared<Verdict>();
  std::vector<std::shared_ptr<Hub>> hubs_;  // of each run: what a failed one has sent may still come
  std::map<GatherKey, std::vector<Part>> gathers_;
  std::vector<Part> records_;  // by process
  std::vector<Part> endings_;
  Part farewell_;
  std::optional<Clock::time_point> first_clock_;

  std::vector<Time> offsets_;          // by process, never changed once ranks send
  std::unique_ptr<MpiEngine> engine_;  // last: it calls the others
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
  const bool was_launched = started_by_mpi_launcher();  // alone, MPI sets up its environment as a launcher would
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
  return std::make_unique<MpiWorld>(communicator, process, processes, on_this_host, options);
}

}  // namespace dualpipe
