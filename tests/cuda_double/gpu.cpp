#include "tests/cuda_double/gpu.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <new>
#include <thread>
#include <utility>

#include "dualpipe/exec/replay/clock.h"

namespace dualpipe::test {

using detail::replay::now;

namespace {

constexpr std::align_val_t alignment{512};

// Long enough for the host to be ahead also where its cores are busy, and else the same each time.
Time time_on_gpu(std::span<const Access> accesses, Time on_host) {
  constexpr Time launch = 1'000;
  constexpr Time per_byte = 4;
  Time bytes = 0;
  for (const Access& each : accesses) bytes += static_cast<Time>(each.bytes);
  return std::max({launch, per_byte * bytes, 2 * on_host});
}

void join(Clock& clock, const Clock& other) {
  if (clock.size() < other.size()) clock.resize(other.size());
  for (std::size_t i = 0; i < other.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

bool has_seen(const Clock& clock, const AccessLog::Step& step) {
  return step.stream < clock.size() && clock[step.stream] >= step.number;
}

void sleep_until(Time time) { std::this_thread::sleep_for(std::chrono::nanoseconds(time - now())); }

std::string conflict(const char* verb, const AccessLog::Step& step, const char* earlier_verb,
                     const AccessLog::Step& earlier) {
  return fmt::format("{} on stream {} {} memory that {} on stream {} {}, and has not waited for it", step.name,
                     step.stream, verb, earlier.name, earlier.stream, earlier_verb);
}

}  // namespace

void fault(const std::string& what) {
  std::fputs(("the double of CUDA: " + what + "\n").c_str(), stderr);
  std::_Exit(70);
}

AccessLog::Ranges::iterator AccessLog::cut(std::uintptr_t at) {
  const auto next = ranges_.lower_bound(at);
  if (next == ranges_.begin()) return next;
  const auto before = std::prev(next);
  if (before->second.end <= at) return next;
  Range rest = before->second;
  before->second.end = at;
  return ranges_.emplace_hint(next, at, std::move(rest));
}

std::string AccessLog::note(const Access& access, const Step& step, const Clock& seen) {
  if (access.bytes == 0) return "";
  const auto begin = reinterpret_cast<std::uintptr_t>(access.data);
  const std::uintptr_t end = begin + access.bytes;
  cut(begin);
  const auto last = cut(end);
  const char* const verb = access.writes ? "writes" : "reads";
  std::uintptr_t at = begin;
  for (auto each = ranges_.lower_bound(begin); each != last; ++each) {
    Range& range = each->second;
    if (range.write && !has_seen(seen, *range.write)) return conflict(verb, step, "wrote", *range.write);
    if (access.writes) {
      const auto racing = std::ranges::find_if(range.reads, [&](const Step& read) { return !has_seen(seen, read); });
      if (racing != range.reads.end()) return conflict(verb, step, "read", *racing);
      continue;
    }
    if (at < each->first) ranges_.emplace_hint(each, at, Range{each->first, std::nullopt, {step}});
    std::erase_if(range.reads, [&](const Step& read) { return read.stream == step.stream; });
    range.reads.push_back(step);
    at = range.end;
  }
  if (access.writes) {
    ranges_.erase(ranges_.lower_bound(begin), last);
    ranges_.emplace_hint(last, begin, Range{end, step, {}});
  } else if (at < end) {
    ranges_.emplace_hint(last, at, Range{end, std::nullopt, {step}});
  }
  return "";
}

void AccessLog::forget(const void* data, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  cut(begin);
  const auto last = cut(begin + bytes);
  ranges_.erase(ranges_.lower_bound(begin), last);
}

Gpu& Gpu::only() {
  static Gpu& gpu = *new Gpu;  // outlives all that use it when the process ends
  return gpu;
}

Gpu::Gpu() { static_cast<void>(make_stream(multiprocessors, 0)); }

Stream& Gpu::make_stream(int parts, int priority) {
  const std::lock_guard lock(mutex_);
  auto stream = std::make_unique<Stream>();
  stream->index = streams_.size();
  stream->multiprocessors = parts;
  stream->priority = priority;
  return *streams_.emplace_back(std::move(stream));
}

struct Deferred {
  const Stream& stream;
  std::uint32_t step = 0;
  Point start;
  const char* name = nullptr;
  std::vector<Access> accesses;
  Readiness ready;
  Work work;

  std::mutex mutex{};
  std::optional<Point> needed{};  // once it is ready
  std::optional<Point> end{};     // once it has run
};

Point Gpu::execute(const Stream& stream, std::uint32_t step, Point start, const char* name,
                   std::span<const Access> accesses, const Work& work) {
  {
    const std::lock_guard lock(mutex_);
    join(start.seen, host_has_seen_);
    start.seen.resize(std::max(start.seen.size(), stream.index + 1));
    start.seen[stream.index] = step;
    for (const Access& access : accesses) {
      const std::string what = log_.note(access, {stream.index, step, name}, start.seen);
      if (!what.empty()) fault(what);
    }
  }
  const Time before = now();
  work();
  start.time += time_on_gpu(accesses, now() - before) * multiprocessors / stream.multiprocessors;
  return start;
}

void Gpu::run(Stream& stream, const char* name, std::span<const Access> accesses, const Work& work) {
  const Point start = settle(end_of(stream));
  std::uint32_t step = 0;
  {
    const std::lock_guard lock(mutex_);
    step = ++stream.steps;
  }
  const Point end = execute(stream, step, start, name, accesses, work);
  const std::lock_guard lock(mutex_);
  // Another thread, which shares the stream, may have put something there meanwhile.
  std::erase_if(stream.end.after, [&](const auto& each) {
    return has_seen(end.seen, {each->stream.index, each->step, {}});
  });
  stream.end.time = std::max(stream.end.time, end.time);
  join(stream.end.seen, end.seen);
}

std::shared_ptr<Deferred> Gpu::defer(Stream& stream, const char* name, std::vector<Access> accesses, Readiness ready,
                                     Work work) {
  Point start = end_of(stream);
  const std::lock_guard lock(mutex_);
  deferred_.push_back(std::shared_ptr<Deferred>(new Deferred{stream, ++stream.steps, std::move(start), name,
                                                             std::move(accesses), std::move(ready), std::move(work)}));
  stream.end.after = {deferred_.back()};
  return deferred_.back();
}

std::optional<Point> Gpu::end_of(Deferred& deferred) {
  const std::lock_guard lock(deferred.mutex);
  if (deferred.end) return deferred.end;
  std::optional<Point> start = settled(deferred.start);
  if (!start) return std::nullopt;
  if (!deferred.needed) deferred.needed = deferred.ready();
  const std::optional<Point> needed = deferred.needed ? settled(*deferred.needed) : std::nullopt;
  if (!needed) return std::nullopt;
  start->time = std::max(start->time, needed->time);
  join(start->seen, needed->seen);
  deferred.end =
      execute(deferred.stream, deferred.step, std::move(*start), deferred.name, deferred.accesses, deferred.work);
  return deferred.end;
}

std::optional<Point> Gpu::settled(const Point& point) {
  Point result{point.time, point.seen, {}};
  for (const auto& each : point.after) {
    const std::optional<Point> end = end_of(*each);
    if (!end) return std::nullopt;
    result.time = std::max(result.time, end->time);
    join(result.seen, end->seen);
  }
  return result;
}

Point Gpu::settle(const Point& point) {
  constexpr Time limit = 120'000'000'000;
  const Time deadline = now() + limit;
  while (true) {
    if (std::optional<Point> result = settled(point)) return *result;
    if (now() > deadline) fault("a stream waits for a message that nobody sends");
    try_deferred();
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

void Gpu::try_deferred() {
  std::vector<std::shared_ptr<Deferred>> all;
  {
    const std::lock_guard lock(mutex_);
    all = deferred_;
  }
  std::erase_if(all, [&](const auto& each) { return !end_of(*each); });
  const std::lock_guard lock(mutex_);
  std::erase_if(deferred_, [&](const auto& each) { return std::ranges::find(all, each) != all.end(); });
}

Point Gpu::end_of(Stream& stream) {
  const std::lock_guard lock(mutex_);
  return {std::max(stream.end.time, now()), stream.end.seen, stream.end.after};
}

void Gpu::wait(Stream& stream, const Point& point) {
  const std::lock_guard lock(mutex_);
  stream.end.time = std::max(stream.end.time, point.time);
  join(stream.end.seen, point.seen);
  stream.end.after.insert(stream.end.after.end(), point.after.begin(), point.after.end());
}

bool Gpu::is_reached(const Point& point) {
  const std::optional<Point> known = settled(point);
  if (!known || now() < known->time) return false;
  const std::lock_guard lock(mutex_);
  join(host_has_seen_, known->seen);
  return true;
}

void Gpu::await(const Point& point) {
  const Point known = settle(point);
  while (!is_reached(known)) sleep_until(known.time);
}

std::optional<Time> Gpu::time_of(const Point& point) {
  const std::optional<Point> known = settled(point);
  return known ? std::optional(known->time) : std::nullopt;
}

void Gpu::await_all() {
  std::vector<Stream*> streams;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& each : streams_) streams.push_back(each.get());
  }
  for (Stream* const each : streams) await(end_of(*each));
}

void* Gpu::allocate(std::size_t size) {
  const std::lock_guard lock(mutex_);
  if (size > bytes - used_) return nullptr;
  auto* const data = static_cast<std::byte*>(::operator new(std::max<std::size_t>(size, 1), alignment));
  memory_.emplace(data, size);
  used_ += size;
  return data;
}

void Gpu::free(void* data) {
  const std::lock_guard lock(mutex_);
  const auto found = memory_.find(static_cast<const std::byte*>(data));
  if (found == memory_.end()) fault("memory is freed that is not there");
  log_.forget(data, found->second);
  used_ -= found->second;
  memory_.erase(found);
  ::operator delete(data, alignment);
}

std::size_t Gpu::free_bytes() {
  const std::lock_guard lock(mutex_);
  return bytes - used_;
}

bool Gpu::owns(const void* data) {
  const std::lock_guard lock(mutex_);
  const auto* const at = static_cast<const std::byte*>(data);
  const auto next = memory_.upper_bound(at);
  if (next == memory_.begin()) return false;
  const auto& [begin, size] = *std::prev(next);
  return at < begin + size;
}

}  // namespace dualpipe::test
