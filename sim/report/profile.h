// Where the time of a run went, rank by rank.
//
//   rank     F     B     W  F&B  before  after  waiting for     transfer  launch
//      0  4 ms  8 ms   0 s  0 s     0 s    0 s  rank 1: 5.9 ms       0 s  100 µs
//      1  4 ms  8 ms   0 s  0 s    1 ms   2 ms  rank 0: 3 ms         0 s    0 s
//
// A rank's idle time is: before its first op and after its last, where the pipeline fills and drains; waiting for the
// rank whose op makes its input; the transfer of the input; and launch, whatever is left between two ops.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

struct RankProfile {
  std::array<Time, 5> busy{};     // F, B, I, W, F&B
  Time before = 0;                // its first op
  Time after = 0;                 // its last op
  std::vector<Time> waiting_for;  // by rank
  Time transfer = 0;
  Time launch = 0;

  friend bool operator==(const RankProfile&, const RankProfile&) = default;
};

struct Profile {
  std::vector<RankProfile> ranks;
  // Of the pairs whose stages also run F and B by themselves: how long the pairs took, and how long their ops would
  // have taken one after the other, by the medians of those F and B.
  Time overlapped = 0;
  Time apart = 0;

  friend bool operator==(const Profile&, const Profile&) = default;
};

// The timeline must have recorded spans.
[[nodiscard]] Profile profile(const Program& program, const Timeline& timeline);

[[nodiscard]] std::string to_text(const Profile& profile);

}  // namespace dualpipe
