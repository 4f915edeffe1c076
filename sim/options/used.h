// What of an option's values matters to what runs.
#pragma once

#include <span>
#include <string>

#include "dualpipe/sim/generate/family.h"
#include "dualpipe/sim/schedule/schedule.h"

namespace dualpipe {

// The names in the catalog of those that have it: "interleaved or looped-bfs".
[[nodiscard]] std::string families_with(bool Family::*feature);

// What the schedules that are to run have. Costs of anything else would do nothing.
struct Used {
  bool pairs = false;             // F&B
  bool weight_gradients = false;  // W by itself
  bool reduces = false;           // gradients of shared weights, and shows when that ends

  void add(const Used& other);
};
[[nodiscard]] Used used_by(const Schedule& schedule);
// Of names of the catalog. Throws InputError where there is no such schedule.
[[nodiscard]] Used used_by(std::span<const std::string> families);

}  // namespace dualpipe
