// A Gantt chart as one self-contained SVG file: a row per rank, time to the right. It follows the reader's light or
// dark theme, and its colours (Okabe and Ito's) can be told apart by colour-blind readers.
//
// A colour per pass; a rank's later stages (the other chain, the second half of a V, the next chunks) in paler shades.
// Idle time is hatched. What a rank's part of the picture is made of depends on the room there is, and on how many ops
// there are, for the file stays below 1 MB (up to a thousand ranks):
//
//   boxes     one for each op, with its micro-batch where that fits, and a tooltip with its text and times. An F&B pair
//             is one box, its forward above its backward. Thin lines are messages, where these take time
//   stripes   the same without numbers, tooltips and lines; a pair has a colour of its own. From some thousands of ops
//   bands     where ops are narrower than two pixels, on average: the row is cut where ops begin, into pieces of three
//             pixels or more, and each piece is filled from below by what runs in it. Areas are shares of time
//
// With an explanation idle time is hatched in a colour for each cause, with a tooltip for each piece where ops are
// boxes, and what runs on the critical path has an outline, with lines from rank to rank.
//
// A number is left out of all ops of a pass and rank where it would not fit into one of them. A rank that runs faster
// or slower than others says so. Above 32 ranks rows get thinner.
#pragma once

#include <iosfwd>
#include <optional>
#include <string>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

struct SvgOptions {
  int width = 0;                    // of the picture, in pixels; 0: as wide as its ops need, 700 to 2500
  std::string title = {};           // instead of the schedule's name
  std::optional<Span> window = {};  // only this part, since the start of the run's first op
  // Below each rank what it holds over time: bytes, or live activations where the costs have no bytes. All ranks to one
  // scale. Of what changes within a pixel the most is drawn.
  bool memory = false;
  const Explanation* explanation = nullptr;  // of this run
};

// The timeline must have recorded spans of ops; messages are drawn where it has those of messages, too. Times are
// relative to the start of the first op. Throws InputError for a window that the run does not reach, and where the
// costs do not fit the program.
void write_gantt_svg(std::ostream& out, const Program& program, const Costs& costs, const Timeline& timeline,
                     const SvgOptions& options = {});

}  // namespace dualpipe
