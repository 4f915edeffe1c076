// Messages of a run that was measured, and what they say of the links.
#pragma once

#include <span>
#include <vector>

#include "dualpipe/sim/costs/units.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

// What one rank sent and another one received.
struct MeasuredMessage {
  int from = 0;
  int to = 0;
  Bytes bytes = 0;  // 0: not recorded
  Span sent;        // on the sender, from when it was issued to when it had ended there
  Span received;    // on the receiver

  friend bool operator==(const MeasuredMessage&, const MeasuredMessage&) = default;
};

// Messages of one size.
struct MessageTimes {
  Bytes bytes = 0;
  std::vector<Time> times;
};
// By size, of those whose size is known: from when both of its ends were there to its arrival.
[[nodiscard]] std::vector<MessageTimes> times_by_size(std::span<const MeasuredMessage> messages);

// Bytes per second, by least squares over all messages; 0, infinite, where size makes no difference that can be told
// from noise: the middle halves of the smallest and of the largest messages overlap.
[[nodiscard]] double bandwidth_of(std::span<const MessageTimes> sizes);

}  // namespace dualpipe
