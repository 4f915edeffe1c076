// A GPU for the tests of exec/cuda on machines that have none. The module of CUDA and LibTorch's streams and allocator
// run on it as they are; what lies below them is replaced:
//
//     libdualpipe_cuda.so, libc10_cuda.so        as users have them
//       │                      │
//     libtorch_cuda.so         libcudart.so.13
//     torch.cpp: the kernels   runtime.cpp: the runtime, over
//     of the CPU                  this GPU
//
// The thread that puts work on a stream runs it at once, in the memory of the host: so results are right. What would
// have been on a GPU is kept beside it:
//
//   time    Each stream has a clock of its own, on which work takes longer than it took the thread, and longer still
//           where the stream has a part of the multiprocessors only. Streams that do not wait for each other run side
//           by side, the host is ahead of all, and waits where CUDA would have it wait.
//   order   Which work each stream, and the host, has seen to end (vector clocks), and what has touched each byte. Work
//           that touches memory without having waited for what touched it before ends the program, with a message. So
//           does memory that goes back too early: its next user races with the last one.
//
// Not there: more than one GPU, streams that get in each other's way, graphs, memory pools, errors of kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/units.h"

namespace dualpipe::test {

// How much of the work of each stream has been seen to end.
using Clock = std::vector<std::uint32_t>;

struct Deferred;  // work that waits for what others have yet to do

// In the work of a stream: after all that had been put there.
struct Point {
  Time time = 0;
  Clock seen;
  std::vector<std::shared_ptr<Deferred>> after;  // and after these
};

struct Access {
  const void* data = nullptr;
  std::size_t bytes = 0;
  bool writes = false;
};

// What has touched each byte.
class AccessLog {
 public:
  struct Step {
    std::size_t stream = 0;
    std::uint32_t number = 0;  // of the work on it
    const char* name = nullptr;
  };

  // What `step`, which has seen so much, has not waited for; else "".
  [[nodiscard]] std::string note(const Access& access, const Step& step, const Clock& seen);
  void forget(const void* data, std::size_t bytes);

 private:
  struct Range {
    std::uintptr_t end = 0;
    std::optional<Step> write;
    std::vector<Step> reads;  // since then, the last of each stream
  };
  using Ranges = std::map<std::uintptr_t, Range>;  // by their beginning

  // All that lie in it afterwards begin and end there, too.
  Ranges::iterator cut(std::uintptr_t at);

  Ranges ranges_;
};

struct Stream {
  std::size_t index = 0;  // in clocks
  int multiprocessors = 0;
  int priority = 0;
  std::uint32_t steps = 0;
  Point end;
};

using Work = std::function<void()>;
// After which point work may run; nothing: not yet.
using Readiness = std::function<std::optional<Point>()>;

class Gpu {
 public:
  static constexpr int multiprocessors = 132;
  static constexpr std::size_t bytes = std::size_t{8} << 30;

  [[nodiscard]] static Gpu& only();

  // Streams stay.
  [[nodiscard]] Stream& make_stream(int parts, int priority);
  [[nodiscard]] Stream& default_stream() { return *streams_.front(); }

  // Work that is ready runs at once; that after deferred work, when that has run: until then the thread waits.
  void run(Stream& stream, const char* name, std::span<const Access> accesses, const Work& work);
  // Work for which others have to do something first: runs when somebody waits.
  std::shared_ptr<Deferred> defer(Stream& stream, const char* name, std::vector<Access> accesses, Readiness ready,
                                  Work work);
  [[nodiscard]] Point end_of(Stream& stream);
  void wait(Stream& stream, const Point& point);

  // By the host, which then knows.
  [[nodiscard]] bool is_reached(const Point& point);
  void await(const Point& point);
  void await_all();
  // When it was reached, or will be; nothing: that is not known yet.
  [[nodiscard]] std::optional<Time> time_of(const Point& point);

  // null: there is not as much.
  [[nodiscard]] void* allocate(std::size_t size);
  void free(void* data);
  [[nodiscard]] std::size_t free_bytes();
  // Whether a GPU could reach it: device memory, or pinned memory of the host.
  [[nodiscard]] bool owns(const void* data);

 private:
  Gpu();

  // If it has run, or can now.
  [[nodiscard]] std::optional<Point> end_of(Deferred& deferred);
  // With what its deferred work adds, none of which is left then; nothing: some has not run.
  [[nodiscard]] std::optional<Point> settled(const Point& point);
  [[nodiscard]] Point settle(const Point& point);
  void try_deferred();
  // Returns its end.
  Point execute(const Stream& stream, std::uint32_t step, Point start, const char* name,
                std::span<const Access> accesses, const Work& work);

  std::mutex mutex_;
  std::vector<std::unique_ptr<Stream>> streams_;
  Clock host_has_seen_;  // any thread of it: they tell each other
  AccessLog log_;
  std::map<const std::byte*, std::size_t> memory_;
  std::size_t used_ = 0;
  std::vector<std::shared_ptr<Deferred>> deferred_;  // in the order in which it was put on streams
};

// For a misuse of CUDA, which the GPU would not have reported: ends the program.
[[noreturn]] void fault(const std::string& what);

}  // namespace dualpipe::test
