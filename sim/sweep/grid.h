// What a sweep goes through: every schedule, in every shape, with every value of each axis. A point is one of each.
//
//   schedules 1f1b, zb1p   ranks 8   micro-batches 16, 32   latency 0, 20us     8 points:
//   0: 1f1b, 8, 16, 0      1: 1f1b, 8, 16, 20us      2: zb1p, 8, 16, 0      …      7: zb1p, 8, 32, 20us
//
// Points are numbered: places (ranks, micro-batches) first, then schedules with their chunks and the like, then axes;
// the last axis is the quickest. Which values a point has depends on its number and the grid alone. The schedule of a
// file has a shape of its own, and is there at the place of this shape alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "dualpipe/sim/costs/model_costs.h"
#include "dualpipe/sim/estimate/estimate.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// Something that varies, and its values as text: a cost (set_cost.h), or
//
//   memory-limit   "40GB"; automatic schedules are planned for it, of the others it is said whether they fit
//   recompute      "none" or "full", where the costs know both
//   cut            "3-2-3": how many parts of the model each stage of a chain gets; "best": stage_costs()
//   speed          of ranks: "0.9" of each; "0.9@3" of rank 3, and 1 of the others; "1-1-0.9-1" one after the other
//   straggler      "0.8": one rank is so fast as it would be otherwise, another one for each seed (straggler_of()).
//                  No schedule is planned for it
struct SweepAxis {
  std::string name;
  std::vector<std::string> values;

  friend bool operator==(const SweepAxis&, const SweepAxis&) = default;
};

// A schedule of a file, which every file of the sweep's lines has a copy of.
struct SweepSchedule {
  std::string name;  // as the grid's `schedules` have it; none of the catalog's
  std::variant<Schedule, Program> schedule;

  friend bool operator==(const SweepSchedule&, const SweepSchedule&) = default;
};

// Instead of ranks and micro-batches: every way in which so many GPUs can share the work of a step, t of them each
// layer, P ranks the layers, and d copies the batch, t x c x P x d = gpus, c as the estimate has it. t is at most the
// GPUs of a node, and divides the heads; d micro-batches divide the batch. Costs are estimated for each t and d.
struct SweepCluster {
  int gpus = 1;
  std::int64_t global_batch = 1;  // sequences of a step
  EstimateRequest estimate = {};

  friend bool operator==(const SweepCluster&, const SweepCluster&) = default;
};

struct SweepGrid {
  std::vector<std::string> schedules = {};  // of the catalog, or of `files`; empty: all of the catalog
  std::vector<SweepSchedule> files = {};
  // P, and M over all chains. Both empty: the shapes that the files have.
  std::vector<int> ranks = {};
  std::vector<std::int64_t> micro_batches = {};
  std::vector<std::vector<int>> parameters = {};  // chunks and the like, by parameters(); empty: as a Shape has them
  std::vector<SweepAxis> axes = {};
  GivenCosts costs = {};                     // of a model, or one entry for the share of every rank (of_model())
  std::optional<SweepCluster> cluster = {};  // then ranks, if there are any, are those that P may be
  std::optional<double> tokens = {};         // of one micro-batch

  friend bool operator==(const SweepGrid&, const SweepGrid&) = default;
};

inline constexpr std::size_t sweep_points_max = 1'000'000'000;

// Those that a grid may have besides the costs.
[[nodiscard]] std::vector<std::string> sweep_axis_names();

// One line of JSON without its end; reads back as the same grid. Throws InputError that names `source`.
[[nodiscard]] std::string to_json_line(const SweepGrid& grid);
[[nodiscard]] SweepGrid grid_of_json(const std::string& text, const std::string& source);

}  // namespace dualpipe
