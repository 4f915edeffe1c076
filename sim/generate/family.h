// A family of schedules: all that is known of it, and what generate() makes a schedule from. Each is defined in a file
// of its own, below its drawing; the catalog lists them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/generate/request.h"
#include "dualpipe/sim/schedule/placement.h"
#include "dualpipe/sim/schedule/schedule_builder.h"

namespace dualpipe {

// What the published formulas for the bubble are written in.
enum class Symbol : std::uint8_t {
  ranks,
  micro_batches,
  forward,
  backward,
  input_gradient,
  weight_gradient,
  overlapped
};

// And what these stand for. Durations are those of one stage, B and I with what they recompute.
struct SymbolValues {
  std::int64_t p = 1;   // ranks
  std::int64_t m = 1;   // micro-batches, over all chains
  std::int64_t pp = 1;  // stages of a chain
  std::int64_t chains = 1;
  Time f = 0, b = 0, i = 0, w = 0;
  Time overlapped = 0;  // F&B
};

struct BubbleCondition {
  bool holds;
  std::string_view text;        // "W <= min(F, I)"
  std::vector<Symbol> symbols;  // whose values a reader needs to see why it does not hold
};

// The idle time of the rank that idles most: makespan - busy.
struct BubbleFormula {
  std::string_view text;  // "(P-1)(F+B-2W)"
  // Its value is `count` times `duration`.
  std::int64_t count = 0;
  Time duration = 0;
  std::vector<BubbleCondition> conditions = {};  // beyond those that all formulas have (report/closed_form.h)
  bool by_span = false;                          // it gives span - busy instead
};

struct Family {
  std::string_view name;   // what the command line takes
  std::string_view title;  // one line for people
  std::string_view paper;
  std::string_view rule;      // which shapes it has
  bool takes_chunks = false;  // whether Shape::chunks is free; the same for the next three
  bool takes_group = false;
  bool takes_waves = false;
  bool takes_replicas = false;
  bool splits_backward = false;    // has I and W ops, in some shapes at least
  bool has_pairs = false;          // has F&B, in some shapes at least
  bool is_automatic = false;       // its order depends on the costs and the memory limit of a request, too
  bool is_in_first_table = false;  // is among those that are compared where nobody says which: DeepSeek's table

  // Where the stages are. Called with any number of ranks, also one that the rule has not.
  Placement (*placement)(const Shape& shape) = nullptr;
  // The broken rule, and the nearest shapes that work; empty where the shape fits. Called once counts and chunks are as
  // every family needs them. Unset: all such shapes fit.
  std::string (*misfit)(const Shape& shape) = nullptr;
  // Adds all ops, for a shape that fits, to a builder that has the placement.
  void (*order)(const Request& request, ScheduleBuilder& builder) = nullptr;
  // Unset: none is published.
  BubbleFormula (*bubble)(const SymbolValues& values) = nullptr;

  // Those of any shape that differs in ranks and micro-batches alone.
  [[nodiscard]] int chains(const Shape& shape) const { return on_one_rank(shape).chains(); }
  // Over all chains.
  [[nodiscard]] int stages_per_rank(const Shape& shape) const { return on_one_rank(shape).stages(); }

 private:
  [[nodiscard]] Placement on_one_rank(Shape shape) const {
    shape.ranks = 1;
    return placement(shape);
  }
};

// A number of a Shape that is free in some families only.
struct Parameter {
  std::string_view name;    // "chunks"
  std::string_view noun;    // "number of chunks"
  std::string_view symbol;  // "V"
  std::string_view what;    // one line for people
  int most;
  int Shape::*value;
  bool Family::*is_taken;
};

}  // namespace dualpipe
