#include "dualpipe/sim/schedule/census.h"

#include <algorithm>
#include <map>
#include <utility>

namespace dualpipe::detail::schedule {

Census::Census(const Schedule& schedule) : schedule_(schedule) {
  const auto stages = static_cast<std::size_t>(schedule.placement.stages());
  for (int chain = 0; chain < schedule.placement.chains(); ++chain) {
    const auto& begin = schedule.placement.chain_begin;
    const auto i = static_cast<std::size_t>(chain);
    chain_of_.insert(chain_of_.end(), static_cast<std::size_t>(begin[i + 1] - begin[i]),
                     static_cast<std::uint16_t>(chain));
  }
  std::vector<std::uint32_t> of_stages(stages);
  std::vector<std::uint32_t> of_micro_batches(static_cast<std::size_t>(schedule.placement.chains()) *
                                              schedule.micro_batches);
  std::size_t forwards = 0;
  std::size_t backwards = 0;
  for (const Op op : schedule.ops) {
    if (!is_counted(op)) continue;
    ++of_stages[op.stage];
    ++of_micro_batches[place_of(op.stage, op.micro_batch)];
    ++(op.kind == Kind::forward ? forwards : backwards);
  }
  trains_ = backwards > 0 && 2 * backwards >= forwards;
  classify(of_stages, of_micro_batches);
}

bool Census::is_counted(Op op) const {
  return is_compute(op.kind) && op.stage < chain_of_.size() && op.micro_batch < schedule_.micro_batches;
}

// Rarely: less than half of the ops that it has at the least, F and B.
void Census::classify(const std::vector<std::uint32_t>& of_stages, const std::vector<std::uint32_t>& of_micro_batches) {
  const auto occurs = [&](std::uint32_t count, std::size_t expected) {
    if (count == 0) return Occurs::nowhere;
    return 2 * std::size_t{count} < expected ? Occurs::rarely : Occurs::often;
  };
  const std::size_t passes = trains_ ? 2 : 1;
  const auto& begin = schedule_.placement.chain_begin;
  std::size_t often_most = 0;  // of a chain
  for (std::size_t chain = 0; chain + 1 < begin.size(); ++chain) {
    const std::size_t expected = passes * (std::size_t{begin[chain + 1]} - begin[chain]);
    std::size_t often = 0;
    for (std::size_t i = 0; i < schedule_.micro_batches; ++i) {
      micro_batches_.push_back(occurs(of_micro_batches[chain * schedule_.micro_batches + i], expected));
      if (micro_batches_.back() == Occurs::often) ++often;
    }
    often_most = std::max(often_most, often);
  }
  // Where none is whole, nothing can be told from the others.
  if (often_most == 0) std::ranges::fill(micro_batches_, Occurs::often);
  for (const std::uint32_t count : of_stages) stages_.push_back(occurs(count, passes * often_most));
}

std::vector<Violation> Census::violations() const {
  std::vector<Violation> found;
  for (std::size_t stage = 0; stage < stages_.size(); ++stage) {
    if (stages_[stage] != Occurs::nowhere) continue;
    const Op op{0, static_cast<std::uint16_t>(stage), Kind::forward, false};
    found.push_back({Rule::absent_stage, schedule_.placement.rank_of[stage], 0, op, op});
  }
  add_strays(found);
  add_absent_micro_batches(found);
  return found;
}

void Census::add_strays(std::vector<Violation>& violations) const {
  const auto is_rare = [](Occurs occurs) { return occurs == Occurs::rarely; };
  if (std::ranges::none_of(stages_, is_rare) && std::ranges::none_of(micro_batches_, is_rare)) return;
  std::map<std::pair<Rule, std::size_t>, Violation> strays;
  const auto add = [&](Rule rule, std::size_t number, int rank, Op op) {
    Violation& stray = strays.try_emplace({rule, number}, Violation{rule, rank, 0, op, op}).first->second;
    ++stray.position;
    stray.other = op;
  };
  for (int rank = 0; rank < schedule_.ranks(); ++rank) {
    for (Op op : schedule_.rank(rank)) {
      if (!is_counted(op)) continue;
      op.with_next = false;
      if (is_rare(stages_[op.stage])) add(Rule::stray_stage, op.stage, rank, op);
      const std::size_t place = place_of(op.stage, op.micro_batch);
      if (is_rare(micro_batches_[place])) add(Rule::stray_micro_batch, place, rank, op);
    }
  }
  for (const auto& [key, stray] : strays) violations.push_back(stray);
}

// Those before one that is too many are missing only because it is.
void Census::add_absent_micro_batches(std::vector<Violation>& violations) const {
  const std::size_t count = schedule_.micro_batches;
  std::size_t end = 0;  // behind the last that all should have
  bool has_stray_behind = false;
  for (std::size_t place = 0; place < micro_batches_.size(); ++place) {
    const std::size_t behind = place % count + 1;
    if (micro_batches_[place] == Occurs::often) end = std::max(end, behind);
  }
  for (std::size_t place = 0; place < micro_batches_.size(); ++place) {
    has_stray_behind = has_stray_behind || (micro_batches_[place] == Occurs::rarely && place % count >= end);
  }
  if (!has_stray_behind) end = count;
  for (std::size_t chain = 0; chain * count < micro_batches_.size(); ++chain) {
    const auto first_stage = schedule_.placement.chain_begin[chain];
    for (std::size_t i = 0, run = 0; i < end; i = run) {
      run = i + 1;
      if (micro_batches_[chain * count + i] != Occurs::nowhere) continue;
      while (run < end && micro_batches_[chain * count + run] == Occurs::nowhere) ++run;
      violations.push_back({Rule::absent_micro_batches,
                            schedule_.placement.rank_of[first_stage],
                            run - i,
                            {static_cast<std::uint32_t>(i), first_stage, Kind::forward, false},
                            {static_cast<std::uint32_t>(run - 1), first_stage, Kind::forward, false}});
    }
  }
}

}  // namespace dualpipe::detail::schedule
