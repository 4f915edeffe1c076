// A Gantt chart for a terminal: a row per rank, time to the right.
//
//   dualpipe, 4 ranks, 8 micro-batches, F = I = W = 1 ms, F&B = 2 ms, at 80 columns:
//
//   time    |0             |5 ms          |10 ms         |15 ms         |20 ms
//   rank 0  F0 F1 F2 f0 i0 w0 f1 F3&b1 .  f2&B0 b2 -- f3&B1 b3 -- I2 W2 I3 W3
//   rank 1  .  F0 f0 F1 f1 F2 b0 -- f2&B0 F3&b1 f3&B1 b2 -- B2 -- i3 I3 w3 W3
//   rank 2  .  f0 F0 f1 F1 f2 B0 -- F2&b0 f3&B1 F3&b1 B2 -- b2 -- I3 i3 W3 w3
//   rank 3  f0 f1 f2 F0 I0 W0 F1 f3&B1 .  F2&b0 B2 -- F3&b1 B3 -- i2 w2 i3 w3
//           F forward   B backward (full)   I input gradient   W weight gradient
//           F&B pair   -- goes on   . idle   lower case: second chain   one cell: 1 ms
//
// `F3` is the forward of micro-batch 3, "--" that it goes on, `F3&b1` an F&B pair, '.' idle time. The chart takes the
// first of these forms that fits the width:
//
//   1. every op with its label, and its stage where a rank holds several:  0F3  7b1
//   2. the same without stages; lower case is the rank's second stage:     F3   b1
//   3. dense: no blanks between ops, labels only where they fit:           F3F4--&-B-
//
// Forms 1 and 2 need all times to be multiples of a common unit, and draw one cell per unit. So does form 3 where a
// unit takes a column or more. Else a column may be as long as many ops, and shows one of them, or idle time: such that
// each row has as many columns of F, B, I, W, F&B and idle time as the rank's time has of them, to less than one
// column, and so has any part of the row that begins at its left end.
//
// With an explanation idle time has a mark for each cause, which the legend tells, and what of a rank's row is on the
// critical path is underlined with '^': each column of it in one row at most.
//
// A fourth form, for readers that are programs and terminals that know ASCII alone, is asked for. It is the third
// without labels: a letter where an op begins, '-' in the columns where it goes on:              FF--&-B-
#pragma once

#include <optional>
#include <string>

#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

struct GanttOptions {
  int width = 100;       // no line is longer (but for a very narrow one: the chart takes at least 20 columns)
  bool color = false;    // ANSI escapes for 256 colours, a background per pass
  bool letters = false;  // the fourth form: of each rank's line each column is one of F B I W & . -
  std::optional<Span> window = {};           // only this part, since the start of the run's first op
  const Explanation* explanation = nullptr;  // of this run
};

// The timeline must have recorded spans. Times are relative to the start of the first op. Throws InputError for a
// window that the run does not reach.
[[nodiscard]] std::string gantt(const Program& program, const Timeline& timeline, const GanttOptions& options = {});

}  // namespace dualpipe
