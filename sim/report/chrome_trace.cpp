// The rules that Perfetto's JSON importer sets for a trace as a whole, and where they are kept (those for an event,
// TraceWriter keeps):
//
//   - Slices of one thread nest or are disjoint: transfers that overlap get lanes of their own (FreeLanes).
//   - tid 0, and a tid equal to its pid, mean other things: tids start at 1 and step over the pid (tid_of_lane).
//   - Processes sort by name, as text: ranks are padded with zeros. Threads sort by tid: lanes are numbered in order.
//   - An arrow's ends are at times when the slices there are open (RunTrace::write_arrows).
//   - The colour is a hash of the name without its trailing number: "F 3", not "3F3".
#include "dualpipe/sim/report/chrome_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <iterator>
#include <optional>
#include <ostream>
#include <span>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/simulate/memory.h"

namespace dualpipe {

using detail::report::bounds_of;
using detail::report::Unit;
using detail::report::units_of;

namespace {

// Lanes are numbered from 0; the first is computation.
int tid_of_lane(int lane, int pid) { return 1 + lane < pid ? 1 + lane : 2 + lane; }

// A send, receive or reduction, where it is in the program.
struct Transfer {
  std::size_t index = 0;  // in Program::communication
  Op op;
  int rank = 0;
  int peer = 0;  // the rank at the other end; of a reduction its own
  Time issued = 0;
  Span span;
};

// Lanes in order: by peer, the sends before the receives; the reductions last.
std::tuple<bool, int, bool> lane_order(const Transfer& transfer) {
  return {transfer.op.kind == Kind::reduce_gradients, transfer.peer, is_receive(transfer.op.kind)};
}

// A compute op's slice.
struct OpSlice {
  int rank;
  Span span;
};

// Lanes for slices that may overlap, which come by start: each goes to the first lane that is free.
class FreeLanes {
 public:
  // Which lane, and whether it is the first slice there.
  struct Place {
    int lane = 0;
    bool is_first = false;
  };
  Place take(Span span) {
    const auto free = std::ranges::find_if(free_at_, [&](Time time) { return time <= span.start; });
    const Place place{static_cast<int>(free - free_at_.begin()), free == free_at_.end()};
    if (place.is_first) free_at_.push_back(0);
    free_at_[static_cast<std::size_t>(place.lane)] = span.end;
    return place;
  }
  [[nodiscard]] int count() const { return static_cast<int>(free_at_.size()); }

 private:
  std::vector<Time> free_at_;  // by lane
};

// "exchange", "exchange (2)".
std::string numbered(std::string_view text, int lane) {
  return lane == 0 ? std::string(text) : fmt::format("{} ({})", text, lane + 1);
}

// Lanes of parts, in order: a compute lane for each stage, then the two that the rank has once.
struct PartLane {
  PartSpan::Lane kind = PartSpan::Lane::compute;
  int stage = 0;

  friend auto operator<=>(const PartLane&, const PartLane&) = default;
};
PartLane lane_of(const PartSpan& part) { return {part.lane, part.lane == PartSpan::Lane::compute ? part.op.stage : 0}; }
std::string name_of(PartLane lane) {
  switch (lane.kind) {
    case PartSpan::Lane::exchange:
      return "exchange";
    case PartSpan::Lane::copy:
      return "copy";
    default:
      return fmt::format("compute, stage {}", lane.stage);
  }
}

class RunTrace {
 public:
  RunTrace(TraceWriter& writer, const Program& program, const Costs& costs, const Timeline& timeline,
           const TraceFilter& filter, const TraceGroup& group)
      : writer_(writer),
        program_(program),
        costs_(costs),
        timeline_(timeline),
        filter_(filter),
        group_(group),
        memories_(program, costs),
        begin_(bounds_of(timeline).start),
        tids_(program.communication.size()) {
    assert(timeline.communication.size() == program.communication.size());
    rank_digits_ = std::max<std::size_t>(2, std::to_string(placement().ranks - 1).size());
  }

  void write() {
    for (int rank = 0; rank < placement().ranks; ++rank) {
      if (filter_.has(rank)) write_rank(rank);
    }
    write_arrows();
  }

 private:
  [[nodiscard]] const Placement& placement() const { return program_.schedule.placement; }
  [[nodiscard]] int pid(int rank) const { return group_.first_pid + rank; }
  [[nodiscard]] TraceTrack compute_track(int rank) const { return {pid(rank), tid_of_lane(0, pid(rank))}; }
  [[nodiscard]] int rank_of(int stage) const { return placement().rank_of[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] std::string rank_name(int rank) const { return fmt::format("rank {:0{}}", rank, rank_digits_); }

  void write_rank(int rank) {
    writer_.process(pid(rank), process_name(rank), rank, rank_args(rank));
    writer_.thread(compute_track(rank), "compute");
    const auto units = units_of(program_, timeline_, rank);
    write_ops(rank, units);
    const int lanes = write_parts(rank, 1);
    write_transfers(rank, units, lanes);
    write_counters(rank);
  }

  [[nodiscard]] std::string process_name(int rank) const {
    std::string text = rank_name(rank);
    if (!group_.label.empty()) text.append(" ").append(group_.label);
    if (!group_.devices.empty()) text.append(" on ").append(group_.devices[static_cast<std::size_t>(rank)]);
    return text;
  }

  [[nodiscard]] TraceArgs rank_args(int rank) const {
    TraceArgs args;
    args.add("rank", rank);
    if (!group_.label.empty()) args.add("run", group_.label);
    if (!group_.devices.empty()) args.add("device", group_.devices[static_cast<std::size_t>(rank)]);
    args.add(group_.about);
    const RankPeak peak = peak_of(rank);
    return args.add("peak_activations", peak.activations).add("peak_memory_bytes", peak.memory);
  }

  [[nodiscard]] RankPeak peak_of(int rank) const {
    if (!group_.peaks.empty()) return group_.peaks[static_cast<std::size_t>(rank)];
    const RankMemory memory = memories_.of(rank);
    return {memory.peak_activations, memory.peak};
  }

  // --- computation

  void write_ops(int rank, std::span<const Unit> units) {
    Time free_since = begin_;
    for (const Unit& unit : units) {
      if (filter_.has(unit.span)) {
        writer_.slice(compute_track(rank), "compute", unit_name(unit), unit.span,
                      unit_args(unit).add("wait_ns", unit.span.start - free_since));
      }
      free_since = unit.span.end;
    }
  }

  [[nodiscard]] static std::string unit_name(const Unit& unit) {
    const Op first = unit.ops[0];
    if (!unit.is_pair()) return fmt::format("{} {}", name(first.kind), first.micro_batch);
    const Op second = unit.ops[1];
    return fmt::format("{}&{} {} {}", name(first.kind), name(second.kind), first.micro_batch, second.micro_batch);
  }

  // Stage, chain and micro-batch.
  void add_place(TraceArgs& args, Op op) const {
    args.add("stage", op.stage).add("chain", placement().chain_of(op.stage));
    if (has_micro_batch(op.kind)) args.add("micro_batch", op.micro_batch);
  }

  [[nodiscard]] TraceArgs unit_args(const Unit& unit) const {
    TraceArgs args;
    args.add("op", cell_text(unit.ops));
    if (!unit.is_pair()) {
      add_place(args, unit.ops[0]);
      return args;
    }
    for (const Op op : unit.ops) {
      TraceArgs half;
      add_place(half, op);
      args.add(op.kind == Kind::forward ? "forward" : "backward", half);
    }
    return args;
  }

  // --- parts

  // Returns the first lane behind theirs.
  int write_parts(int rank, int first_lane) {
    std::vector<const PartSpan*> parts;
    for (const PartSpan& part : timeline_.parts) {
      if (rank_of(part.op.stage) == rank && filter_.has(part.span)) parts.push_back(&part);
    }
    std::ranges::stable_sort(parts, {},
                             [](const PartSpan* part) { return std::pair(lane_of(*part), part->span.start); });
    for (std::size_t i = 0; i < parts.size();) {
      const PartLane kind = lane_of(*parts[i]);
      FreeLanes lanes;
      for (; i < parts.size() && lane_of(*parts[i]) == kind; ++i) {
        const auto [lane, is_first] = lanes.take(parts[i]->span);
        const TraceTrack track{pid(rank), tid_of_lane(first_lane + lane, pid(rank))};
        if (is_first) writer_.thread(track, numbered(name_of(kind), lane));
        write_part(track, *parts[i]);
      }
      first_lane += lanes.count();
    }
    return first_lane;
  }

  void write_part(TraceTrack track, const PartSpan& part) {
    TraceArgs args;
    args.add("op", to_text(part.op));
    add_place(args, part.op);
    writer_.slice(track, "part", fmt::format("{} {}", part.name, to_text(part.op)), part.span, args);
  }

  // --- communication

  void write_transfers(int rank, std::span<const Unit> units, int first_lane) {
    auto transfers = transfers_of(rank, units);
    std::sort(transfers.begin(), transfers.end(), [](const Transfer& a, const Transfer& b) {
      return std::tuple(lane_order(a), a.span.start, a.index) < std::tuple(lane_order(b), b.span.start, b.index);
    });
    for (std::size_t i = 0; i < transfers.size();) {
      std::size_t end = i;
      while (end < transfers.size() && lane_order(transfers[end]) == lane_order(transfers[i])) ++end;
      first_lane += write_link(std::span(transfers).subspan(i, end - i), first_lane);
      i = end;
    }
  }

  // What is drawn: in the filter, and longer than nothing.
  [[nodiscard]] std::vector<Transfer> transfers_of(int rank, std::span<const Unit> units) const {
    std::vector<Transfer> transfers;
    const auto collect = [&](std::size_t position, Time issued) {
      const std::size_t slot = program_.slot_index(rank, position);
      for (std::size_t i = program_.slot_begin[slot]; i < program_.slot_begin[slot + 1]; ++i) {
        const Op op = program_.communication[i];
        const Span span = timeline_.communication[i];
        if (span.start == span.end || !filter_.has(span)) continue;
        const bool message = is_send(op.kind) || is_receive(op.kind);
        const int peer = message ? other_end_of(op, placement()).value().rank : rank;
        transfers.push_back({i, op, rank, peer, issued, span});
      }
    };
    Time issued = begin_;
    for (const Unit& unit : units) {
      collect(unit.position, issued);
      issued = unit.span.end;
    }
    collect(program_.schedule.rank(rank).size(), issued);
    return transfers;
  }

  // The transfers of one link, or the reductions, by start. Returns how many lanes that took.
  int write_link(std::span<const Transfer> transfers, int first_lane) {
    const int process = pid(transfers[0].rank);
    FreeLanes lanes;
    for (const Transfer& transfer : transfers) {
      const auto [lane, is_first] = lanes.take(transfer.span);
      const TraceTrack track{process, tid_of_lane(first_lane + lane, process)};
      if (is_first) writer_.thread(track, numbered(link_name(transfer), lane));
      tids_[transfer.index] = track.tid;
      write_transfer(track, transfer);
    }
    return lanes.count();
  }

  [[nodiscard]] std::string link_name(const Transfer& transfer) const {
    if (is_send(transfer.op.kind)) return "send to " + rank_name(transfer.peer);
    if (is_receive(transfer.op.kind)) return "receive from " + rank_name(transfer.peer);
    return "reduce";
  }

  void write_transfer(TraceTrack track, const Transfer& transfer) {
    const Op op = transfer.op;
    const auto number = has_micro_batch(op.kind) ? op.micro_batch : op.stage;
    TraceArgs args;
    args.add("op", to_text(op));
    add_place(args, op);
    args.add("bytes", bytes_of(op)).add("wait_ns", std::max<Time>(0, transfer.span.start - transfer.issued));
    const std::string_view category = op.kind == Kind::reduce_gradients ? "reduce" : "message";
    writer_.slice(track, category, fmt::format("{} {}", name(op.kind), number), transfer.span, args);
  }

  [[nodiscard]] Bytes bytes_of(Op op) const {
    if (op.kind == Kind::reduce_gradients) return costs_.of(op.stage).gradients;
    return costs_.of(output_stage_of(op, placement())).message;
  }

  // --- counters

  void write_counters(int rank) {
    const auto points = memories_.over_time(timeline_, rank);
    const auto activations = [](const MemoryPoint& point) { return std::int64_t{point.activations}; };
    const auto bytes = [](const MemoryPoint& point) { return point.bytes; };
    write_counter(rank, "activations", "live", points, activations);
    if (std::any_of(points.begin(), points.end(), [](const MemoryPoint& point) { return point.bytes != 0; })) {
      write_counter(rank, "memory", "bytes", points, bytes);
    }
  }

  // On change: of points at one time the last counts. What holds at the window's begin is written there.
  template <typename Value>
  void write_counter(int rank, std::string_view name, std::string_view key, std::span<const MemoryPoint> points,
                     Value value_of) {
    std::optional<std::int64_t> written;
    for (std::size_t i = 0; i < points.size(); ++i) {
      const bool last_before_window = points[i].time < filter_.begin;
      const Time replaced_at = i + 1 < points.size() ? points[i + 1].time : std::numeric_limits<Time>::max();
      if (replaced_at <= std::max(points[i].time, filter_.begin) || points[i].time >= filter_.end) continue;
      if (written == value_of(points[i])) continue;
      written = value_of(points[i]);
      writer_.counter(pid(rank), name, key, last_before_window ? filter_.begin : points[i].time, *written);
    }
  }

  // --- arrows

  void write_arrows() {
    std::unordered_map<std::uint64_t, std::size_t> receives;  // in Program::communication; never iterated
    for (std::size_t i = 0; i < program_.communication.size(); ++i) {
      const Op op = program_.communication[i];
      if (is_receive(op.kind)) receives[key_of(op)] = i;
    }
    const auto ops = op_slices();
    for (std::size_t i = 0; i < program_.communication.size(); ++i) {
      const Op send = program_.communication[i];
      if (!is_send(send.kind)) continue;
      const Op receive = peer_of(send, placement());
      const auto found = receives.find(key_of(receive));
      if (found == receives.end()) continue;
      if (timeline_.communication[i].start == timeline_.communication[i].end) {
        arrow_between_ops(send, receive, timeline_.communication[i].start, ops);
      } else {
        arrow_between_transfers(i, found->second);
      }
    }
  }

  using OpSlices = std::unordered_map<std::uint64_t, OpSlice>;

  // The slices of all F, B and I, by what they make. Never iterated.
  [[nodiscard]] OpSlices op_slices() const {
    OpSlices slices;
    for (std::size_t i = 0; i < program_.schedule.ops.size(); ++i) {
      const Op op = program_.schedule.ops[i];
      if (op.kind == Kind::weight_gradient) continue;
      slices[key_of(op)] = {rank_of(op.stage), timeline_.ops[i]};
    }
    return slices;
  }

  [[nodiscard]] std::string arrow_name(Op send) const {
    return send.kind == Kind::send_forward ? "activation" : "gradient";
  }

  void arrow_between_transfers(std::size_t send, std::size_t receive) {
    if (tids_[send] == 0 || tids_[receive] == 0) return;
    const Span from = timeline_.communication[send];
    const Span to = timeline_.communication[receive];
    const Time end = std::max(to.start, from.start);
    if (end >= to.end) return;  // measured by clocks that disagree: received before it was sent
    const Op op = program_.communication[send];
    const Op peer = program_.communication[receive];
    writer_.arrow(arrow_name(op), {pid(rank_of(op.stage)), tids_[send]}, from.start,
                  {pid(rank_of(peer.stage)), tids_[receive]}, end);
  }

  // From the last nanosecond of the op that made the message to the start of the one that needs it.
  void arrow_between_ops(Op send, Op receive, Time sent, const OpSlices& ops) {
    const auto from = ops.find(key_of(send));
    const auto to = ops.find(key_of(receive));
    if (from == ops.end() || to == ops.end() || !written(from->second) || !written(to->second)) return;
    const Span made = from->second.span;
    const Time start = std::clamp(sent - 1, made.start, made.end - 1);
    if (start > to->second.span.start) return;
    writer_.arrow(arrow_name(send), compute_track(from->second.rank), start, compute_track(to->second.rank),
                  to->second.span.start);
  }

  // Whether an arrow can end there: a slice of no duration is never open.
  [[nodiscard]] bool written(const OpSlice& slice) const {
    return filter_.has(slice.rank) && filter_.has(slice.span) && slice.span.start < slice.span.end;
  }

  TraceWriter& writer_;
  const Program& program_;
  const Costs& costs_;
  const Timeline& timeline_;
  const TraceFilter& filter_;
  const TraceGroup& group_;
  RankMemories memories_;
  Time begin_;             // of the run
  std::vector<int> tids_;  // of Program::communication; 0 where no slice is written
  std::size_t rank_digits_ = 2;
};

}  // namespace

void write_run(TraceWriter& writer, const Program& program, const Costs& costs, const Timeline& timeline,
               const TraceFilter& filter, const TraceGroup& group) {
  RunTrace(writer, program, costs, timeline, filter, group).write();
}

void write_chrome_trace(std::ostream& out, const Program& program, const Costs& costs, const Timeline& timeline,
                        const TraceFilter& filter) {
  TraceWriter writer(out);
  write_run(writer, program, costs, timeline, filter);
  writer.finish();
}

}  // namespace dualpipe
