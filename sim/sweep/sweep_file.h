// A sweep's lines in a file, which a run that was interrupted goes on with.
//
// While it is written the file is called PATH.partial. Whatever ends the run, a kill included, leaves whole lines there
// and at most one that is not; when all are there it gets its name. So PATH is complete wherever it is.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

#include "dualpipe/sim/sweep/sweep.h"

namespace dualpipe {

struct SweepFileOptions {
  SweepShard shard = {};
  unsigned threads = 0;  // 0: one for every core
  bool resume = false;   // go on with what is there of the same grid and shard; without, a PATH.partial is an error
};

// Calls `progress(done)` with the number of points that are in the file, first with those that were there already.
// Throws InputError that names the file and the system's reason, another grid's file, or a run that writes it now.
void write_sweep_file(const std::string& path, const Sweep& sweep, const SweepFileOptions& options,
                      const std::function<void(std::size_t done)>& progress = {});

// What the first line of a file says.
struct SweepHeader {
  std::size_t points = 0;  // of the grid
  SweepShard shard = {};
  std::string grid;  // JSON (grid.h)

  friend bool operator==(const SweepHeader&, const SweepHeader&) = default;
};
// Throws InputError that names `source`.
[[nodiscard]] SweepHeader parse_sweep_header(std::string_view line, const std::string& source);
// The number of a line's point; throws the same.
[[nodiscard]] std::size_t point_of_line(std::string_view line, const std::string& source, std::size_t line_number);

// A row of CSV of a line, with its end: the values of these columns, empty where it has none.
[[nodiscard]] std::string csv_row(const std::vector<std::string>& columns, std::string_view line);
[[nodiscard]] std::string csv_header(const std::vector<std::string>& columns);

// The files of one grid's shards, or of any parts of it, as one: `take` gets its header, and the lines of all points in
// order, each with its end. The same bytes as one run of all. Throws InputError that names points that are missing or
// there twice, the shards to run again, a file of another grid, or one that was interrupted.
void merge_sweep_files(const std::vector<std::string>& paths, const std::function<void(std::string_view line)>& take);

}  // namespace dualpipe
