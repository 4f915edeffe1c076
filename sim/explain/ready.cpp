#include "dualpipe/sim/explain/ready.h"

#include <algorithm>
#include <limits>

#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/memory_limit.h"

namespace dualpipe::detail::explain {
namespace {

__extension__ using Int128 = __int128;

constexpr Time never = std::numeric_limits<Time>::max();

}  // namespace

ReadyTimes::ReadyTimes(const Program& program, const Events& events) : program_(program), events_(events) {}

void ReadyTimes::set_limit(const Costs& costs, const Timeline& timeline, const MemoryLimit& limit) {
  const bool in_bytes = limit.unit == MemoryLimit::Unit::bytes;
  limit_.emplace(Limit{in_bytes ? costs : activation_shares(costs, program_.schedule.placement), limit, timeline});
}

// What a limit is in the unit of the costs that it is counted with.
Bytes ReadyTimes::limit_of_rank() const {
  if (limit_->limit.unit == MemoryLimit::Unit::bytes) return limit_->limit.amount;
  Bytes micro_batch = 0;
  for (const int stage : program_.schedule.placement.stages_on(rank_))
    micro_batch += limit_->costs.of(stage).activation;
  const Int128 bytes = Int128{limit_->limit.amount} * micro_batch / MemoryLimit::per_micro_batch;
  return static_cast<Bytes>(std::min<Int128>(bytes, std::numeric_limits<Bytes>::max()));
}

Time ReadyTimes::ready_at(Index unit) const {
  const Placement& placement = program_.schedule.placement;
  Time ready = events_.first_start();
  for (const Edge& edge : events_.into(Events::start_of(unit))) {
    if (edge.reason == Reason::arrival) ready = std::max(ready, events_[edge.from].time);
  }
  const auto wait_for = [&](Op op) {
    const Index other = events_.unit_of(op);
    if (other != none && other != unit) ready = std::max(ready, events_.units()[other].span.end);
  };
  const EventUnit& each = events_.units()[unit];
  for (std::size_t part = 0; part < (each.is_pair ? 2U : 1U); ++part) {
    const Op op = program_.schedule.ops[each.op + part];
    if (is_backward_half(op.kind)) wait_for({op.micro_batch, op.stage, Kind::forward, false});
    if (op.kind == Kind::weight_gradient) wait_for({op.micro_batch, op.stage, Kind::input_gradient, false});
    const auto from = producer_of(op, placement);
    if (from && !from->is_remote) wait_for({op.micro_batch, from->stage, op.kind, false});
  }
  return ready;
}

void ReadyTimes::go_to(int rank) {
  rank_ = rank;
  const auto units = events_.units_on(rank);
  any_.assign(units.size() + 1, never);
  backward_ = any_;
  forward_.clear();
  for (std::size_t i = units.size(); i-- > 0;) {
    const Time ready = ready_at(events_.first_unit(rank) + static_cast<Index>(i));
    any_[i] = std::min(any_[i + 1], ready);
    if (!limit_) continue;
    backward_[i] = backward_[i + 1];
    for (auto& [stage, earliest] : forward_) earliest[i] = earliest[i + 1];
    const Op op = program_.schedule.ops[units[i].op];
    const Op forward = units[i].is_pair && !is_forward(op.kind) ? program_.schedule.ops[units[i].op + 1] : op;
    if (forward.kind != Kind::forward) {
      backward_[i] = std::min(backward_[i], ready);
      continue;
    }
    auto found = std::ranges::find(forward_, int{forward.stage}, &StageTimes::first);
    if (found == forward_.end()) {
      found = forward_.insert(found, {int{forward.stage}, std::vector<Time>(units.size() + 1, never)});
    }
    found->second[i] = std::min(found->second[i], ready);
  }
  if (limit_) held_ = memory_over_time(program_, limit_->costs, limit_->timeline, rank);
  held_at_ = 0;
}

// The earliest of the units from number `first` on that would not take the rank over its limit. Windows come in order.
Time ReadyTimes::allowed_from(std::size_t first, Time now) {
  if (!limit_) return any_[first];
  while (held_at_ + 1 < held_.size() && held_[held_at_ + 1].time <= now) ++held_at_;
  const Bytes held = held_.empty() ? 0 : held_[held_at_].bytes;
  const Bytes most = limit_of_rank();
  Time earliest = backward_[first];
  for (const auto& [stage, times] : forward_) {
    const StageCosts& costs = limit_->costs.of(stage);
    if (held + costs.held_activation() + costs.forward_workspace <= most) earliest = std::min(earliest, times[first]);
  }
  return earliest;
}

void ReadyTimes::classify(Span window, Index next, std::size_t first, std::vector<IdleSegment>& segments) {
  if (next == none) return;
  const std::size_t later = next - events_.first_unit(rank_) + 1;
  const Time ready = any_[later];
  if (ready >= window.end) return;
  const Time allowed = allowed_from(later, window.start);
  const std::vector<IdleSegment> whole(segments.begin() + static_cast<std::ptrdiff_t>(first), segments.end());
  segments.resize(first);
  for (const IdleSegment& each : whole) {
    const Time cut = std::clamp(ready, each.span.start, each.span.end);
    const Time next_cut = std::clamp(allowed, cut, each.span.end);
    const auto add = [&](Span span, Readiness readiness) {
      if (span.start >= span.end) return;
      segments.push_back(each);
      segments.back().span = span;
      segments.back().readiness = readiness;
    };
    add({each.span.start, cut}, Readiness::nothing);
    add({cut, next_cut}, Readiness::over_limit);
    add({next_cut, each.span.end}, Readiness::later);
  }
}

}  // namespace dualpipe::detail::explain
