// Faults that are injected into a run, to see that they are found: what makes it slow is known beforehand.
#pragma once

#include <string_view>
#include <vector>

#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe {

// Of ranks and ops; those of links are TransportOptions::slow_links.
struct Faults {
  struct SlowRank {
    int rank = 0;
    double factor = 1;  // its ops take so many times as long

    friend bool operator==(const SlowRank&, const SlowRank&) = default;
  };

  std::vector<SlowRank> ranks;
  std::vector<LateOp> ops;

  friend bool operator==(const Faults&, const Faults&) = default;
};

// "rank:2:1.5" · "op:3B7:8ms" · "link:0-1:5ms", added to what it is of. Throws InputError for what is none of these.
void add_fault(std::string_view text, Faults& faults, TransportOptions& transport);

// Throws InputError where a rank, a link or a stage of them is none of the placement's.
void check(const Faults& faults, const TransportOptions& transport, const Placement& placement);

}  // namespace dualpipe
