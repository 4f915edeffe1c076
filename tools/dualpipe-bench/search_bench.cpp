// Benchmarks of the search's inner loop, on one core (576 and 1152 ops):
//
//   search/evaluate/<schedule>/<ranks>x<microbatches>   all times of an order anew: items are orders
//   search/move/<schedule>/<ranks>x<microbatches>       annealing, which moves ops one after the other, and finds anew
//                                                       what a move changes: items are moves that were timed
#include <benchmark/benchmark.h>
#include <fmt/core.h>

#include <cstdint>
#include <string_view>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/search/anneal.h"
#include "dualpipe/sim/search/evaluator.h"
#include "dualpipe/sim/search/random.h"
#include "tools/dualpipe-bench/benchmarks.h"

namespace dualpipe {
namespace {

using detail::search::anneal;
using detail::search::Annealed;
using detail::search::Annealing;
using detail::search::Evaluator;
using detail::search::Ops;
using detail::search::Order;
using detail::search::order_of;
using detail::search::Problem;
using detail::search::problem_of;
using detail::search::Random;

constexpr Shape shape{8, 24};

struct Start {
  explicit Start(std::string_view family)
      : schedule(generate(family, shape)),
        problem(problem_of(schedule.placement, shape.micro_batches, typical_costs(CommunicationModel::latency), {})),
        ops(problem),
        order(order_of(schedule, ops, problem)) {}

  Schedule schedule;
  Problem problem;
  Ops ops;
  Order order;
};

void run_evaluate(benchmark::State& state, std::string_view family) {
  const Start start(family);
  Evaluator evaluator(start.problem, start.ops);
  for (auto _ : state) benchmark::DoNotOptimize(evaluator.reset(start.order));
  state.SetItemsProcessed(state.iterations());
}

void run_move(benchmark::State& state, std::string_view family) {
  const Start start(family);
  Annealing annealing;
  annealing.evaluations = 100'000;
  std::int64_t moves = 0;
  for (auto _ : state) {
    Random random(1, 0);
    const Annealed annealed = anneal(start.problem, start.ops, start.order, annealing, random);
    moves += annealed.evaluations;
  }
  state.SetItemsProcessed(moves);
}

}  // namespace

void register_search() {
  for (const std::string_view family : {"zb1p", "v-half"}) {
    const auto name = [&](std::string_view what) {
      return fmt::format("search/{}/{}/{}x{}", what, family, shape.ranks, shape.micro_batches);
    };
    benchmark::RegisterBenchmark(name("evaluate").c_str(), run_evaluate, family)->Unit(benchmark::kMicrosecond);
    benchmark::RegisterBenchmark(name("move").c_str(), run_move, family)->Unit(benchmark::kMillisecond);
  }
}

}  // namespace dualpipe
