// Which shapes can be generated at all. Private to sim.
#pragma once

#include "dualpipe/sim/generate/family.h"

namespace dualpipe::detail::generate {

// At least one rank, micro-batch and chunk, no more of them than an op can number. Throws ShapeError.
void check_counts(const Family& family, const Shape& shape);
// The rules of every family: those, chunks only where it takes them, no more ops than a schedule can have; and its own.
// Throws ShapeError.
void check_shape(const Family& family, const Shape& shape);

}  // namespace dualpipe::detail::generate
