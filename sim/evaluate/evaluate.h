// One candidate from end to end: generated, lowered, simulated, its memory counted. And many of them, on all cores.
//
//   Request ──generate()──▶ Schedule ──lower()──▶ Program ──simulate(), memory_of_ranks()──▶ Evaluation
//
// What is kept of a candidate are its figures, a hundred bytes or so per rank: neither schedule nor program, nor when
// each op ran. Whoever wants these of one candidate takes the steps himself.
#pragma once

#include <cstddef>
#include <exception>
#include <functional>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/generate/request.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

struct Evaluation {
  int stages = 0;
  Timeline timeline;               // of the ranks alone; ops and messages are not recorded
  std::vector<RankMemory> memory;  // by rank

  friend bool operator==(const Evaluation&, const Evaluation&) = default;

  // The idle time of the rank that idles most, within the makespan or within the longest span of a rank.
  [[nodiscard]] Time bubble_by_makespan() const;
  [[nodiscard]] Time bubble_by_span() const;
  // Micro-batches alive at once on the rank that holds fewest, or most, at its peak.
  [[nodiscard]] int peak_activations_least() const;
  [[nodiscard]] int peak_activations_most() const;
  // Of the rank that needs most; to be compared with Request::memory_limit.
  [[nodiscard]] Bytes peak_memory() const;
  // Stages whose parameters a rank holds, at most.
  [[nodiscard]] int parameters() const;
};

// Throws what generate(), stage_costs(), simulate() and memory_of_ranks() throw: ShapeError where the family has no
// such shape, InputError, DeadlockError.
[[nodiscard]] Evaluation evaluate(const Request& request);
// Of a schedule that is there already. It must be valid (validate.h).
[[nodiscard]] Evaluation evaluate(Schedule schedule, const Costs& costs);
[[nodiscard]] Evaluation evaluate(const Program& program, const Costs& costs);

// What came of one candidate of many: its figures, or why it has none. Where shapes are tried, one that does not fit is
// an ordinary outcome.
class Outcome {
 public:
  explicit Outcome(Evaluation evaluation) : result_(std::move(evaluation)) {}
  explicit Outcome(std::exception_ptr error) : result_(std::move(error)) {}

  [[nodiscard]] bool succeeded() const { return std::holds_alternative<Evaluation>(result_); }
  // Throws the candidate's exception where it did not succeed.
  [[nodiscard]] const Evaluation& evaluation() const {
    if (const auto* error = std::get_if<std::exception_ptr>(&result_)) std::rethrow_exception(*error);
    return std::get<Evaluation>(result_);
  }

 private:
  std::variant<Evaluation, std::exception_ptr> result_;
};

// The outcomes of the requests, in their order; the same for any number of threads. 0 threads: one for every core.
[[nodiscard]] std::vector<Outcome> evaluate_all(std::span<const Request> requests, unsigned threads = 0);

// For more candidates than are to be held at once, or schedules that are made on the way: `evaluate_one(i)` is called
// for every i below `count`, on several threads at once, and may throw, which is the outcome of candidate i. `take(i,
// outcome)` is called for one candidate after the other, in order, and soon after it is done, so that only few outcomes
// wait at any time. What `take` throws ends all of it, and is thrown here.
void evaluate_each(std::size_t count, const std::function<Evaluation(std::size_t)>& evaluate_one,
                   const std::function<void(std::size_t, Outcome)>& take, unsigned threads = 0);

}  // namespace dualpipe
