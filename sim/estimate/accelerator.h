// What accelerators can do, from their makers' data sheets.
#pragma once

#include <algorithm>
#include <span>
#include <string_view>

#include "dualpipe/sim/costs/units.h"

namespace dualpipe {

struct Accelerator {
  std::string_view name;   // "h100"
  std::string_view title;  // "NVIDIA H100 SXM5 80 GB"
  double flops_16bit = 0;  // per second, dense products of bf16 or fp16
  double flops_8bit = 0;   // of fp8; 0: it has none
  Bytes memory = 0;
  double memory_bandwidth = 0;  // bytes per second
  double link_bandwidth = 0;    // to all others of its node together, bytes per second in one direction
  double peer_bandwidth = 0;    // to one of them: as much through a switch, and less where each has a link of its own
  int per_node = 8;
  double network_bandwidth = 0;  // to other nodes: of the adapter that its maker's reference system has for each
  std::string_view source;

  // Of each of so many in a node, more than one, that all exchange with one another.
  [[nodiscard]] double bandwidth_among(int count) const {
    return std::min(link_bandwidth, (count - 1) * peer_bandwidth);
  }
};

[[nodiscard]] std::span<const Accelerator> accelerators();
// Throws InputError that lists the names, and says which may have been meant.
[[nodiscard]] const Accelerator& accelerator(std::string_view name);

}  // namespace dualpipe
