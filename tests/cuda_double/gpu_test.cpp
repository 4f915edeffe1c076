// The GPU that the host stands for finds what it is there to find.
#include "tests/cuda_double/gpu.h"

#include <algorithm>
#include <array>
#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "dualpipe/exec/replay/clock.h"

namespace dualpipe::test {

using detail::replay::now;

namespace {

constexpr std::size_t streams = 3;

// The same as AccessLog, byte by byte.
class Bytes {
 public:
  [[nodiscard]] bool is_race(std::size_t begin, std::size_t end, bool writes, const AccessLog::Step& step,
                             const Clock& seen) {
    bool race = false;
    for (std::size_t i = begin; i < end; ++i) {
      Byte& byte = bytes_[i];
      race = race || byte.written > seen[byte.writer];
      for (std::size_t stream = 0; writes && stream < streams; ++stream)
        race = race || byte.read[stream] > seen[stream];
      if (writes) byte = {step.stream, step.number, {}};
      if (!writes) byte.read[step.stream] = step.number;
    }
    return race;
  }

 private:
  struct Byte {
    std::size_t writer = 0;
    std::uint32_t written = 0;  // by the writer's clock
    std::array<std::uint32_t, streams> read{};
  };
  std::map<std::size_t, Byte> bytes_;
};

BOOST_AUTO_TEST_SUITE(cuda_double_gpu)

// Random work of streams that see some of each other's, until the first race.
BOOST_AUTO_TEST_CASE(races_are_those_of_the_bytes) {
  std::mt19937 random(1);
  const auto below = [&](std::size_t limit) { return static_cast<std::size_t>(random() % limit); };
  const std::vector<std::byte> memory(64);
  int races = 0;
  int steps = 0;
  for (int run = 0; run < 3000; ++run) {
    AccessLog log;
    Bytes bytes;
    std::array<Clock, streams> clocks;
    clocks.fill(Clock(streams));
    for (bool race = false; !race && steps < 1'000'000; ++steps) {
      const std::size_t stream = below(streams);
      Clock& seen = clocks[stream];
      if (below(3) > 0) {
        const Clock& other = clocks[below(streams)];
        for (std::size_t i = 0; i < streams; ++i) seen[i] = std::max(seen[i], other[i]);
      }
      const AccessLog::Step step{stream, ++seen[stream], "work"};
      const std::size_t begin = below(memory.size());
      const std::size_t size = below(memory.size() - begin + 1);
      const bool writes = below(4) == 0;
      const std::string what = log.note({&memory[begin], size, writes}, step, seen);
      race = bytes.is_race(begin, begin + size, writes, step, seen);
      BOOST_REQUIRE((what != "") == race);
      races += race ? 1 : 0;
    }
  }
  BOOST_TEST(races > 1000);
  BOOST_TEST(steps > 3 * races);
}

BOOST_AUTO_TEST_CASE(forgotten_memory_is_as_new) {
  AccessLog log;
  const std::vector<std::byte> memory(64);
  BOOST_TEST(log.note({memory.data(), 64, true}, {0, 1, "a"}, {1, 0}) == "");
  log.forget(&memory[16], 16);
  BOOST_TEST(log.note({&memory[16], 16, false}, {1, 1, "b"}, {0, 1}) == "");
  BOOST_TEST(log.note({&memory[8], 16, false}, {1, 2, "b"}, {0, 2}) ==
             "b on stream 1 reads memory that a on stream 0 wrote, and has not waited for it");
}

BOOST_AUTO_TEST_CASE(streams_run_side_by_side_unless_they_wait) {
  Gpu& gpu = Gpu::only();
  std::array<Stream*, 3> each{};
  for (Stream*& stream : each) stream = &gpu.make_stream(Gpu::multiprocessors, 0);
  const std::byte memory{};
  const std::vector<Access> reads = {{&memory, 100'000'000, false}};  // 0.4 s, of what nobody looks at
  const Time before = now();
  for (Stream* const stream : {each[0], each[1]}) gpu.run(*stream, "work", reads, [] {});
  const Time queued = now();
  const Point end = gpu.end_of(*each[0]);
  BOOST_TEST(!gpu.is_reached(end));
  BOOST_TEST(end.time > queued);
  BOOST_TEST(gpu.end_of(*each[1]).time - end.time <= queued - before);
  BOOST_TEST(gpu.end_of(*each[2]).time < end.time);
  gpu.wait(*each[2], end);
  BOOST_TEST(gpu.end_of(*each[2]).time >= end.time);
  gpu.await(end);
  BOOST_TEST(gpu.is_reached(end));
  BOOST_TEST(now() >= end.time);
}

BOOST_AUTO_TEST_CASE(a_part_of_the_multiprocessors_takes_longer) {
  Gpu& gpu = Gpu::only();
  const std::vector<std::byte> memory(1'000'000);
  const std::vector<Access> reads = {{memory.data(), memory.size(), false}};
  const auto time_on = [&](int parts) {
    Stream& stream = gpu.make_stream(parts, 0);
    const Time before = now();
    gpu.run(stream, "work", reads, [] {});
    return gpu.end_of(stream).time - before;
  };
  BOOST_TEST(time_on(Gpu::multiprocessors / 4) >= 4 * 4'000'000);
}

BOOST_AUTO_TEST_CASE(memory_has_an_end) {
  Gpu& gpu = Gpu::only();
  const std::size_t before = gpu.free_bytes();
  BOOST_TEST(gpu.allocate(before + 1) == nullptr);
  void* const data = gpu.allocate(1000);
  BOOST_TEST(gpu.owns(static_cast<std::byte*>(data) + 999));
  BOOST_TEST(!gpu.owns(static_cast<std::byte*>(data) + 1000));
  BOOST_TEST(gpu.free_bytes() == before - 1000);
  gpu.free(data);
  BOOST_TEST(!gpu.owns(data));
  BOOST_TEST(gpu.free_bytes() == before);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
