// What a report was computed from, as people read it above the figures:
//
//   of one micro-batch, in 16 parts of the model: F 3 to 5.2 ms, B 6 to 10.4 ms
//     (I 3 to 5.2 ms, W 3 to 5.2 ms), F&B = F + B (not measured)
//   communication: latency, 20 µs a message
//   memory: M_B 1.2 GB, M_W 800 MB, parameters 4 GB
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/report/text_table.h"

namespace dualpipe {

// Lines of at most 80 columns, each with its end. `of`: what an entry is the costs of, as "a stage", or "16 parts of
// the model". What no entry has is left out. `has_pairs`: F&B matters.
[[nodiscard]] std::string costs_text(std::span<const StageCosts> entries, std::string_view of,
                                     const MachineCosts& machine, bool has_pairs, ByteUnits units = ByteUnits::binary);

// Of the stages of a schedule: "a stage", or "each of its 8 stages" where these are given one by one.
[[nodiscard]] std::string costs_text(const Costs& costs, bool has_pairs, ByteUnits units = ByteUnits::binary);

}  // namespace dualpipe
