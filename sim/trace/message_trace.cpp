#include "dualpipe/sim/trace/message_trace.h"

#include <algorithm>
#include <string_view>
#include <tuple>

#include "dualpipe/sim/schedule/flow.h"

namespace dualpipe::detail::trace {
namespace {

std::string_view arrow_name(Op send) { return is_forward(send.kind) ? "activation" : "gradient"; }

}  // namespace

MessageTrace::MessageTrace(const RunContext& run)
    : run_(run), begin_(report::bounds_of(run.run.timeline).start), tids_(run.run.program.communication.size()) {}

// Lanes in order: by peer, the sends before the receives; the reductions last.
auto MessageTrace::lane_order(const Transfer& transfer) {
  return std::tuple(transfer.op.kind == Kind::reduce_gradients, transfer.peer, is_receive(transfer.op.kind));
}

void MessageTrace::write_transfers(int rank, std::span<const report::Unit> units) {
  auto transfers = transfers_of(rank, units);
  std::sort(transfers.begin(), transfers.end(), [](const Transfer& a, const Transfer& b) {
    return std::tuple(lane_order(a), a.span.start, a.index) < std::tuple(lane_order(b), b.span.start, b.index);
  });
  for (std::size_t i = 0; i < transfers.size();) {
    std::size_t end = i;
    while (end < transfers.size() && lane_order(transfers[end]) == lane_order(transfers[i])) ++end;
    write_link(std::span(transfers).subspan(i, end - i));
    i = end;
  }
}

// What is drawn: in the filter, and longer than nothing.
std::vector<MessageTrace::Transfer> MessageTrace::transfers_of(int rank, std::span<const report::Unit> units) const {
  const Program& program = run_.run.program;
  std::vector<Transfer> transfers;
  if (!run_.run.has_messages) return transfers;
  const auto collect = [&](std::size_t position, Time issued) {
    const std::size_t slot = program.slot_index(rank, position);
    for (std::size_t i = program.slot_begin[slot]; i < program.slot_begin[slot + 1]; ++i) {
      const Op op = program.communication[i];
      const Span span = run_.run.timeline.communication[i];
      if (span.start == span.end || !run_.filter.has(span)) continue;
      const bool message = is_send(op.kind) || is_receive(op.kind);
      const int peer = message ? other_end_of(op, run_.placement()).value().rank : rank;
      transfers.push_back({i, op, rank, peer, issued, span});
    }
  };
  Time issued = begin_;
  for (const report::Unit& unit : units) {
    collect(unit.position, issued);
    issued = unit.span.end;
  }
  collect(program.schedule.rank(rank).size(), issued);
  return transfers;
}

// The transfers of one link, or the reductions, by start.
void MessageTrace::write_link(std::span<const Transfer> transfers) {
  FreeLanes lanes;
  std::vector<TraceTrack> tracks;
  for (const Transfer& transfer : transfers) {
    const auto [lane, is_first] = lanes.take(transfer.span);
    if (is_first) tracks.push_back(run_.add_lane(transfer.rank, numbered(link_name(transfer), lane)));
    const TraceTrack track = tracks[static_cast<std::size_t>(lane)];
    tids_[transfer.index] = track.tid;
    write_transfer(track, transfer);
  }
}

std::string MessageTrace::link_name(const Transfer& transfer) const {
  if (is_send(transfer.op.kind)) return "send to " + run_.rank_name(transfer.peer);
  if (is_receive(transfer.op.kind)) return "receive from " + run_.rank_name(transfer.peer);
  return "reduce";
}

void MessageTrace::write_transfer(TraceTrack track, const Transfer& transfer) const {
  const Op op = transfer.op;
  const auto number = has_micro_batch(op.kind) ? op.micro_batch : op.stage;
  TraceArgs args;
  args.add("op", to_text(op));
  run_.add_place(args, op);
  args.add("bytes", bytes_of(op)).add("wait_ns", std::max<Time>(0, transfer.span.start - transfer.issued));
  const std::string_view category = op.kind == Kind::reduce_gradients ? "reduce" : "message";
  run_.writer.slice(track, category, fmt::format("{} {}", run_.pass_name(op), number), transfer.span, args);
}

Bytes MessageTrace::bytes_of(Op op) const {
  if (op.kind == Kind::reduce_gradients) return run_.run.costs.of(op.stage).gradients;
  if (!is_send(op.kind) && !is_receive(op.kind)) return 0;
  return run_.run.costs.of(output_stage_of(op, run_.placement())).message;
}

void MessageTrace::write_arrows(std::span<const TraceTrack> compute) const {
  const auto& communication = run_.run.program.communication;
  if (!run_.run.has_messages) return;
  std::unordered_map<std::uint64_t, std::size_t> receives;  // in Program::communication; never iterated
  for (std::size_t i = 0; i < communication.size(); ++i) {
    if (is_receive(communication[i].kind)) receives[key_of(communication[i])] = i;
  }
  const auto ops = op_slices();
  for (std::size_t i = 0; i < communication.size(); ++i) {
    const Op send = communication[i];
    if (!is_send(send.kind)) continue;
    const Op receive = peer_of(send, run_.placement());
    const auto found = receives.find(key_of(receive));
    if (found == receives.end()) continue;
    const Span span = run_.run.timeline.communication[i];
    if (span.start == span.end) {
      arrow_between_ops(send, receive, span.start, ops, compute);
    } else {
      arrow_between_transfers(i, found->second);
    }
  }
}

MessageTrace::OpSlices MessageTrace::op_slices() const {
  OpSlices slices;
  const auto& ops = run_.run.program.schedule.ops;
  for (std::size_t i = 0; i < ops.size(); ++i) {
    if (ops[i].kind == Kind::weight_gradient) continue;
    slices[key_of(ops[i])] = {run_.rank_of(ops[i].stage), run_.run.timeline.ops[i]};
  }
  return slices;
}

void MessageTrace::arrow_between_transfers(std::size_t send, std::size_t receive) const {
  if (tids_[send] == 0 || tids_[receive] == 0) return;
  const Span from = run_.run.timeline.communication[send];
  const Span to = run_.run.timeline.communication[receive];
  const Time end = std::max(to.start, from.start);
  if (end >= to.end) return;  // measured by clocks that disagree: received before it was sent
  run_.writer.arrow("message", arrow_name(run_.run.program.communication[send]), {trace_pid, tids_[send]}, from.start,
                    {trace_pid, tids_[receive]}, end);
}

// From the last nanosecond of the op that made the message to the start of the one that needs it.
void MessageTrace::arrow_between_ops(Op send, Op receive, Time sent, const OpSlices& ops,
                                     std::span<const TraceTrack> compute) const {
  const auto from = ops.find(key_of(send));
  const auto to = ops.find(key_of(receive));
  if (from == ops.end() || to == ops.end() || !written(from->second) || !written(to->second)) return;
  const Span made = from->second.span;
  const Time start = std::clamp(sent - 1, made.start, made.end - 1);
  if (start > to->second.span.start) return;
  const auto lane = [&](const OpSlice& slice) { return compute[static_cast<std::size_t>(slice.rank)]; };
  run_.writer.arrow("message", arrow_name(send), lane(from->second), start, lane(to->second), to->second.span.start);
}

// Whether an arrow can end there: a slice of no duration is never open.
bool MessageTrace::written(const OpSlice& slice) const {
  return run_.filter.has(slice.rank) && run_.filter.has(slice.span) && slice.span.start < slice.span.end;
}

}  // namespace dualpipe::detail::trace
