#include "dualpipe/sim/search/evaluator.h"

#include <algorithm>
#include <map>
#include <utility>

namespace dualpipe::detail::search {

Evaluator::Evaluator(const Problem& problem, const Ops& ops, bool by_span)
    : problem_(problem),
      ops_(ops),
      general_(problem.links || problem.has_pairs || problem.joins_backwards()),
      by_span_(by_span) {
  const auto ranks = static_cast<std::size_t>(problem.ranks());
  position_.resize(ops.count() + 1);
  position_[ops.none()] = static_cast<std::uint32_t>(ops.count());
  times_.resize(ops.count() + 1);
  kept_.resize(ops.count() + 1);
  held_.resize(ops.count());
  work_.resize(ops.count());
  load_.resize(ranks);
  first_.resize(ranks);
  next_.resize(ranks + 1);
  next_[ranks] = ops.count() + 1;
  waits_.resize(ranks);
  std::map<std::pair<int, int>, std::uint32_t> links;
  for (std::size_t s = 0; problem.links && s < problem.stages.size(); ++s) {
    const ProblemStage& stage = problem.stages[s];
    const int next = stage.ends_chain ? stage.rank : problem.stages[s + 1].rank;
    const int previous = stage.begins_chain ? stage.rank : problem.stages[s - 1].rank;
    for (const int to : {next, previous}) {
      const auto [link, is_new] = links.try_emplace({stage.rank, to}, static_cast<std::uint32_t>(links.size()));
      link_of_.push_back(link->second);
    }
  }
  link_free_.resize(links.size());
}

Time Evaluator::reset(const Order& order) {
  word_ = order;
  for (int rank = 0; rank < problem_.ranks(); ++rank) {
    place(rank, ops_.begin(rank), ops_.end(rank));
    first_[static_cast<std::size_t>(rank)] = ops_.begin(rank);
    load_[static_cast<std::size_t>(rank)] = ops_.begin(rank) == ops_.end(rank) ? 0 : work_[ops_.end(rank) - 1];
  }
  tried_ = run(hangs);
  before_.clear();
  accept();
  return makespan_;
}

// Positions, and what is summed up along a word, of a piece of it.
void Evaluator::place(int rank, std::size_t from, std::size_t to) {
  const bool is_first = from == ops_.begin(rank);
  Bytes held = is_first ? 0 : held_[from - 1];
  Time work = is_first ? 0 : work_[from - 1];
  if (!general_) {
    for (std::size_t p = from; p < to; ++p) {
      const OpId op = word_[p];
      position_[op] = static_cast<std::uint32_t>(p);
      held_[p] = held += ops_.effect(op);
      work_[p] = work += ops_.of(op).duration;
    }
    return;
  }
  for (std::size_t p = from; p < to;) {
    const std::size_t end = unit_end(p);
    work += unit_duration(p);
    for (; p < end; ++p) {
      const OpId op = op_of(word_[p]);
      position_[op] = static_cast<std::uint32_t>(p);
      held_[p] = held += ops_.effect(op);
      work_[p] = work;
    }
  }
}

std::size_t Evaluator::unit_begin(std::size_t position) const {
  while (position > 0 && is_joined(word_[position - 1])) --position;
  return position;
}

std::size_t Evaluator::unit_end(std::size_t position) const {
  while (is_joined(word_[position])) ++position;
  return position + 1;
}

Time Evaluator::unit_duration(std::size_t p) const {
  const OpId op = op_of(word_[p]);
  if (!is_joined(word_[p])) return ops_.of(op).duration;
  const int stage = ops_.of(op).stage;
  if (ops_.pass(op) != Pass::forward) return problem_.stages[static_cast<std::size_t>(stage)].backward;
  return problem_.pair_duration(stage, ops_.of(op_of(word_[p + 1])).stage);
}

Time Evaluator::arrival(std::size_t position) const {
  return times_[position_[ops_.of(op_of(word_[position])).before]].out;
}

Time Evaluator::start(std::size_t position) const { return times_[position].end - unit_duration(unit_begin(position)); }

bool Evaluator::may_move(int rank, std::size_t from, std::size_t to) const {
  const Bytes room = problem_.room[static_cast<std::size_t>(rank)];
  const std::size_t end = unit_end(from);
  Bytes effect = 0;
  Bytes peak = 0;  // within the unit, above what is held before it
  for (std::size_t p = from; p < end; ++p) {
    const OpId op = op_of(word_[p]);
    effect += ops_.effect(op);
    peak = std::max(peak, effect);
    const int s = ops_.of(op).stage;
    const Pass pass = ops_.pass(op);
    const std::int64_t m = ops_.micro_batch(op);
    const auto at = [&](int stage, Pass of) { return std::size_t{position_[ops_.id(stage, of, m)]}; };
    const ProblemStage& stage = problem_.stages[static_cast<std::size_t>(s)];
    const auto is_here = [&](int other) { return problem_.stages[static_cast<std::size_t>(other)].rank == rank; };
    if (to < from) {
      const auto stays_behind = [&](std::size_t other) { return other < to || (other >= from && other < end); };
      if (pass == Pass::weight_gradient && !stays_behind(at(s, Pass::input_gradient))) return false;
      if (pass == Pass::input_gradient && !stays_behind(at(s, Pass::forward))) return false;
      if (pass == Pass::input_gradient && !stage.ends_chain && is_here(s + 1) &&
          !stays_behind(at(s + 1, Pass::input_gradient))) {
        return false;
      }
      if (pass == Pass::forward && !stage.begins_chain && is_here(s - 1) && !stays_behind(at(s - 1, Pass::forward))) {
        return false;
      }
      if (m > 0 && !stays_behind(position_[op - 1]) && pass != Pass::weight_gradient) return false;
    } else {
      const std::size_t last = unit_end(to);
      const auto stays_ahead = [&](std::size_t other) { return other >= last || (other >= from && other < end); };
      if (pass == Pass::forward && !stays_ahead(at(s, Pass::input_gradient))) return false;
      if (pass == Pass::input_gradient && !stays_ahead(at(s, Pass::weight_gradient))) return false;
      if (pass == Pass::input_gradient && !stage.begins_chain && is_here(s - 1) &&
          !stays_ahead(at(s - 1, Pass::input_gradient))) {
        return false;
      }
      if (pass == Pass::forward && !stage.ends_chain && is_here(s + 1) && !stays_ahead(at(s + 1, Pass::forward))) {
        return false;
      }
      if (m + 1 < problem_.micro_batches && !stays_ahead(position_[op + 1]) && pass != Pass::weight_gradient) {
        return false;
      }
    }
  }
  if (to < from) {
    const Bytes before = to == ops_.begin(rank) ? 0 : held_[to - 1];
    if (before + peak > room && peak > 0) return false;
    for (std::size_t p = to; effect > 0 && p < from; ++p) {
      if (held_[p] + effect > room) return false;
    }
    return true;
  }
  const std::size_t last = unit_end(to);
  for (std::size_t p = end; effect < 0 && p < last; ++p) {
    if (held_[p] - effect > room) return false;
  }
  return peak <= 0 || held_[last - 1] - effect + peak <= room;
}

Time Evaluator::move(int rank, std::size_t from, std::size_t to, Time most) {
  const auto at = [&](std::size_t p) { return word_.begin() + static_cast<std::ptrdiff_t>(p); };
  const std::size_t end = unit_end(from);
  const std::size_t first = std::min(from, to);
  const std::size_t last = to < from ? end : unit_end(to);
  before_.assign(at(first), at(last));
  if (to < from) {
    std::rotate(at(to), at(from), at(end));
  } else {
    std::rotate(at(from), at(end), at(last));
  }
  return changed(rank, first, last, most);
}

Time Evaluator::replace(int rank, std::size_t from, const std::vector<Entry>& entries, Time most) {
  const auto begin = word_.begin() + static_cast<std::ptrdiff_t>(from);
  before_.assign(begin, begin + static_cast<std::ptrdiff_t>(entries.size()));
  std::ranges::copy(entries, begin);
  return changed(rank, from, from + entries.size(), most);
}

Time Evaluator::changed(int rank, std::size_t from, std::size_t to, Time most) {
  changed_rank_ = rank;
  changed_from_ = from;
  place(rank, from, to);
  if (general_) {  // units may be of other durations
    place(rank, to, ops_.end(rank));
    load_[static_cast<std::size_t>(rank)] = work_[ops_.end(rank) - 1];
  }
  // Nothing that the change can move has ended by then.
  const Time since = from == ops_.begin(rank) || problem_.links ? 0 : times_[from - 1].end;
  for (int r = 0; r < problem_.ranks(); ++r) {
    const auto begin = times_.begin() + static_cast<std::ptrdiff_t>(ops_.begin(r));
    const auto end = times_.begin() + static_cast<std::ptrdiff_t>(r == rank ? from : ops_.end(r));
    const auto found = std::lower_bound(begin, end, since, [](const Times& t, Time time) { return t.end < time; });
    first_[static_cast<std::size_t>(r)] = problem_.links ? ops_.begin(r)
                                          : r == rank    ? from
                                                         : static_cast<std::size_t>(found - times_.begin());
  }
  return tried_ = run(most);
}

Time Evaluator::run(Time most) {
  const int ranks = problem_.ranks();
  for (int r = 0; r < ranks; ++r) next_[static_cast<std::size_t>(r)] = first_[static_cast<std::size_t>(r)];
  std::ranges::fill(waits_, std::uint8_t{0});
  if (problem_.links) std::ranges::fill(link_free_, 0);
  Time longest = 0;
  for (int r = 0; r < ranks; ++r) {
    if (!(general_ ? finish<true>(r, most) : finish<false>(r, most))) return hangs;
    if (ops_.begin(r) < ops_.end(r)) longest = std::max(longest, times_[ops_.end(r) - 1].end - begin_of(r));
  }
  return longest <= most ? longest : hangs;
}

// What its makespan counts from: for the span the start of its first op.
Time Evaluator::begin_of(int rank) const { return by_span_ ? start(ops_.begin(rank)) : 0; }

// Runs a rank to its end, and others as far as it needs. False: it hangs, or takes too long.
template <bool general>
bool Evaluator::finish(int rank, Time most) {
  stack_.clear();
  OpId target = ops_.none();
  for (int r = rank;;) {
    const OpId missing = advance<general>(r);
    const std::size_t p = next_[static_cast<std::size_t>(r)];
    // It can only be idle for longer.
    const Time spare = most - load_[static_cast<std::size_t>(r)];
    if (p > ops_.begin(r) && times_[p - 1].end - begin_of(r) - work_[p - 1] > spare) return false;
    if (missing == ops_.none() || (!stack_.empty() && position_[target] < p)) {
      if (stack_.empty()) return true;
      r = stack_.back().first;
      waits_[static_cast<std::size_t>(r)] = 0;
      target = stack_.back().second;
      stack_.pop_back();
      continue;
    }
    if (waits_[static_cast<std::size_t>(r)] != 0) return false;
    waits_[static_cast<std::size_t>(r)] = 1;
    stack_.emplace_back(r, target);
    target = missing;
    r = problem_.stages[ops_.of(missing).stage].rank;
    if (waits_[static_cast<std::size_t>(r)] != 0) return false;
  }
}

// Until the rank ends, or misses the op that is returned.
template <bool general>
OpId Evaluator::advance(int rank) {
  std::size_t p = next_[static_cast<std::size_t>(rank)];
  const std::size_t end = ops_.end(rank);
  Time clock = p == ops_.begin(rank) ? 0 : times_[p - 1].end;
  OpId missing = ops_.none();
  while (p < end) {
    const OpInfo& info = ops_.of(op_of(word_[p]));
    const std::size_t before = position_[info.before];
    if (before >= next_[info.before_rank]) {
      missing = info.before;
      break;
    }
    if constexpr (general) {
      if (is_joined(word_[p])) {
        // Of a pair the backward needs its input, too.
        const OpInfo& second = ops_.of(op_of(word_[p + 1]));
        if (position_[second.before] >= next_[second.before_rank]) {
          missing = second.before;
          break;
        }
        clock = run_unit(p, clock);
        p = unit_end(p);
        next_[static_cast<std::size_t>(rank)] = p;
        continue;
      }
    }
    clock = std::max(clock, times_[before].out) + info.duration;
    times_[p].end = clock;
    times_[p].out = clock + info.travels;
    if constexpr (general) send(rank, op_of(word_[p]), times_[p], clock);
    ++p;
  }
  next_[static_cast<std::size_t>(rank)] = p;
  return missing;
}

// A full backward, or a pair.
Time Evaluator::run_unit(std::size_t position, Time clock) {
  const std::size_t end = unit_end(position);
  Time start = clock;
  for (std::size_t p = position; p < end; ++p) start = std::max(start, arrival(p));
  const Time stop = start + unit_duration(position);
  const bool is_pair = end - position == 3;
  for (std::size_t p = position; p < end; ++p) {
    const OpId op = op_of(word_[p]);
    const ProblemStage& stage = problem_.stages[ops_.of(op).stage];
    Time released = stop;
    if (is_pair && problem_.releases_early && ops_.pass(op) != Pass::weight_gradient) {
      released = std::min(start + (ops_.pass(op) == Pass::forward ? stage.forward : stage.backward), stop);
    }
    times_[p].end = stop;
    times_[p].out = released + ops_.of(op).travels;
    send(stage.rank, op, times_[p], released);
  }
  return stop;
}

// Over a link that carries one message at a time.
void Evaluator::send(int rank, OpId op, Times& times, Time released) {
  const OpInfo& info = ops_.of(op);
  const Pass pass = ops_.pass(op);
  if (!problem_.links || pass == Pass::weight_gradient) return;
  const ProblemStage& stage = problem_.stages[info.stage];
  const bool is_last = pass == Pass::forward ? stage.ends_chain : stage.begins_chain;
  const std::size_t to = is_last ? info.stage : pass == Pass::forward ? info.stage + 1U : info.stage - 1U;
  if (problem_.stages[to].rank == rank) return;
  Time& free = link_free_[link_of_[2 * std::size_t{info.stage} + (pass == Pass::forward ? 0 : 1)]];
  free = std::max(released - problem_.launch, free) + info.travels + problem_.launch;
  times.out = free;
}

void Evaluator::accept() {
  makespan_ = tried_;
  for (int r = 0; r < problem_.ranks(); ++r) {
    const std::size_t first = first_[static_cast<std::size_t>(r)];
    std::copy(times_.begin() + static_cast<std::ptrdiff_t>(first),
              times_.begin() + static_cast<std::ptrdiff_t>(ops_.end(r)),
              kept_.begin() + static_cast<std::ptrdiff_t>(first));
  }
}

void Evaluator::undo() {
  std::ranges::copy(before_, word_.begin() + static_cast<std::ptrdiff_t>(changed_from_));
  place(changed_rank_, changed_from_, changed_from_ + before_.size());
  if (general_) {
    place(changed_rank_, changed_from_ + before_.size(), ops_.end(changed_rank_));
    load_[static_cast<std::size_t>(changed_rank_)] = work_[ops_.end(changed_rank_) - 1];
  }
  for (int r = 0; r < problem_.ranks(); ++r) {
    const auto i = static_cast<std::size_t>(r);
    std::copy(kept_.begin() + static_cast<std::ptrdiff_t>(first_[i]),
              kept_.begin() + static_cast<std::ptrdiff_t>(next_[i]),
              times_.begin() + static_cast<std::ptrdiff_t>(first_[i]));
  }
}

void Evaluator::critical_path(std::vector<std::size_t>& positions) const {
  positions.clear();
  std::size_t p = 0;
  for (int r = 0; r < problem_.ranks(); ++r) {
    if (ops_.begin(r) < ops_.end(r) && times_[ops_.end(r) - 1].end - begin_of(r) == makespan_) p = ops_.end(r) - 1;
  }
  for (;;) {
    const std::size_t begin = general_ ? unit_begin(p) : p;
    positions.push_back(begin);
    const Time start = times_[p].end - unit_duration(begin);
    const int rank = problem_.stages[ops_.of(op_of(word_[p])).stage].rank;
    if (begin > ops_.begin(rank) && times_[begin - 1].end == start) {
      p = begin - 1;
      continue;
    }
    std::size_t before = ops_.count();
    const std::size_t end = general_ ? unit_end(begin) : begin + 1;
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t at = position_[ops_.of(op_of(word_[i])).before];
      if (at < ops_.count() && times_[at].out == start) before = at;
    }
    if (before == ops_.count()) return;
    p = before;
  }
}

}  // namespace dualpipe::detail::search
