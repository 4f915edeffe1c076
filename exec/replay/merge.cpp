#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <utility>

#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/flow.h"

namespace dualpipe {
namespace {

bool reached(Span span) { return span != Span{}; }

// The first start, and the last end of anything, over all ranks; nothing if no op ran.
std::optional<Span> extent_of(std::span<const RankRecord> records) {
  std::optional<Span> extent;
  for (const RankRecord& record : records) {
    for (const Span span : record.ops) {
      if (!reached(span)) continue;
      if (!extent) extent = span;
      extent = {std::min(extent->start, span.start), std::max(extent->end, span.end)};
    }
  }
  if (!extent) return extent;
  for (const RankRecord& record : records) {
    for (const Span span : record.communication) extent->end = std::max(extent->end, span.end);
  }
  return extent;
}

RankTimes times_of(const Schedule& schedule, int rank, std::span<const Span> spans, Time zero) {
  RankTimes times;
  const auto ops = schedule.rank(rank);
  bool first = true;
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const bool second_of_pair = i > 0 && ops[i - 1].with_next;
    if (!reached(spans[i]) || (second_of_pair && reached(spans[i - 1]))) continue;
    if (std::exchange(first, false)) times.first_start = spans[i].start - zero;
    times.last_end = spans[i].end - zero;
    times.busy += spans[i].end - spans[i].start;
  }
  return times;
}

void check_records(const Program& program, std::span<const RankRecord> records) {
  if (std::ssize(records) != program.schedule.ranks()) {
    throw InputError(fmt::format("the program has {} ranks, and there are records of {}; merge() takes one of each",
                                 program.schedule.ranks(), records.size()));
  }
  std::size_t messages = 0;
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const RankRecord& record = records[static_cast<std::size_t>(rank)];
    messages += record.communication.size();
    if (record.ops.size() == program.schedule.rank(rank).size()) continue;
    throw InputError(fmt::format("the record of rank {} has {} ops, and the program {}: it is of another program", rank,
                                 record.ops.size(), program.schedule.rank(rank).size()));
  }
  if (messages != program.communication.size()) {
    throw InputError(fmt::format("the records have {} messages, and the program {}: they are of another program",
                                 messages, program.communication.size()));
  }
}

// Both ends of a message get the span from the hand-over to the arrival.
void join_messages(const Program& program, std::vector<Span>& spans) {
  std::map<Op, std::size_t> receives;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    Op op = program.communication[i];
    op.with_next = false;
    if (is_receive(op.kind)) receives[op] = i;
  }
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const Op op = program.communication[i];
    if (!is_send(op.kind)) continue;
    const auto receive = receives.find(peer_of(op, program.schedule.placement));
    if (receive == receives.end()) continue;
    Span& sent = spans[i];
    Span& received = spans[receive->second];
    if (reached(sent) && reached(received)) sent.end = received.end;
    received = sent;
  }
}

}  // namespace

Timeline merge(const Program& program, std::span<const RankRecord> records) {
  check_records(program, records);
  Timeline timeline;
  const Span extent = extent_of(records).value_or(Span{});
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const RankRecord& record = records[static_cast<std::size_t>(rank)];
    timeline.ranks.push_back(times_of(program.schedule, rank, record.ops, extent.start));
    timeline.ops.insert(timeline.ops.end(), record.ops.begin(), record.ops.end());
    timeline.communication.insert(timeline.communication.end(), record.communication.begin(),
                                  record.communication.end());
    timeline.parts.insert(timeline.parts.end(), record.parts.begin(), record.parts.end());
  }
  join_messages(program, timeline.communication);
  for (auto* spans : {&timeline.ops, &timeline.communication}) {
    for (Span& span : *spans) {
      if (!reached(span)) span = {extent.end, extent.end};
      span = {span.start - extent.start, span.end - extent.start};
    }
  }
  for (PartSpan& part : timeline.parts) {
    part.span = {part.span.start - extent.start, part.span.end - extent.start};
  }
  for (std::size_t i = 0; i < timeline.communication.size(); ++i) {
    if (program.communication[i].kind != Kind::reduce_gradients) continue;
    timeline.reduced = std::max(timeline.reduced, timeline.communication[i].end);
  }
  return timeline;
}

}  // namespace dualpipe
