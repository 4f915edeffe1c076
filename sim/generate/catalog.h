// The schedules that have a name.
//
// To add one: write a free function in a file of its own, with its drawing, its paper and its shape rule, and one line
// in catalog.cpp. Tests, tables, benchmarks and the command line take it from there.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "dualpipe/sim/schedule/schedule.h"

namespace dualpipe {

struct Shape {
  int ranks = 1;                   // P
  std::int64_t micro_batches = 1;  // M, the total over chains, as DeepSeek counts it
  int chunks = 1;                  // V, stages per rank, of the families whose rank holds a free number of them

  friend bool operator==(const Shape&, const Shape&) = default;
};

struct Family {
  std::string_view name;   // what the command line takes
  std::string_view title;  // one line for people
  std::string_view paper;
  std::string_view rule;  // which shapes it has
  bool takes_chunks;      // whether Shape::chunks is free; else it must be 1
  int stages_per_rank;    // where it is not free; over all chains
  int chains;
  bool splits_backward;  // has I and W ops
  Schedule (*generate)(const Shape&);
};

[[nodiscard]] std::span<const Family> catalog();

// Throws InputError that lists the names there are.
[[nodiscard]] const Family& family(std::string_view name);

// Throws ShapeError that names the rule and the nearest shapes that work.
[[nodiscard]] Schedule generate(std::string_view name, const Shape& shape);

}  // namespace dualpipe
