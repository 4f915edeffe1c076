// What was estimated, for people: the parts side by side, then each figure with its formula.
//
//   llama: 80 layers, 70.55 B parameters; 1 x 8192 tokens in a micro-batch
//   h100: NVIDIA H100 SXM5 80 GB, 989.4 TFLOP/s, 3.35 TB/s, …
//
//   part       count  parameters        F        I        W       M_B       M_W
//   embedding      1     1.051 B  39.7 µs     0 ns  49.6 µs  64.0 KiB  …
//   …
//
//   layer: figures of one rank
//     F linear  14.02 TFLOP  s b / (t c) x (2 x 855638016 weights)
//   …
#pragma once

#include <string>

#include "dualpipe/sim/estimate/estimate.h"
#include "dualpipe/sim/report/text_table.h"

namespace dualpipe {

// "14.02 TFLOP", "70.55 B": a number in the largest unit in which it is at least 1, with at most four digits.
[[nodiscard]] std::string format_number(double value, std::string_view unit = "");

[[nodiscard]] std::string to_text(const Estimate& estimate, const TextLayout& layout = {});

// "NVIDIA H100 SXM5 80 GB: 989.4 TFLOP/s, …", a table of all, with its sources.
[[nodiscard]] std::string accelerators_text();

}  // namespace dualpipe
