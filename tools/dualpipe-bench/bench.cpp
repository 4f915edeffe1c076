// Benchmarks of the simulator's core, per schedule, shape and communication model:
//
//   generate/<schedule>/<ranks>x<microbatches>          generate(), for costs where the order depends on them
//   validate/<schedule>/<ranks>x<microbatches>          validate()
//   lower/<schedule>/<ranks>x<microbatches>             lower()
//   prepare/<schedule>/<ranks>x<microbatches>           generate(), validate() and lower_checked(), which also tells
//                                                       whether it hangs
//   deadlock/<schedule>/<ranks>x<microbatches>          find_deadlock() in `stream`
//   simulate/<schedule>/<ranks>x<microbatches>/<comm>   simulate() and memory_of_ranks(): all per-rank figures
//   hand/1f1b/<ranks>x<microbatches>/<loop>             the same by a loop written for 1F1B in `latency` (hand.h), in
//                                                       turn with ours: ratio = its time / ours. Fails unless both
//                                                       find the same, to the last span
//   search/…                                            the search's inner loop (search_bench.cpp)
//
// items_per_second counts F, B, I and W; an F&B pair is two. All run on one core:
//   dualpipe-bench --benchmark_filter=simulate/1f1b
//
// Each runs once before its time is taken, and memory goes back to the allocator, not to the system: what is measured
// is this code, not how fast the system clears half a gigabyte of fresh pages (on virtual machines often slower than we
// fill them).
#include <benchmark/benchmark.h>
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <ctime>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tools/common/keep_freed_memory.h"
#include "tools/dualpipe-bench/benchmarks.h"
#include "tools/dualpipe-bench/hand.h"

namespace dualpipe {

Costs typical_costs(CommunicationModel model) {
  StageCosts stage;
  stage.forward = 18'522;
  stage.input_gradient = 18'086;
  stage.weight_gradient = 9'337;
  stage.backward = stage.input_gradient + stage.weight_gradient;
  stage.overlapped = 40'000;
  stage.activation = 64 << 20;
  stage.weight_stash = 32 << 20;
  stage.parameters = 200 << 20;

  Costs costs;
  costs.stages = {stage};
  costs.model = model;
  costs.latency = 601;
  costs.bandwidth = 50e9;
  return costs;
}

namespace {

void count_ops(benchmark::State& state, std::size_t ops) {
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(ops));
}

void run_generate(benchmark::State& state, std::string_view name, Shape shape) {
  const Request request{
      .family = std::string(name), .shape = shape, .costs = typical_costs(CommunicationModel::latency)};
  const std::size_t ops = generate(request).ops.size();
  for (auto _ : state) benchmark::DoNotOptimize(generate(request));
  count_ops(state, ops);
}

void run_validate(benchmark::State& state, std::string_view name, Shape shape) {
  const Schedule schedule = generate(name, shape);
  for (auto _ : state) benchmark::DoNotOptimize(validate(schedule));
  count_ops(state, schedule.ops.size());
}

void run_lower(benchmark::State& state, std::string_view name, Shape shape) {
  Schedule schedule = generate(name, shape);
  Program program = lower(schedule);
  for (auto _ : state) {
    state.PauseTiming();
    schedule = std::move(program.schedule);
    program = {};
    state.ResumeTiming();
    program = lower(std::move(schedule));
  }
  count_ops(state, program.schedule.ops.size());
}

void run_prepare(benchmark::State& state, std::string_view name, Shape shape) {
  const auto prepare = [&] {
    Schedule schedule = generate(name, shape);
    benchmark::DoNotOptimize(validate(schedule));
    return lower_checked(std::move(schedule));
  };
  const std::size_t ops = prepare().program.schedule.ops.size();
  for (auto _ : state) benchmark::DoNotOptimize(prepare());
  count_ops(state, ops);
}

void run_deadlock(benchmark::State& state, std::string_view name, Shape shape) {
  const Program program = lower(generate(name, shape));
  for (auto _ : state) benchmark::DoNotOptimize(find_deadlock(program, CommunicationModel::stream));
  count_ops(state, program.schedule.ops.size());
}

void run_simulate(benchmark::State& state, std::string_view name, Shape shape, CommunicationModel model) {
  const Program program = lower(generate(name, shape));
  const Costs costs = typical_costs(model);
  for (auto _ : state) {
    benchmark::DoNotOptimize(simulate(program, costs, Record::ranks));
    benchmark::DoNotOptimize(memory_of_ranks(program, costs));
  }
  count_ops(state, program.schedule.ops.size());
}

using Loop = ByHand (*)(const Program& program, const Costs& costs, bool spans);

bool finds_the_same(const Program& program, const Costs& costs, Loop loop) {
  Timeline timeline = simulate(program, costs, Record::ops);
  return loop(program, costs, true) ==
         ByHand{std::move(timeline.ranks), memory_of_ranks(program, costs), std::move(timeline.ops)};
}

// In the order A B B A, so that what changes slowly meets both alike.
void run_by_hand(benchmark::State& state, std::string_view name, Shape shape, Loop loop) {
  const Program program = lower(generate(name, shape));
  const Costs costs = typical_costs(CommunicationModel::latency);
  if (!finds_the_same(program, costs, loop))
    return state.SkipWithError("the loop finds other times or memory than ours");
  const auto seconds_of = [](auto run) {  // of the processor: others may be at work on it, too
    const std::clock_t start = std::clock();
    run();
    return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  };
  const auto by_hand = [&] { benchmark::DoNotOptimize(loop(program, costs, false)); };
  const auto ours = [&] {
    benchmark::DoNotOptimize(simulate(program, costs, Record::ranks));
    benchmark::DoNotOptimize(memory_of_ranks(program, costs));
  };
  std::vector<double> times_by_hand, times_of_ours;
  for (auto _ : state) {
    times_by_hand.push_back(seconds_of(by_hand));
    times_of_ours.push_back(seconds_of(ours));
    times_of_ours.push_back(seconds_of(ours));
    times_by_hand.push_back(seconds_of(by_hand));
    state.SetIterationTime(times_by_hand.back());
  }
  count_ops(state, program.schedule.ops.size());
  // The least of many: what else runs on the machine, and fills its caches, only ever takes time.
  const double least_by_hand = *std::ranges::min_element(times_by_hand);
  const double least_of_ours = *std::ranges::min_element(times_of_ours);
  state.counters["hand_ms"] = least_by_hand * 1e3;
  state.counters["ours_ms"] = least_of_ours * 1e3;
  state.counters["ratio"] = least_by_hand / least_of_ours;
}

void register_by_hand(Shape shape) {
  constexpr std::int64_t rounds_many = 50;
  constexpr std::int64_t rounds_few = 5;
  using Titled = std::pair<std::string_view, Loop>;
  for (const auto& [title, loop] :
       {Titled{"turns", one_f_one_b_in_turns}, Titled{"diagonals", one_f_one_b_on_diagonals}}) {
    benchmark::RegisterBenchmark(fmt::format("hand/1f1b/{}x{}/{}", shape.ranks, shape.micro_batches, title).c_str(),
                                 run_by_hand, "1f1b", shape, loop)
        ->Unit(benchmark::kMillisecond)
        ->UseManualTime()
        ->Iterations(shape.ranks > 16 ? rounds_few : rounds_many);
  }
}

void register_shape(std::string_view name, Shape shape) {
  const std::string what = fmt::format("{}/{}x{}", name, shape.ranks, shape.micro_batches);
  const auto add = [&](const std::string& title, auto run, auto... more) {
    benchmark::RegisterBenchmark(title.c_str(), run, name, shape, more...)->Unit(benchmark::kMillisecond);
  };
  add("generate/" + what, run_generate);
  add("validate/" + what, run_validate);
  add("lower/" + what, run_lower);
  add("prepare/" + what, run_prepare);
  add("deadlock/" + what, run_deadlock);
  using Model = std::pair<std::string_view, CommunicationModel>;
  for (const auto& [comm, model] :
       {Model{"latency", CommunicationModel::latency}, Model{"links", CommunicationModel::links},
        Model{"stream", CommunicationModel::stream}}) {
    add(fmt::format("simulate/{}/{}", what, comm), run_simulate, model);
  }
}

// Whether the order of a family is searched, op by op, not written down by a rule. For a thousand ranks that takes
// seconds.
bool is_searched(const Family& family) {
  return family.is_automatic || family.name == "v-half" || family.name == "v-min";
}

void register_all() {
  constexpr std::array shapes{Shape{16, 4096}, Shape{1024, 8192}};
  constexpr std::array searched_shapes{Shape{32, 96}, Shape{128, 1024}};
  for (const Family& family : catalog()) {
    for (const Shape shape : is_searched(family) ? searched_shapes : shapes) {
      Shape chunked = shape;
      chunked.chunks = family.takes_chunks ? 2 : 1;
      register_shape(family.name, chunked);
    }
  }
  for (const Shape shape : shapes) register_by_hand(shape);
  register_search();
}

}  // namespace
}  // namespace dualpipe

int main(int argc, char** argv) {
  dualpipe::keep_freed_memory();
  dualpipe::register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
