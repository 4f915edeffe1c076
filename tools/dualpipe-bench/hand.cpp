#include "tools/dualpipe-bench/hand.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace dualpipe {
namespace {

// What both do for an op once it is known when it starts.
class Ledger {
 public:
  Ledger(const Program& program, const Costs& costs, bool spans)
      : schedule_(program.schedule), cost_(costs.stages[0]), next_(schedule_.rank_begin) {
    const auto ranks = static_cast<std::size_t>(schedule_.ranks());
    const Bytes resident = cost_.parameters + cost_.gradients + cost_.optimizer;
    result_.times.resize(ranks);
    result_.memories.assign(ranks, {.parameters = 1, .resident = resident, .peak = resident});
    if (spans) result_.ops.resize(schedule_.ops.size());
    free_.resize(ranks);
    activations_.resize(ranks);
  }

  [[nodiscard]] bool has_next(std::size_t rank) const { return next_[rank] < schedule_.rank_begin[rank + 1]; }
  [[nodiscard]] Op next(std::size_t rank) const { return schedule_.ops[next_[rank]]; }

  // Runs the rank's next op as soon as the rank is free and `input` has come; returns its end.
  Time run(std::size_t rank, bool forward, Time input) {
    const Time start = std::max(free_[rank], input);
    const Time end = start + (forward ? cost_.forward : cost_.backward);
    const std::size_t op = next_[rank]++;
    if (!result_.ops.empty()) result_.ops[op] = {start, end};
    RankTimes& times = result_.times[rank];
    if (op == schedule_.rank_begin[rank]) times.first_start = start;
    times.last_end = end;
    times.busy += end - start;
    free_[rank] = end;
    if (forward) {
      count_forward(rank, op - schedule_.rank_begin[rank]);
    } else {
      --activations_[rank];
    }
    return end;
  }

  [[nodiscard]] ByHand take() { return std::move(result_); }

 private:
  void count_forward(std::size_t rank, std::size_t position) {
    RankMemory& memory = result_.memories[rank];
    if (++activations_[rank] <= memory.peak_activations) return;
    memory.peak_activations = activations_[rank];
    memory.peak_activations_position = position;
    if (cost_.activation <= 0) return;
    memory.peak = memory.resident + activations_[rank] * cost_.activation;
    memory.peak_position = position;
  }

  const Schedule& schedule_;
  const StageCosts& cost_;
  ByHand result_;
  std::vector<std::size_t> next_;  // op of each rank
  std::vector<Time> free_;
  std::vector<int> activations_;
};

}  // namespace

ByHand one_f_one_b_in_turns(const Program& program, const Costs& costs, bool spans) {
  constexpr int turn_ops = 64;
  constexpr Time unknown = -1;
  const auto ranks = static_cast<std::size_t>(program.schedule.ranks());
  const std::size_t micro_batches = program.schedule.micro_batches;
  Ledger ledger(program, costs, spans);
  std::vector<Time> inputs(ranks * micro_batches, unknown);  // when they arrive
  std::vector<Time> gradients(ranks * micro_batches, unknown);
  std::fill_n(inputs.begin(), micro_batches, 0);
  std::fill(gradients.end() - static_cast<std::ptrdiff_t>(micro_batches), gradients.end(), 0);
  for (bool more = true; more;) {
    more = false;
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      for (int i = 0; i < turn_ops && ledger.has_next(rank); ++i) {
        const Op op = ledger.next(rank);
        const bool forward = op.kind == Kind::forward;
        const std::size_t place = rank * micro_batches + op.micro_batch;
        const Time input = forward ? inputs[place] : gradients[place];
        if (input == unknown) break;
        const Time arrival = ledger.run(rank, forward, input) + costs.latency;
        if (forward && rank + 1 < ranks) inputs[place + micro_batches] = arrival;
        if (!forward && rank > 0) gradients[place - micro_batches] = arrival;
      }
      more = more || ledger.has_next(rank);
    }
  }
  return ledger.take();
}

ByHand one_f_one_b_on_diagonals(const Program& program, const Costs& costs, bool spans) {
  const auto ranks = static_cast<std::size_t>(program.schedule.ranks());
  const std::size_t micro_batches = program.schedule.micro_batches;
  const auto warm_up = [&](std::size_t rank) { return std::min(ranks - 1 - rank, micro_batches); };
  Ledger ledger(program, costs, spans);
  std::vector<Time> inputs(micro_batches);  // in the warm-up, of the rank that it is at
  std::vector<Time> outputs(ranks);         // when each rank's last output arrives
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    for (std::size_t i = 0; i < warm_up(rank); ++i) {
      inputs[i] = outputs[rank] = ledger.run(rank, true, inputs[i]) + costs.latency;
    }
  }
  for (std::size_t i = 0; i < micro_batches; ++i) {
    Time gradient = 0;
    for (std::size_t rank = ranks; rank-- > 0;) {
      if (ledger.next(rank).kind == Kind::forward) {
        outputs[rank] = ledger.run(rank, true, rank > 0 ? outputs[rank - 1] : 0) + costs.latency;
      }
      gradient = ledger.run(rank, false, gradient) + costs.latency;
    }
  }
  return ledger.take();
}

}  // namespace dualpipe
