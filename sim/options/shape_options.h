// A shape as people say it.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dualpipe/sim/generate/catalog.h"

namespace dualpipe {

// How many stages each rank has where a schedule takes chunks, and nobody says how many.
inline constexpr int default_chunks = 2;

// "--chunks".
[[nodiscard]] std::string option_of(const Parameter& parameter);

// Values stay text until they are used: a wrong one is bad input, not wrong usage. Empty: not given.
struct ShapeOptions {
  std::string ranks;
  std::string micro_batches;
  std::vector<std::string> values = std::vector<std::string>(parameters().size());  // in this order

  [[nodiscard]] bool given() const;
  [[nodiscard]] bool has_chunks() const;
  // Throws UsageError where a parameter is given that none of these schedules, names of the catalog, takes.
  void check_used(std::span<const std::string> families) const;
  // What else is given is meant for another schedule that is looked at beside this one.
  void keep_taken_by(const std::string& name);
  // What is not given is taken from `defaults`; without, ranks and micro-batches must be. Throws InputError.
  [[nodiscard]] Shape shape(const std::optional<Shape>& defaults = std::nullopt) const;
};

}  // namespace dualpipe
