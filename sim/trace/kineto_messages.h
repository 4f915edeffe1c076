// Sends and receives in a file of torch.profiler's. Private to sim/trace.
#pragma once

#include <cstddef>
#include <vector>

#include "dualpipe/sim/trace/event_reader.h"
#include "dualpipe/sim/trace/matched_messages.h"

namespace dualpipe::detail::trace {

// Of gloo an operator, c10d::send or c10d::recv_, issues the transfer, with the peer in "Concrete Inputs" (recorded
// with record_shapes); it has ended when the range gloo:send or gloo:recv has, of which the k-th belongs to the k-th
// operator. Of NCCL each is a kernel with "Collective name" and "Dst Rank" or "Src Rank"; several in one kernel (a
// batch) do not say their peers, and are no messages here.
class KinetoMessages {
 public:
  // Of a rank, of so many: of two the peer is the other one, recorded or not.
  KinetoMessages(int rank, int ranks) : rank_(rank), ranks_(ranks) {}

  // Whether there may be more of the event than its name says; anything else is stepped over.
  void take(const TraceEvent& event);
  // All that was taken, by start.
  [[nodiscard]] std::vector<RankMessage> messages() &&;
  // Whether there are any whose peer was not recorded.
  [[nodiscard]] bool lacks_peers() const { return lacks_peers_; }

 private:
  struct Transfer {
    Span span;
    Bytes bytes = 0;
  };
  struct Ends {
    std::vector<RankMessage> operators;
    std::vector<Transfer> transfers;
  };

  void take_operator(const TraceEvent& event, bool is_send);
  void take_transfer(const TraceEvent& event, bool is_send);
  void take_kernel(const TraceEvent& event);
  void check_count(const TraceEvent& event);

  int rank_;
  int ranks_;
  bool lacks_peers_ = false;
  Ends sends_;
  Ends receives_;
  std::vector<RankMessage> kernels_;
  std::size_t count_ = 0;
};

}  // namespace dualpipe::detail::trace
