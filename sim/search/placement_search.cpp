#include "dualpipe/sim/search/placement_search.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <utility>

#include "dualpipe/sim/evaluate/in_order.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/schedule_builder.h"
#include "dualpipe/sim/search/anneal.h"
#include "dualpipe/sim/search/construct.h"
#include "dualpipe/sim/search/evaluator.h"
#include "dualpipe/sim/search/repeat.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "dualpipe/sim/simulate/simulate.h"

namespace dualpipe::detail::search {

namespace {

constexpr std::size_t pool_max = 24;  // orders that annealing starts from
constexpr std::size_t jobs_per_round = 16;
constexpr std::int64_t part_max = 2'500;  // evaluations, per op, after which it begins anew
constexpr std::size_t first_jobs = 8;
constexpr std::size_t construct_jobs_max = 96;  // per round
constexpr std::int64_t construct_share = 4;     // of the evaluations one in so many makes orders to start from

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
    while (!is_over(end)) {
      const std::int64_t part = std::min(end, evaluations_ + part_max * static_cast<std::int64_t>(ops_.count()));
      const std::int64_t constructed = evaluations_ + (part - evaluations_) / construct_share;
      do construct_round(constructed);
      while (!is_over(constructed));
      if (!has_repeated_ && !is_over(part)) repeat_fewer(part);
      has_repeated_ = true;
      while (!is_over(part) && !pool_.empty()) {
        anneal_round(part);
        if (progress) progress();
      }
      if (pool_.empty()) break;
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

  void take(std::vector<Candidate> results) {
    for (Candidate& each : results) {
      if (!holds_no_more(each.order, ops_, problem_)) continue;
      prove(each);
      enter(std::move(each));
    }
  }

  // Orders to start from, on all cores, and from them the best in the same sequence on any number.
  void construct_round(std::int64_t end) {
    // How much a job takes, the first ones tell.
    const auto jobs = static_cast<std::size_t>(
        std::clamp<std::int64_t>((end - evaluations_) / std::max(constructing_, cost_of_constructing(problem_, ops_)),
                                 1, static_cast<std::int64_t>(constructing_ == 0 ? first_jobs : construct_jobs_max)));
    const std::int64_t before = evaluations_;
    const std::int64_t share = (end - before) / static_cast<std::int64_t>(jobs);
    const Problem snapshot = problem_;
    const double least_stretch = stretch_;
    std::vector<double> stretches(jobs);
    const std::uint64_t round = ++rounds_;
    evaluate::in_order<Constructed>(
        jobs, settings_.threads,
        [&](std::size_t job) {
          if (settings_.stopped && settings_.stopped()) return Constructed{};
          Random random = random_of(round, job);
          stretches[job] = stretch_of(job, least_stretch, random);
          return construct(snapshot, ops_, settings_.by_span, stretches[job], share, random);
        },
        [&](std::size_t job, Constructed constructed) {
          evaluations_ += constructed.evaluations;
          take(std::move(constructed.best));
          if (constructed.keeps_room && (stretch_ == 0 || stretches[job] < stretch_)) stretch_ = stretches[job];
        });
    constructing_ = std::max<std::int64_t>(1, (evaluations_ - before) / static_cast<std::int64_t>(jobs));
  }

  // Periods about the least that is known to need no more memory than there is, and any others.
  [[nodiscard]] static double stretch_of(std::size_t job, double least, Random& random) {
    const double share = random.share();
    if (job % 4 == 0) return std::max(1.0, least);
    if (job % 4 == 2) return std::max(1.0, least * (0.9 + 0.2 * share));
    return 1 + 0.8 * share * share;
  }
  [[nodiscard]] Random random_of(std::uint64_t round, std::size_t job) const {
    return {settings_.seed, (round << 20U) + job};
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
    // Several rounds, each from what the one before found, do better than one that is as long.
    const std::int64_t slice_max = std::max<std::int64_t>(500, 32 * static_cast<std::int64_t>(ops_.count()));
    const std::int64_t slice =
        std::clamp<std::int64_t>((end - evaluations_) / static_cast<std::int64_t>(jobs_per_round), 500, slice_max);
    const auto jobs = static_cast<std::size_t>(std::clamp<std::int64_t>((end - evaluations_ + slice - 1) / slice, 1,
                                                                        static_cast<std::int64_t>(jobs_per_round)));
    std::vector<std::int64_t> used(jobs);
    std::atomic<std::size_t> reached = std::numeric_limits<std::size_t>::max();
    const Problem snapshot = problem_;
    const std::vector<Candidate> from = pool_;
    const std::uint64_t round = ++rounds_;
    evaluate::in_order<Annealed>(
        jobs, settings_.threads,
        [&](std::size_t job) {
          Random random = random_of(round, job);
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
          return annealed;
        },
        [&](std::size_t job, Annealed annealed) {
          if (job <= reached.load()) take({{std::move(annealed.order), annealed.makespan}});
        });
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
  std::int64_t constructing_ = 0;  // evaluations of a job of the last such round
  bool has_repeated_ = false;
  double stretch_ = 0;  // the least of a cyclic schedule for which there was room; 0: none is known
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
