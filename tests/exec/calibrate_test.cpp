#include "dualpipe/exec/train/calibrate.h"

#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstddef>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/train/probe.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/sim/costs/costs_file.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/rewrite.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/exec/training.h"
#include "tests/support.h"
#include "tests/thinned.h"

namespace dualpipe::test {

using detail::train::LinkProbe;

namespace {

namespace data = boost::unit_test::data;

constexpr Time us = 1'000;

// What a run that took exactly the simulator's times would have recorded.
RankRecords records_of(const Program& program, const Timeline& timeline, Time launch) {
  RankRecords records(static_cast<std::size_t>(program.schedule.ranks()));
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    RankRecord& record = records[static_cast<std::size_t>(rank)];
    const auto count = program.schedule.rank(rank).size();
    const auto first =
        timeline.ops.begin() + static_cast<std::ptrdiff_t>(program.schedule.rank_begin[static_cast<std::size_t>(rank)]);
    record.ops.assign(first, first + static_cast<std::ptrdiff_t>(count));
    record.waited.assign(count, 0);
    for (std::size_t i = 1; i < count; ++i) {
      record.waited[i] = std::max<Time>(0, record.ops[i].start - record.ops[i - 1].end - launch);
    }
    record.done = count;
  }
  return records;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_calibrate)

// Records with exactly the simulator's times give back the costs that they were simulated with.
BOOST_DATA_TEST_CASE(calibration_finds_the_costs,
                     data::make(family_names()) * data::make({2, 4}) * data::make({false, true}), name, ranks,
                     passes_measured) {
  const Program program = program_of(name, ranks);
  const Program by_passes = lower(split_passes(program.schedule));
  const Placement& placement = program.schedule.placement;
  Costs costs = uniform(5000 * us, 6000 * us, 4000 * us, 70 * us, 13'000 * us);
  costs.launch = 20 * us;
  costs.stages.resize(placement.rank_of.size(), costs.stages[0]);
  for (std::size_t stage = 0; stage < costs.stages.size(); ++stage) {
    costs.stages[stage].forward += static_cast<Time>(placement.weights_of[stage]) * 100 * us;
  }
  const Timeline timeline = simulate(program, costs);
  const std::vector<RankRecords> steps{records_of(program, timeline, costs.launch)};
  const std::vector<RankRecords> steps_by_passes{records_of(by_passes, simulate(by_passes, costs), costs.launch)};
  std::vector<MeasuredSteps> runs{{program, steps}};
  if (passes_measured) runs.push_back({by_passes, steps_by_passes});
  const ModelCosts model = calibrate(runs, std::vector<StageBytes>(costs.stages.size()));
  BOOST_TEST(model.parts.size() * static_cast<std::size_t>(placement.chains()) == placement.rank_of.size());
  const Costs found = stage_costs(model, placement);

  BOOST_TEST(found.launch == costs.launch);
  BOOST_TEST(found.latency == costs.latency);
  BOOST_TEST((found.model == CommunicationModel::latency));
  for (std::size_t stage = 0; stage < costs.stages.size(); ++stage) {
    const bool split = family(name).splits_backward || passes_measured;
    BOOST_TEST(found.stages[stage].forward == costs.stages[stage].forward);
    BOOST_TEST(found.stages[stage].backward == costs.stages[stage].backward);
    BOOST_TEST(found.stages[stage].input_gradient == (split ? 6000 : 5000) * us);
    BOOST_TEST(found.stages[stage].weight_gradient == (split ? 4000 : 5000) * us);
    if (found.stages[stage].overlapped) BOOST_TEST(*found.stages[stage].overlapped == 13'000 * us);
  }
  BOOST_TEST(simulate(program, found).makespan() == timeline.makespan());
}

BOOST_AUTO_TEST_CASE(without_a_step_there_is_nothing_to_calibrate_from) {
  const Program program = program_of("1f1b", 2);
  const std::vector<StageBytes> stages(2);
  BOOST_CHECK_THROW((void)calibrate(std::vector<MeasuredSteps>{}, stages), InputError);
  BOOST_CHECK_THROW((void)calibrate(std::vector<MeasuredSteps>{{program, {}}}, stages), InputError);
  std::vector<RankRecords> steps{RankRecords(2)};  // of which nothing was recorded
  const MeasuredSteps run{program, steps};
  BOOST_CHECK_THROW((void)calibrate({&run, 1}, stages), InputError);
  BOOST_CHECK_THROW((void)awaited_messages(run), InputError);
  TrainOptions options = two_steps(program, "mlp");
  options.steps = 0;
  BOOST_CHECK_THROW((void)calibrate(program, train(program, options)), InputError);
}

// 1 GB/s: a message of 200 kB takes 200 us of the 270.
BOOST_AUTO_TEST_CASE(calibration_takes_bytes_from_the_latency) {
  const Program program = program_of("1f1b", 2);
  Costs costs = uniform(5000 * us, 6000 * us, 4000 * us, 70 * us);
  costs.model = CommunicationModel::links;
  costs.bandwidth = 1e9;
  costs.stages[0].message = 200'000;
  std::vector<RankRecords> steps{records_of(program, simulate(program, costs), 0)};
  for (RankRecord& record : steps[0]) record.memory.assign(record.ops.size(), {0, 0, 0, 200'000});
  const MeasuredSteps run{program, steps};
  const ModelCosts found = calibrate({&run, 1}, std::vector<StageBytes>(2), 1e9);
  BOOST_TEST(found.latency == 70 * us);
  BOOST_TEST(found.bandwidth == 1e9);
  BOOST_TEST((found.model == CommunicationModel::links));
  BOOST_TEST(calibrate({&run, 1}, std::vector<StageBytes>(2)).latency == 270 * us);
}

BOOST_AUTO_TEST_CASE(bandwidth_is_told_from_noise) {
  const auto times = [](Time first, int count) {
    std::vector<Time> all;
    for (int i = 0; i < count; ++i) all.push_back(first + i);
    return all;
  };
  // 1, 2 and 4 kB at 1 ns per byte, 50 ns for none.
  const std::vector<MessageTimes> linear{{1000, times(1048, 5)}, {2000, times(2048, 5)}, {4000, times(4048, 5)}};
  BOOST_TEST(bandwidth_of(linear) == 1e9, boost::test_tools::tolerance(1e-9));
  const std::vector<MessageTimes> flat{{1000, times(1000, 9)}, {4000, times(1003, 9)}};
  BOOST_TEST(bandwidth_of(flat) == 0);
  const std::vector<MessageTimes> falling{{1000, times(2000, 9)}, {4000, times(1000, 9)}};
  BOOST_TEST(bandwidth_of(falling) == 0);
  BOOST_TEST(bandwidth_of({}) == 0);
  const std::vector<MessageTimes> nothing{{1000, {}}, {4000, times(1000, 9)}};
  BOOST_TEST(bandwidth_of(nothing) == 0);
}

// Messages that travel at 100 MB/s, and half a millisecond on top.
class SlowTransport final : public Transport {
 public:
  explicit SlowTransport(Transport& below) : below_(below) {}

  void begin(const Program& program, Device& device) override { below_.begin(program, device); }
  void end_batch() override { below_.end_batch(); }
  void confirm() override { below_.confirm(); }
  void send(Op message, Tensors tensors, const Event& ready) override {
    below_.send(message, std::move(tensors), ready);
  }
  void post_receive(Op message) override { below_.post_receive(message); }
  [[nodiscard]] Received wait(Op message) override {
    Received received = below_.wait(message);
    std::this_thread::sleep_until(received.arrived +
                                  std::chrono::nanoseconds(500 * us + 10 * received.tensors.at(0).nbytes()));
    return received;
  }
  void reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors) override {
    below_.reduce(stages, stage, tensors);
  }
  [[nodiscard]] double sum(double value) override { return below_.sum(value); }
  void abort(const std::string& reason) override { below_.abort(reason); }

 private:
  Transport& below_;
};

BOOST_DATA_TEST_CASE(the_probe_finds_the_bandwidth, data::make({1, 2, 3}) * data::make({false, true}), ranks, slow) {
  const LinkProbe probe(ranks);
  BOOST_TEST(validate(probe.program()).empty());
  const auto transports = thread_transports(probe.program().schedule.placement, {std::chrono::seconds(20), {}});
  RankRecords records(static_cast<std::size_t>(ranks));
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < ranks; ++rank) {
      threads.emplace_back([&, rank] {
        const auto r = static_cast<std::size_t>(rank);
        SlowTransport slow_transport(*transports[r]);
        probe.run(rank, slow ? slow_transport : *transports[r], records[r]);
      });
    }
  }
  const double bandwidth = probe.bandwidth(records);
  if (slow && ranks > 1) {
    BOOST_TEST(bandwidth == 1e8, boost::test_tools::tolerance(0.3));
  } else {
    BOOST_TEST(bandwidth == 0);
  }
}

// What was measured in the warm-up says how much memory the ranks will hold; of this schedule, and of others over the
// same stages.
BOOST_DATA_TEST_CASE(measured_memory_is_the_predicted_one,
                     thinned(7, data::make(family_names()) * data::make({"mlp", "gpt", "moe"}) * data::make({2, 4}) *
                                    data::make({Precision::float64, Precision::bfloat16})),
                     name, model, ranks, precision) {
  const Program program = program_of(name, ranks);
  TrainOptions options = two_steps(program, model);
  options.shape.precision = precision;
  options.shape.hidden = 32;
  options.shape.batch = 4;
  options.shape.sequence = 16;
  options.shape.layers = split_evenly(8, static_cast<int>(options.shape.layers.size()));
  std::vector<Program> others;
  if (name == "1f1b") others = {program_of("gpipe", ranks), program_of("zb1p", ranks), program_of("zb-h2", ranks)};
  check_memory_is_predicted(program, options, others);
}

// Sleeps never end early. (How late they end depends on what else the machine does.)
BOOST_DATA_TEST_CASE(a_timed_run_is_calibrated_to_its_costs, data::make({"zb1p", "1f1b", "dualpipe"}), name) {
  const Program program = program_of(name, 2);
  TrainOptions options = two_steps(program, "timed");
  options.shape.costs = uniform(1000 * us, 1000 * us, 1000 * us, 0, 2500 * us);
  options.shape.costs.stages[0].recompute = 500 * us;
  options.warmup = 3;
  options.steps = 3;
  options.measure_passes = true;
  options.measure_links = true;
  options.transport.link_delay = std::chrono::microseconds(500);
  const TrainResult result = train(program, options);
  const ModelCosts found = calibrate(program, result);
  for (const StageCosts& stage : found.parts) {
    BOOST_TEST(stage.forward >= 1000 * us);
    BOOST_TEST(stage.backward >= 2500 * us);
    BOOST_TEST(stage.input_gradient >= 1500 * us);
    BOOST_TEST(stage.weight_gradient >= 1000 * us);
    if (stage.overlapped) BOOST_TEST(*stage.overlapped >= 2500 * us);
    BOOST_TEST(stage.recompute == 0);
  }
  BOOST_TEST(found.latency >= 500 * us);
  std::ostringstream file;
  write_costs(file, found);
  std::istringstream in(file.str());
  BOOST_TEST((read_costs(in, "costs.json") == GivenCosts(found)));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
