// Which values the points of a grid have, by their numbers. Private to sim/sweep.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dualpipe/sim/sweep/sweep.h"

namespace dualpipe::detail::sweep {

// How the GPUs of a cluster are shared there, and what that makes the parts of the model cost.
struct Layout {
  int tensor = 1;
  int data = 1;
  ModelCosts costs;
  double flops = 0;  // of a micro-batch of one copy
};

// Ranks and micro-batches.
struct Place {
  int ranks = 1;
  std::int64_t micro_batches = 1;
  std::shared_ptr<const Layout> layout;  // of a cluster
};

// Those that its GPUs can have, the smallest t first, then the smallest P. Throws InputError where there is none.
[[nodiscard]] std::vector<Place> places_of(const SweepCluster& cluster, const std::vector<int>& ranks,
                                           const MachineCosts& machine);

// A schedule of the catalog, with those chunks and the like that it takes; or of a file, lowered.
struct Variant {
  std::string name;
  const Family* family = nullptr;
  Shape shape;
  std::shared_ptr<const Program> program;

  [[nodiscard]] bool is_at(const Place& place) const {
    return !program || (shape.ranks == place.ranks && shape.micro_batches == place.micro_batches);
  }
};

// Whether points that differ in it alone have stages of the same costs.
[[nodiscard]] bool leaves_stages(std::string_view axis);

class Axes {
 public:
  explicit Axes(const SweepGrid& grid);

  struct Values {
    const Place* place;
    const Variant* variant;
    std::vector<std::size_t> of_axis;  // which value, by axis of the grid
    // Points of the same number have the same program, and stages of the same costs, unless it is planned for costs.
    std::size_t prepared;
  };
  [[nodiscard]] Values at(std::size_t point) const;
  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  void add_places(const SweepGrid& grid);
  void add_variants(const SweepGrid& grid);
  void add_family(const std::string& name, const SweepGrid& grid);
  void add_pairs();

  std::vector<Place> places_;
  std::vector<Variant> variants_;
  std::vector<std::pair<const Place*, const Variant*>> pairs_;  // empty: each variant is at each place
  std::vector<std::size_t> lengths_;                            // by axis
  std::vector<std::size_t> order_;  // of the axes, the quickest last: what leaves the stages as they are
  std::size_t of_stages_ = 1;       // combinations of the axes that do not
  std::size_t of_machine_ = 1;      // of those that do
  std::size_t size_ = 0;
};

}  // namespace dualpipe::detail::sweep
