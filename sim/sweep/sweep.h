// The points of a grid, evaluated: a line of JSON for each, in the order of their numbers, whatever the threads.
//
//   {"format":"dualpipe-sweep","version":1,"points":8,"grid":{…}}
//   {"point":0,"schedule":"1f1b","ranks":8,"microbatches":16,"latency":"0","stages":8,"makespan_ns":69000000,…}
//   {"point":1,…}
//
// The first line says what the sweep is of, so that a file of lines can be resumed, merged with the other shards of its
// grid, and reported on. A point whose schedule has no such shape, would hang, or cannot keep the memory limit has
// "left_out" with the reason in the place of the figures.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/generate/request.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/sweep/grid.h"

namespace dualpipe {

// One of `count` parts of a sweep, counted from 1: it has the points k with k mod count = index - 1.
struct SweepShard {
  std::size_t index = 1;
  std::size_t count = 1;

  friend bool operator==(const SweepShard&, const SweepShard&) = default;
  [[nodiscard]] std::size_t size(std::size_t points) const { return (points + count - index) / count; }
  [[nodiscard]] std::size_t point(std::size_t place) const { return place * count + index - 1; }
};
// "2/8".
[[nodiscard]] std::string to_text(const SweepShard& shard);
[[nodiscard]] SweepShard parse_shard(std::string_view text);

// What a point simulates.
struct SweepRun {
  std::shared_ptr<const Program> program;
  Costs costs;
};

class Sweep {
 public:
  // Throws InputError: an unknown schedule or axis, a value that no point could have, no or too many points.
  explicit Sweep(SweepGrid grid);
  ~Sweep();
  Sweep(const Sweep&) = delete;
  Sweep& operator=(const Sweep&) = delete;

  [[nodiscard]] const SweepGrid& grid() const;
  [[nodiscard]] std::size_t size() const;
  // Of all points, by name: what a line, and a row of CSV, may have.
  [[nodiscard]] const std::vector<std::string>& columns() const;
  // Of a file of all points, or of a shard; with its end.
  [[nodiscard]] std::string header(const SweepShard& shard = {}) const;
  // What a point of a schedule of the catalog asks for.
  [[nodiscard]] Request request(std::size_t point) const;
  // Throws InputError where the point's values do not fit together.
  [[nodiscard]] SweepRun run_of(std::size_t point) const;

  // The lines of some points of a shard, by their places in it, with their ends.
  [[nodiscard]] std::string lines(const SweepShard& shard, std::size_t begin, std::size_t end) const;
  // All from place `begin` on, on so many threads (0: one for every core). `take` is called with the lines of some
  // places after the other, in order; what it throws ends the sweep, and is thrown here.
  void run(const SweepShard& shard, std::size_t begin, unsigned threads,
           const std::function<void(std::string_view lines, std::size_t count)>& take) const;

 private:
  struct Prepared;
  class PreparedCache;
  class Points;
  std::unique_ptr<const Points> points_;
};

}  // namespace dualpipe
