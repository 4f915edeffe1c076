// A Gantt chart as one self-contained SVG file: a row per rank, time to the right. It follows the reader's light or
// dark theme, and its colours (Okabe and Ito's) can be told apart by colour-blind readers.
//
// A colour per pass; a rank's later stages (the other chain, the second half of a V, the next chunks) in paler shades.
// An F&B pair is one box, its forward above its backward. Boxes hold the micro-batch where it fits, and a tooltip with
// the op's text and times. Idle time is hatched.
//
// The file stays moderate (about 5 MB at most, up to a thousand ranks): above 10,000 ops the time axis is cut into
// columns, each drawn as the pass that fills most of it, without numbers and tooltips; above 32 ranks rows get thinner.
#pragma once

#include <iosfwd>

#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

// The timeline must have recorded spans. Times are relative to the start of the first op.
void write_gantt_svg(std::ostream& out, const Program& program, const Timeline& timeline);

}  // namespace dualpipe
