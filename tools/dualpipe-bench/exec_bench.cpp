// Benchmarks of the replay, on ranks that are threads:
//
//   step/gpt/hidden:<h>          a step of 1F1B on 2 ranks, by replay() and by the same schedule written as a straight
//                                loop over the same stages and transport, in turn. `ratio` is what replay() takes, by
//                                the loop (medians); `replay_ms` and `loop_ms` are the medians
//   empty/<schedule>/<ranks>x<microbatches>
//                                a step without any arithmetic: `ns_per_op` of a rank, an F&B pair being two
//   timed/1f1b/<ranks>x<microbatches>
//                                a step of `timed`, whose ops sleep, by replay() and by threads that make the same
//                                sleeps and wake each other, and nothing else, in turn. `replay_late` and `bare_late`
//                                are what each takes beyond the plan, in percent of it (medians): what both do is the
//                                machine's, which wakes up late
//
// With --device cuda the ranks of `step` share a GPU; the others are the host's all the same. On the host each rank
// of `step` computes with one thread, and needs a core of its own. Where others are at work, `timed` is late by their
// time slices; with `chrt --rr 1` before the command (as root) it is not.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/pipeline/pipeline.h"
#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/exec/train/stage_set.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/report/percentile.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/flow.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"

namespace dualpipe {

using detail::report::median;
using detail::train::set_up_thread;
using detail::train::StageSet;

namespace {

using Clock = std::chrono::steady_clock;

// Threads that do their parts of a step at once, again and again.
class Ranks {
 public:
  explicit Ranks(int count) : spans_(static_cast<std::size_t>(count)), together_(count + 1) {
    for (int rank = 0; rank < count; ++rank) threads_.emplace_back([this, rank] { work(rank); });
  }
  ~Ranks() {
    part_ = nullptr;
    together_.arrive_and_wait();
  }
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  // From the first start to the last end, in seconds. What a part throws ends the process.
  double run(const std::function<void(int rank)>& part) {
    part_ = &part;
    together_.arrive_and_wait();
    together_.arrive_and_wait();
    const auto first = std::ranges::min_element(spans_, {}, &Span::start)->start;
    const auto last = std::ranges::max_element(spans_, {}, &Span::end)->end;
    return std::chrono::duration<double>(last - first).count();
  }

 private:
  struct Span {
    Clock::time_point start, end;
  };

  void work(int rank) {
    set_up_thread(1);
    while (true) {
      together_.arrive_and_wait();
      if (part_ == nullptr) return;
      Span& span = spans_[static_cast<std::size_t>(rank)];
      span.start = Clock::now();
      (*part_)(rank);
      span.end = Clock::now();
      together_.arrive_and_wait();
    }
  }

  std::vector<Span> spans_;
  std::barrier<> together_;
  const std::function<void(int)>* part_ = nullptr;
  std::vector<std::jthread> threads_;
};

// A program, and what its ranks need to run it.
class Run {
 public:
  // `hardware`: null: the host.
  Run(std::string_view schedule, Shape shape, const ModelShape& model, Hardware* hardware)
      : program_(lower(generate(schedule, shape))),
        transports_(thread_transports(program_.schedule.placement, {})),
        parts_(static_cast<std::size_t>(shape.ranks)),
        ranks_(shape.ranks) {
    options_.shape = model;
    options_.shape.layers.assign(program_.schedule.placement.chain_begin[1], 1);
    options_.hardware = hardware;
    ranks_.run([this](int rank) { set_up(rank); });
  }

  // A step each, in seconds.
  double replay_step() {
    return ranks_.run([this](int rank) { benchmark::DoNotOptimize(part_of(rank).pipeline->step()); });
  }
  double straight_step() {
    return ranks_.run([this](int rank) { straight_1f1b(rank); });
  }

  // Only the sleeps of `timed` stages, and the waits of their ops for each other.
  double bare_step() {
    std::vector<std::atomic<bool>> done(2 * program_.schedule.placement.rank_of.size() *
                                        program_.schedule.micro_batches);
    return ranks_.run([&](int rank) {
      for (const Op op : program_.schedule.rank(rank)) bare_op(rank, op, done);
    });
  }

  // What a step takes by the plan, in seconds.
  [[nodiscard]] double planned() const {
    return static_cast<double>(simulate(program_, options_.shape.costs, Record::ranks).makespan()) / 1e9;
  }
  [[nodiscard]] std::size_t ops_per_rank() const { return program_.schedule.rank(0).size(); }

 private:
  // What a rank has.
  struct Part {
    std::unique_ptr<Device> own_device;  // null: the host's
    Device* device = nullptr;
    std::unique_ptr<StageSet> stages;
    RankRecord record;
    std::optional<Pipeline> pipeline;
  };

  [[nodiscard]] Part& part_of(int rank) { return parts_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] Transport& transport_of(int rank) { return *transports_[static_cast<std::size_t>(rank)]; }

  // On the rank's own thread, as devices want it.
  void set_up(int rank) {
    Part& part = part_of(rank);
    const Schedule& schedule = program_.schedule;
    const std::vector<int> numbers = schedule.placement.stages_on(rank);
    if (options_.hardware != nullptr) {
      part.own_device = options_.hardware->device(rank, schedule.ranks(), static_cast<int>(numbers.size()));
    }
    part.device = part.own_device ? part.own_device.get() : &host_device();
    part.stages = std::make_unique<StageSet>(schedule, options_, numbers, *part.device);
    part.stages->begin_step(0);
    part.device->finish();
    ReplayOptions replaying;
    replaying.device = part.device;
    replaying.measure_memory = true;  // as in a training
    part.pipeline.emplace(program_, rank, part.stages->by_number(), transport_of(rank), part.record, replaying);
  }

  // 1F1B as one writes it down for a pipeline with a stage per rank.
  void straight_1f1b(int rank) {
    const int ranks = program_.schedule.ranks();
    const auto micro_batches = program_.schedule.micro_batches;
    const auto stage_number = static_cast<std::uint16_t>(rank);
    const bool first = rank == 0;
    const bool last = rank == ranks - 1;
    Device& device = *part_of(rank).device;
    Stage& stage = *part_of(rank).stages->by_number()[stage_number];
    Transport& transport = transport_of(rank);
    device.begin_step();
    device.use({});
    const auto receive = [&](Kind kind, std::uint32_t micro_batch) {
      const Op message{micro_batch, stage_number, kind, false};
      transport.post_receive(message);
      Received received = transport.wait(message);
      received.tensors.front() = device.take(std::move(received.tensors.front()), received.ready);
      return std::move(received.tensors);
    };
    const auto send = [&](Kind kind, std::uint32_t micro_batch, Tensors tensors) {
      transport.send({micro_batch, stage_number, kind, false}, std::move(tensors), device.record_event());
    };
    std::vector<at::Tensor> losses;
    const auto forward = [&](std::uint32_t micro_batch) {
      Tensors inputs;
      if (!first) inputs = receive(Kind::receive_forward, micro_batch);
      Tensors outputs = stage.forward(micro_batch, std::move(inputs));
      if (last) return losses.push_back(std::move(outputs.front()));
      send(Kind::send_forward, micro_batch, std::move(outputs));
    };
    const auto backward = [&](std::uint32_t micro_batch) {
      Tensors gradients;
      if (!last) gradients = receive(Kind::receive_backward, micro_batch);
      Tensors input_gradients = stage.backward(micro_batch, std::move(gradients));
      if (!first) send(Kind::send_backward, micro_batch, std::move(input_gradients));
    };

    const auto warmup = std::min(static_cast<std::uint32_t>(ranks - 1 - rank), micro_batches);
    for (std::uint32_t i = 0; i < warmup; ++i) forward(i);
    for (std::uint32_t i = warmup; i < micro_batches; ++i) {
      forward(i);
      backward(i - warmup);
    }
    for (std::uint32_t i = micro_batches - warmup; i < micro_batches; ++i) backward(i);
    device.finish();
    for (const at::Tensor& loss : losses) benchmark::DoNotOptimize(loss.item<double>());
  }

  // `done`: whether an op has ended, by stage, pass and micro-batch.
  void bare_op(int rank, Op op, std::vector<std::atomic<bool>>& done) {
    const Placement& placement = program_.schedule.placement;
    const bool forward = op.kind == Kind::forward;
    const auto done_of = [&](int stage) -> std::atomic<bool>& {
      const std::size_t pass = 2 * static_cast<std::size_t>(stage) + (forward ? 0 : 1);
      return done[pass * program_.schedule.micro_batches + op.micro_batch];
    };
    if (const auto from = producer_of(op, placement)) done_of(from->stage).wait(false);
    Stage& stage = *part_of(rank).stages->by_number()[op.stage];
    benchmark::DoNotOptimize(forward ? stage.forward(op.micro_batch, {}) : stage.backward(op.micro_batch, {}));
    done_of(op.stage) = true;
    done_of(op.stage).notify_all();
  }

  Program program_;
  TrainOptions options_;
  std::vector<std::unique_ptr<Transport>> transports_;
  std::vector<Part> parts_;  // by rank
  Ranks ranks_;              // ends first
};

// In the order A B B A, so that what changes slowly meets both alike.
void run_step(benchmark::State& state, std::int64_t hidden, Hardware* hardware) {
  ModelShape model;
  model.hidden = hidden;
  Run run("1f1b", {2, 8}, model, hardware);
  std::vector<double> replays, loops;
  for (auto _ : state) {
    replays.push_back(run.replay_step());
    loops.push_back(run.straight_step());
    loops.push_back(run.straight_step());
    replays.push_back(run.replay_step());
    state.SetIterationTime(replays.back());
  }
  state.counters["replay_ms"] = median(replays) * 1e3;
  state.counters["loop_ms"] = median(loops) * 1e3;
  state.counters["ratio"] = median(replays) / median(loops);
}

void run_empty(benchmark::State& state, std::string_view schedule, Shape shape) {
  ModelShape model;
  model.model = "empty";
  Run run(schedule, shape, model, nullptr);
  std::vector<double> steps;
  for (auto _ : state) {
    steps.push_back(run.replay_step());
    state.SetIterationTime(steps.back());
  }
  state.counters["ns_per_op"] = median(steps) * 1e9 / static_cast<double>(run.ops_per_rank());
}

void run_timed(benchmark::State& state, Shape shape) {
  ModelShape model;
  model.model = "timed";
  StageCosts costs;
  costs.forward = 6'000'000;
  costs.backward = 14'000'000;
  model.costs.stages = {costs};
  Run run("1f1b", shape, model, nullptr);
  std::vector<double> replays, bare;
  for (auto _ : state) {
    replays.push_back(run.replay_step());
    bare.push_back(run.bare_step());
    bare.push_back(run.bare_step());
    replays.push_back(run.replay_step());
    state.SetIterationTime(replays.back());
  }
  const double planned = run.planned();
  state.counters["replay_late"] = 100 * (median(replays) / planned - 1);
  state.counters["bare_late"] = 100 * (median(bare) / planned - 1);
}

// `hardware`: null: the host.
void register_all(Hardware* hardware) {
  constexpr std::int64_t steps_few = 40;
  constexpr std::int64_t steps_many = 200;
  for (const std::int64_t hidden : {64, 256}) {
    benchmark::RegisterBenchmark(fmt::format("step/gpt/hidden:{}", hidden).c_str(), run_step, hidden, hardware)
        ->Unit(benchmark::kMillisecond)
        ->UseManualTime()
        ->Iterations(hidden > 64 ? steps_few : steps_many);
  }
  for (const std::string_view schedule : {"1f1b", "zb1p", "dualpipe"}) {
    const Shape shape{2, 512};
    benchmark::RegisterBenchmark(fmt::format("empty/{}/{}x{}", schedule, shape.ranks, shape.micro_batches).c_str(),
                                 run_empty, schedule, shape)
        ->Unit(benchmark::kMillisecond)
        ->UseManualTime()
        ->Iterations(steps_many);
  }
  constexpr std::int64_t steps_asleep = 10;
  for (const Shape shape : {Shape{2, 8}, Shape{4, 8}}) {
    benchmark::RegisterBenchmark(fmt::format("timed/1f1b/{}x{}", shape.ranks, shape.micro_batches).c_str(), run_timed,
                                 shape)
        ->Unit(benchmark::kMillisecond)
        ->UseManualTime()
        ->Iterations(steps_asleep);
  }
}

}  // namespace
}  // namespace dualpipe

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  std::unique_ptr<dualpipe::Hardware> hardware;
  if (const std::span own(argv + 1, static_cast<std::size_t>(argc - 1));
      own.size() == 2 && std::string_view(own[0]) == "--device" && std::string_view(own[1]) == "cuda") {
    try {
      hardware = dualpipe::cuda_hardware({});
    } catch (const dualpipe::InputError& error) {
      std::cerr << "error: " << error.what() << '\n';
      return 1;
    }
  } else if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 2;
  }
  dualpipe::register_all(hardware.get());
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
