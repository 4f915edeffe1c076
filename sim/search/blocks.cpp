#include "dualpipe/sim/search/blocks.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace dualpipe::detail::search {
namespace {

// One rank's circle.
struct Circle {
  std::vector<int> order;  // 3 * place of the stage among the rank's + pass
  std::vector<Time> gap;   // before each
  Time delay = 0;          // of the first
};

class Annealer {
 public:
  Annealer(const Problem& problem, double stretch, Random& random) : problem_(problem), random_(random) {
    Time load = 1;
    for (std::size_t r = 0; r < problem.stages_on.size(); ++r) load = std::max(load, load_of(r));
    period_ = static_cast<Time>(std::llround(static_cast<double>(load) * stretch));
    phase_.resize(3 * problem.stages.size());
    start_.resize(phase_.size());
    for (std::size_t r = 0; r < problem.stages_on.size(); ++r) circles_.push_back(begin(r));
    for (std::size_t r = 0; r < circles_.size(); ++r) set_phases(r);
  }

  Block run(int moves) {
    double cost = evaluate();
    Block best = block();
    double best_cost = cost;
    const double mean = static_cast<double>(period_) / 3;
    for (int i = 0; i < moves && best_cost > 0; ++i) {
      const double temperature = mean * (0.6 * (1 - static_cast<double>(i) / moves) + 0.01);
      const std::size_t r = random_.below(circles_.size());
      if (circles_[r].order.empty()) continue;
      const Circle before = circles_[r];
      change(r);
      set_phases(r);
      const double next = evaluate();
      if (next <= cost || random_.share() < std::exp((cost - next) / temperature)) {
        cost = next;
        if (cost < best_cost) best_cost = cost, best = block();
      } else {
        circles_[r] = before;
        set_phases(r);
      }
    }
    return best;
  }

 private:
  [[nodiscard]] Time duration(int stage, int pass) const {
    const ProblemStage& s = problem_.stages[static_cast<std::size_t>(stage)];
    return pass == 0 ? s.forward : pass == 1 ? s.input_gradient : s.weight_gradient;
  }
  [[nodiscard]] Time load_of(std::size_t rank) const {
    Time load = 0;
    for (const int s : problem_.stages_on[rank]) {
      for (int pass = 0; pass < 3; ++pass) load += duration(s, pass);
    }
    return load;
  }

  Circle begin(std::size_t rank) {
    Circle circle;
    for (std::size_t i = 0; i < 3 * problem_.stages_on[rank].size(); ++i) circle.order.push_back(static_cast<int>(i));
    for (std::size_t i = circle.order.size(); i > 1; --i)
      std::swap(circle.order[i - 1], circle.order[random_.below(i)]);
    circle.gap.assign(circle.order.size(), 0);
    if (!circle.gap.empty()) circle.gap[0] = period_ - load_of(rank);
    circle.delay = static_cast<Time>(random_.share() * static_cast<double>(period_));
    return circle;
  }

  void change(std::size_t r) {
    Circle& circle = circles_[r];
    const std::size_t n = circle.order.size();
    const double what = random_.share();
    if (what < 0.5) {
      std::swap(circle.order[random_.below(n)], circle.order[random_.below(n)]);
    } else if (what < 0.6) {  // idle time goes to another place
      const std::size_t from = random_.below(n);
      const Time part = random_.below(2) == 0 ? circle.gap[from] : circle.gap[from] / 2;
      circle.gap[from] -= part;
      circle.gap[random_.below(n)] += part;
    } else if (what < 0.8) {
      const double range = static_cast<double>(period_) * (random_.below(2) == 0 ? 1 : 0.1);
      circle.delay += static_cast<Time>((random_.share() - 0.5) * range);
    } else if (what < 0.9 && r > 0 && circles_[r - 1].order.size() == n) {
      copy(r - 1, r);
    } else if (r + 1 < circles_.size() && circles_[r + 1].order.size() == n) {
      copy(r + 1, r);
    }
    snap(r);
  }

  void copy(std::size_t from, std::size_t to) {
    circles_[to].order = circles_[from].order;
    circles_[to].delay = circles_[from].delay;
    if (load_of(from) == load_of(to)) circles_[to].gap = circles_[from].gap;
  }

  // Half of the time the circle is turned so that some op starts just when its input comes.
  void snap(std::size_t r) {
    if (random_.below(2) == 0) return;
    set_phases(r);
    const auto& stages = problem_.stages_on[r];
    const int s = stages[random_.below(stages.size())];
    const bool forward = random_.below(2) == 0;
    const ProblemStage& stage = problem_.stages[static_cast<std::size_t>(s)];
    if (forward ? stage.begins_chain : stage.ends_chain) return;
    const int from = forward ? s - 1 : s + 1;
    const ProblemStage& other = problem_.stages[static_cast<std::size_t>(from)];
    const Time input =
        phase(from, forward ? 0 : 1) + duration(from, forward ? 0 : 1) + (forward ? other.to_next : other.to_previous);
    circles_[r].delay += input - phase(s, forward ? 0 : 1);
  }

  [[nodiscard]] Time phase(int stage, int pass) const {
    return phase_[3 * static_cast<std::size_t>(stage) + static_cast<std::size_t>(pass)];
  }

  void set_phases(std::size_t r) {
    Circle& circle = circles_[r];
    circle.delay = ((circle.delay % period_) + period_) % period_;
    Time at = circle.delay;
    for (std::size_t i = 0; i < circle.order.size(); ++i) {
      const int s = problem_.stages_on[r][static_cast<std::size_t>(circle.order[i] / 3)];
      const int pass = circle.order[i] % 3;
      at += circle.gap[i];
      phase_[3 * static_cast<std::size_t>(s) + static_cast<std::size_t>(pass)] = at % period_;
      at += duration(s, pass);
    }
  }

  // The first time of a phase that is not before `from`.
  [[nodiscard]] Time first(Time phase, Time from) const {
    Time wait = (phase - from) % period_;
    if (wait < 0) wait += period_;
    return from + wait;
  }

  double evaluate() {
    const auto stages = static_cast<int>(problem_.stages.size());
    Time input = phase_[0];
    for (int s = 0; s < stages; ++s) {
      Time& start = start_[3 * static_cast<std::size_t>(s)];
      start = first(phase(s, 0), input);
      input = start + duration(s, 0) + problem_.stages[static_cast<std::size_t>(s)].to_next;
    }
    input = start_[3 * static_cast<std::size_t>(stages - 1)] + duration(stages - 1, 0);
    Time stashed = 0;  // how long the last W comes after its I
    for (int s = stages; s-- > 0;) {
      Time& start = start_[3 * static_cast<std::size_t>(s) + 1];
      start = first(phase(s, 1), input);
      const Time end = start + duration(s, 1);
      input = end + problem_.stages[static_cast<std::size_t>(s)].to_previous;
      Time& weight = start_[3 * static_cast<std::size_t>(s) + 2];
      weight = first(phase(s, 2), end);
      stashed += weight - end;
    }
    length_ = start_[1] + duration(0, 1) - phase_[0];
    overflow_ = 0;
    double weighted = 0;
    for (std::size_t r = 0; r < circles_.size(); ++r) {
      const Bytes over = peak(r) - problem_.room[r];
      if (over <= 0) continue;
      overflow_ += over;
      weighted += static_cast<double>(over) / static_cast<double>(std::max<Bytes>(activation_of(r), 1));
    }
    return static_cast<double>(length_ - shortest()) + static_cast<double>(period_) * weighted +
           1e-3 * static_cast<double>(stashed) / stages;
  }

  [[nodiscard]] Bytes activation_of(std::size_t r) const {
    Bytes most = 0;
    for (const int s : problem_.stages_on[r])
      most = std::max(most, problem_.stages[static_cast<std::size_t>(s)].activation);
    return most;
  }

  // What the chain takes without waiting.
  [[nodiscard]] Time shortest() const {
    Time sum = 0;
    for (std::size_t s = 0; s < problem_.stages.size(); ++s) {
      sum += duration(static_cast<int>(s), 0) + duration(static_cast<int>(s), 1);
      if (!problem_.stages[s].ends_chain) sum += problem_.stages[s].to_next;
      if (!problem_.stages[s].begins_chain) sum += problem_.stages[s].to_previous;
    }
    return sum;
  }

  // Micro-batches that have started by then, of one that starts at `from`.
  [[nodiscard]] Time begun(Time from, Time at) const {
    const Time past = at - from;
    return past >= 0 ? past / period_ + 1 : -((-past - 1) / period_);
  }

  [[nodiscard]] Bytes peak(std::size_t r) const {
    Bytes peak = 0;
    for (const int at : problem_.stages_on[r]) {
      const Time now = start_[3 * static_cast<std::size_t>(at)];
      Bytes held = 0;
      for (const int s : problem_.stages_on[r]) {
        const ProblemStage& stage = problem_.stages[static_cast<std::size_t>(s)];
        const Time* start = &start_[3 * static_cast<std::size_t>(s)];
        const Time forwards = begun(start[0], now);
        const Time backwards = begun(start[1] + duration(s, 1), now);
        const Time weights = begun(start[2] + duration(s, 2), now);
        held += (forwards - backwards) * stage.activation + (backwards - weights) * stage.stash;
      }
      peak = std::max(peak, held);
    }
    return peak;
  }

  [[nodiscard]] Block block() const { return {period_, start_, length_, overflow_}; }

  const Problem& problem_;
  Random& random_;
  Time period_ = 1;
  std::vector<Circle> circles_;
  std::vector<Time> phase_;  // by 3 * stage + pass
  std::vector<Time> start_;  // the same
  Time length_ = 0;
  Bytes overflow_ = 0;
};

}  // namespace

Block anneal_block(const Problem& problem, double stretch, int moves, Random& random) {
  return Annealer(problem, stretch, random).run(moves);
}

}  // namespace dualpipe::detail::search
