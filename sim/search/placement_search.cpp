#include "dualpipe/sim/search/placement_search.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <utility>

#include "dualpipe/sim/evaluate/in_order.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/schedule_builder.h"
#include "dualpipe/sim/search/anneal.h"
#include "dualpipe/sim/search/blocks.h"
#include "dualpipe/sim/search/dispatch.h"
#include "dualpipe/sim/search/evaluator.h"
#include "dualpipe/sim/search/repeat.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "dualpipe/sim/simulate/simulate.h"

namespace dualpipe::detail::search {

// An order that annealing may start from.
struct Candidate {
  Order order;
  Time value = 0;
};

namespace {

constexpr std::size_t pool_max = 24;  // orders that annealing starts from
constexpr std::size_t jobs_per_round = 16;
constexpr std::size_t block_jobs_max = 96;

// The words that a cyclic schedule makes: all ops by their times.
Order unrolled(const Problem& problem, const Ops& ops, const Block& block) {
  Order order;
  std::vector<std::pair<Time, OpId>> timed;
  for (const auto& stages : problem.stages_on) {
    timed.clear();
    for (const int s : stages) {
      for (const Pass pass : {Pass::forward, Pass::input_gradient, Pass::weight_gradient}) {
        const Time start = block.start[3 * static_cast<std::size_t>(s) + static_cast<std::size_t>(pass)];
        for (std::int64_t m = 0; m < problem.micro_batches; ++m) {
          timed.emplace_back(start + m * block.period, ops.id(s, pass, m));
        }
      }
    }
    std::ranges::sort(timed);
    for (const auto& [time, op] : timed) order.push_back(op);
  }
  return order;
}

DispatchRule random_rule(const Problem& problem, Random& random) {
  DispatchRule rule;
  const bool gradients_first = random.below(3) > 0;
  const bool late_first = random.below(2) == 0;
  const auto stages = static_cast<Time>(problem.stages.size());
  for (Time s = 0; s < stages; ++s) {
    const Time forward = late_first ? stages - s : s;
    const Time gradient = random.below(8) == 0 ? s : stages - s;
    rule.key.push_back((gradients_first ? stages : 0) + forward);
    rule.key.push_back((gradients_first ? 0 : stages) + gradient);
    rule.key.push_back(4 * stages + s);
  }
  rule.step = random.below(3) == 0 ? 1 : 0;
  constexpr double patience[] = {0, 0.25, 0.5, 1, 4};
  rule.patience = patience[random.below(5)];
  if (random.below(2) == 0) {
    for (const auto& stages_of_rank : problem.stages_on) {
      const auto share = static_cast<std::int64_t>(stages_of_rank.size());
      rule.in_flight.push_back(
          1 + static_cast<std::int64_t>(random.below(2 * problem.stages_on.size() *
                                                     static_cast<std::uint64_t>(std::max<std::int64_t>(share, 1)))));
    }
  }
  return rule;
}

}  // namespace

bool Real::keeps(const std::optional<MemoryLimit>& limit) const {
  return !limit || std::ranges::all_of(needed, [&](const MemoryLimit& each) { return each.amount <= limit->amount; });
}

Real real_of(const Schedule& schedule, const Costs& costs, const std::optional<MemoryLimit>& limit) {
  const Program program = lower(schedule);
  const Timeline timeline = dualpipe::simulate(program, costs, Record::ranks);
  Real real{timeline.makespan(), timeline.span(), 0, {}};
  for (const RankMemory& rank : memory_of_ranks(program, costs)) real.peak = std::max(real.peak, rank.peak);
  if (limit) real.needed = memory_needed(program, costs, limit->unit);
  return real;
}

class PlacementSearch::State {
 public:
  State(const Placement& placement, std::int64_t micro_batches, Costs costs, PlacementSettings settings)
      : costs_(std::move(costs)),
        settings_(std::move(settings)),
        problem_(problem_of(placement, micro_batches, costs_, settings_.limit)),
        ops_(problem_) {
    const Bound bound = bound_of(problem_);
    bound_ = settings_.by_span ? bound.span : bound.makespan;
  }

  [[nodiscard]] Time bound() const { return bound_; }
  [[nodiscard]] const std::optional<Found>& best() const { return best_; }
  [[nodiscard]] std::int64_t evaluations() const { return evaluations_; }
  [[nodiscard]] const Costs& costs() const { return costs_; }

  void add(const Schedule& schedule, const Real& real) {
    ++evaluations_;
    keep_best(schedule, schedule.name, real);
    Order order = order_of(schedule, ops_, problem_);
    if (holds_no_more(order, ops_, problem_)) enter(std::move(order));
  }

  // One micro-batch after the other: whatever can be kept at all, this keeps.
  [[nodiscard]] Schedule least_schedule() const {
    ScheduleBuilder builder(problem_.placement, static_cast<std::uint32_t>(problem_.micro_batches), ops_.count());
    const bool is_split = !problem_.joins_backwards();
    for (int rank = 0; rank < problem_.ranks(); ++rank) {
      builder.go_to(rank);
      for (std::int64_t m = 0; m < problem_.micro_batches; ++m) {
        for (int chain = 0; chain < problem_.placement.chains(); ++chain) {
          std::vector<int> stages;
          for (const int s : problem_.stages_on[static_cast<std::size_t>(rank)]) {
            if (problem_.placement.chain_of(s) == chain) stages.push_back(s);
          }
          for (const int s : stages) builder.forward(s, m);
          std::ranges::reverse(stages);
          for (const int s : stages) {
            if (!is_split) {
              builder.backward(s, m);
              continue;
            }
            builder.input_gradient(s, m);
            builder.weight_gradient(s, m);
          }
        }
      }
    }
    return builder.take("search");
  }

  void add_least() {
    const Schedule schedule = least_schedule();
    add(schedule, real_of(schedule, costs_, settings_.limit));
  }

  [[nodiscard]] std::vector<MemoryLimit> least_needed() const {
    return real_of(least_schedule(), costs_, settings_.limit).needed;
  }

  void run(std::int64_t evaluations, const std::function<void()>& found, const std::function<void()>& progress) {
    const std::int64_t end = evaluations_ + evaluations;
    found_ = &found;
    if (!is_constructed_) construct(end);
    if (!is_constructed_ && !is_over(end)) repeat_fewer(end);
    is_constructed_ = true;
    while (!is_over(end) && !pool_.empty()) {
      anneal_round(end);
      if (progress) progress();
    }
    found_ = nullptr;
  }

 private:
  [[nodiscard]] bool is_over(std::int64_t end) const {
    return evaluations_ >= end || (best_ && best_->value <= bound_) || (settings_.stopped && settings_.stopped());
  }

  [[nodiscard]] Time value_of(const Real& real) const { return settings_.by_span ? real.span : real.makespan; }

  void keep_best(const Schedule& schedule, const std::string& origin, const Real& real) {
    if (!real.keeps(settings_.limit)) return;
    const Time value = value_of(real);
    if (best_ && best_->value <= value) return;
    best_ = Found{schedule, origin, real, value};
    best_->schedule.name = "search";
    if (found_ != nullptr && *found_) (*found_)();
  }

  // Into the pool, if it is good enough for that.
  void enter(Order order) {
    Evaluator evaluator(problem_, ops_, settings_.by_span);
    const Time value = evaluator.reset(order);
    if (value == Evaluator::hangs) return;
    enter({std::move(order), value});
  }
  void enter(Candidate candidate) {
    const auto is_same = [&](const Candidate& other) {
      return other.value == candidate.value && other.order == candidate.order;
    };
    if (std::ranges::any_of(pool_, is_same)) return;
    const auto place = std::ranges::upper_bound(pool_, candidate.value, {}, &Candidate::value);
    pool_.insert(place, std::move(candidate));
    if (pool_.size() > pool_max) pool_.pop_back();
  }

  // What the evaluator says of an order is compared with what it really takes and holds. Where it holds too much, as
  // buffers count, too, there is less room for all orders from now on.
  void prove(const Candidate& candidate) {
    if (best_ && candidate.value - problem_.launch >= best_->value && !is_approximate()) return;
    const Schedule schedule = schedule_of(candidate.order, ops_, problem_, "search");
    const Real real = real_of(schedule, costs_, settings_.limit);
    keep_best(schedule, "search", real);
    if (real.keeps(settings_.limit)) return;
    for (std::size_t r = 0; r < problem_.room.size(); ++r) {
      const std::int64_t excess = real.needed[r].amount - settings_.limit->amount;
      if (excess > 0) problem_.room[r] -= settings_.limit->unit == MemoryLimit::Unit::bytes ? excess : 1;
    }
    std::erase_if(pool_, [&](const Candidate& each) { return !holds_no_more(each.order, ops_, problem_); });
  }
  [[nodiscard]] bool is_approximate() const { return costs_.model == CommunicationModel::stream; }

  // On all cores; the results in order.
  template <typename Work, typename IsMeant>
  void in_parallel(std::size_t jobs, const Work& work, const IsMeant& is_meant) {
    evaluate::in_order<std::vector<Candidate>>(jobs, settings_.threads, work,
                                               [&](std::size_t job, std::vector<Candidate> results) {
                                                 if (!is_meant(job)) return;
                                                 for (Candidate& each : results) {
                                                   if (!holds_no_more(each.order, ops_, problem_)) continue;
                                                   prove(each);
                                                   enter(std::move(each));
                                                 }
                                               });
  }

  void construct(std::int64_t end) {
    const auto entries = static_cast<std::int64_t>(3 * problem_.stages.size());
    const std::int64_t moves = 1500 * problem_.ranks();
    const bool has_blocks = problem_.placement.chains() == 1;
    const std::int64_t per_job =
        12 + (has_blocks ? std::max<std::int64_t>(1, moves * entries / static_cast<std::int64_t>(ops_.count())) : 0);
    const auto jobs = static_cast<std::size_t>(
        std::clamp<std::int64_t>((end - evaluations_) / 8 / per_job, 1, static_cast<std::int64_t>(block_jobs_max)));
    const Problem snapshot = problem_;
    in_parallel(
        jobs,
        [&, has_blocks](std::size_t job) {
          std::vector<Candidate> results;
          Random random(settings_.seed, job);
          Evaluator evaluator(snapshot, ops_, settings_.by_span);
          const auto take = [&](std::optional<Order> order) {
            if (!order || !holds_no_more(*order, ops_, snapshot)) return;
            const Time value = evaluator.reset(*order);
            if (value != Evaluator::hangs) results.push_back({std::move(*order), value});
          };
          if (settings_.stopped && settings_.stopped()) return results;
          for (int i = 0; i < 6; ++i) take(dispatch(snapshot, ops_, random_rule(snapshot, random)));
          if (has_blocks) {
            const Block block = anneal_block(snapshot, job % 4 == 3 ? 1.08 : 1, static_cast<int>(moves), random);
            take(unrolled(snapshot, ops_, block));
            DispatchRule rule{block.start, block.period, 0, {}};
            for (const double patience : {0.0, 0.3, 0.6, 1.0, 10.0}) {
              rule.patience = patience;
              take(dispatch(snapshot, ops_, rule));
            }
          }
          std::ranges::stable_sort(results, {}, &Candidate::value);
          if (results.size() > 3) results.resize(3);
          return results;
        },
        [](std::size_t) { return true; });
    evaluations_ += static_cast<std::int64_t>(jobs) * per_job;
  }

  // With many micro-batches most of a schedule is its steady state, which fewer have, too.
  void repeat_fewer(std::int64_t end) {
    const std::int64_t few = 3 * problem_.ranks();
    if (problem_.micro_batches < few + few / 2 || problem_.has_pairs || problem_.joins_backwards()) return;
    const std::int64_t count = few + (problem_.micro_batches - few) % 12;
    State fewer(problem_.placement, count, costs_, settings_);
    const std::int64_t share = (end - evaluations_) / 2;
    // An evaluation counts by the number of its ops.
    fewer.run(share * problem_.micro_batches / count, {}, {});
    evaluations_ += fewer.evaluations_ * count / problem_.micro_batches;
    for (const Candidate& each : fewer.pool_) {
      std::optional<Order> order = repeated(each.order, fewer.problem_, problem_, settings_.by_span);
      if (!order || !holds_no_more(*order, ops_, problem_)) continue;
      Evaluator evaluator(problem_, ops_, settings_.by_span);
      Candidate candidate{std::move(*order), 0};
      candidate.value = evaluator.reset(candidate.order);
      if (candidate.value == Evaluator::hangs) continue;
      prove(candidate);
      enter(std::move(candidate));
      if (is_over(end)) return;
    }
  }

  void anneal_round(std::int64_t end) {
    const std::int64_t slice =
        std::clamp<std::int64_t>((end - evaluations_) / static_cast<std::int64_t>(jobs_per_round), 500, 250'000);
    const auto jobs = static_cast<std::size_t>(std::clamp<std::int64_t>((end - evaluations_ + slice - 1) / slice, 1,
                                                                        static_cast<std::int64_t>(jobs_per_round)));
    std::vector<std::int64_t> used(jobs);
    std::atomic<std::size_t> reached = std::numeric_limits<std::size_t>::max();
    const Problem snapshot = problem_;
    const std::vector<Candidate> from = pool_;
    const std::uint64_t round = ++rounds_;
    in_parallel(
        jobs,
        [&](std::size_t job) {
          Random random(settings_.seed, (round << 20U) + job);
          Annealing annealing;
          annealing.by_span = settings_.by_span;
          annealing.bound = bound_ + snapshot.launch;
          annealing.evaluations = slice;
          constexpr double hot[] = {0.1, 0.03, 0.3};
          annealing.hot = hot[job % 3];
          annealing.stopped = [&] {
            return reached.load(std::memory_order_relaxed) < job || (settings_.stopped && settings_.stopped());
          };
          const std::size_t start =
              job % 2 == 0 ? random.below(std::min<std::size_t>(from.size(), 3)) : random.below(from.size());
          Annealed annealed = anneal(snapshot, ops_, from[start].order, annealing, random);
          used[job] = annealed.evaluations;
          if (annealed.makespan <= annealing.bound && !is_approximate()) {
            std::size_t first = reached.load();
            while (job < first && !reached.compare_exchange_weak(first, job)) {
            }
          }
          return std::vector<Candidate>{{std::move(annealed.order), annealed.makespan}};
        },
        [&](std::size_t job) { return job <= reached.load(); });
    // Those behind the first that came to the bound were ended early, some sooner than others: they count for nothing.
    for (std::size_t job = 0; job < jobs && job <= reached.load(); ++job) evaluations_ += used[job];
  }

  Costs costs_;
  PlacementSettings settings_;
  Problem problem_;  // with the room that there really is, as far as it is known
  Ops ops_;
  Time bound_ = 0;
  std::vector<Candidate> pool_;  // shortest first
  std::optional<Found> best_;
  std::int64_t evaluations_ = 0;
  std::uint64_t rounds_ = 0;
  bool is_constructed_ = false;
  const std::function<void()>* found_ = nullptr;
};

PlacementSearch::PlacementSearch(const Placement& placement, std::int64_t micro_batches, Costs costs,
                                 PlacementSettings settings)
    : state_(std::make_unique<State>(placement, micro_batches, std::move(costs), std::move(settings))) {}
PlacementSearch::~PlacementSearch() = default;
PlacementSearch::PlacementSearch(PlacementSearch&&) noexcept = default;

Time PlacementSearch::bound() const { return state_->bound(); }
const std::optional<Found>& PlacementSearch::best() const { return state_->best(); }
std::int64_t PlacementSearch::evaluations() const { return state_->evaluations(); }
const Costs& PlacementSearch::costs() const { return state_->costs(); }
void PlacementSearch::add(const Schedule& schedule, const Real& real) { state_->add(schedule, real); }
void PlacementSearch::add_least() { state_->add_least(); }
void PlacementSearch::run(std::int64_t evaluations, const std::function<void()>& found,
                          const std::function<void()>& progress) {
  state_->run(evaluations, found, progress);
}
std::vector<MemoryLimit> PlacementSearch::least_needed() const { return state_->least_needed(); }

}  // namespace dualpipe::detail::search
