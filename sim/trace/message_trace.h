// The messages and reductions of a run, and the arrows from what sends to what receives. Private to sim/trace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/trace/run_context.h"

namespace dualpipe::detail::trace {

class MessageTrace {
 public:
  explicit MessageTrace(const RunContext& run);

  // The slices of a rank, which runs these units, on the next lanes.
  void write_transfers(int rank, std::span<const report::Unit> units);
  // After the slices of all ranks. `compute`: the lane of each rank's ops; of ranks that are not written, any.
  void write_arrows(std::span<const TraceTrack> compute) const;

 private:
  // A send, receive or reduction, where it is in the program.
  struct Transfer {
    std::size_t index = 0;  // in Program::communication
    Op op;
    int rank = 0;
    int peer = 0;  // the rank at the other end; of a reduction its own
    Time issued = 0;
    Span span;
  };

  // The slices of all F, B and I, by what they make. Never iterated.
  struct OpSlice {
    int rank;
    Span span;
  };
  using OpSlices = std::unordered_map<std::uint64_t, OpSlice>;

  [[nodiscard]] static auto lane_order(const Transfer& transfer);
  [[nodiscard]] std::vector<Transfer> transfers_of(int rank, std::span<const report::Unit> units) const;
  void write_link(std::span<const Transfer> transfers);
  [[nodiscard]] std::string link_name(const Transfer& transfer) const;
  void write_transfer(TraceTrack track, const Transfer& transfer) const;
  [[nodiscard]] Bytes bytes_of(Op op) const;

  [[nodiscard]] OpSlices op_slices() const;
  void arrow_between_transfers(std::size_t send, std::size_t receive) const;
  void arrow_between_ops(Op send, Op receive, Time sent, const OpSlices& ops,
                         std::span<const TraceTrack> compute) const;
  [[nodiscard]] bool written(const OpSlice& slice) const;

  const RunContext& run_;
  Time begin_;             // of the run
  std::vector<int> tids_;  // of Program::communication; 0 where no slice is written
};

}  // namespace dualpipe::detail::trace
