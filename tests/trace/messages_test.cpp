// Messages of real runs: each rank records its own end, by its own clock.
#include <fmt/format.h>

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <fstream>
#include <utility>

#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/explain/measured_costs.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "dualpipe/sim/trace/foreign.h"
#include "dualpipe/sim/trace/measured_run.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

constexpr Time us = 1000;

// What a file of torch.profiler's holds of one rank; times in microseconds, by the rank's own clock.
class File {
 public:
  File(int rank, Time clock) : rank_(rank), clock_(clock) {}

  void op(const std::string& text, Time begin, Time end) {
    event("user_annotation", "PP:" + text, begin, end, "");
    event("cpu_op", "aten::mm", begin, end, "");
  }
  // From when it is issued to when it has ended.
  void gloo(bool is_send, int peer, Time begin, Time end, int elements) {
    const std::string name = is_send ? "send" : "recv";
    event("cpu_op", is_send ? "c10d::send" : "c10d::recv_", begin, begin + 1,
          fmt::format(R"("Concrete Inputs": ["", "", "{}", "0"])", peer));
    event("user_annotation", "gloo:" + name, begin + 1, end,
          fmt::format(R"("Input Dims": [[{}, 8]], "Input type": ["float"])", elements / 8));
  }
  void gloo_without_peer(Time begin, Time end) { event("cpu_op", "c10d::send", begin, end, ""); }
  void nccl(bool is_send, int peer, Time begin, Time end, int elements) {
    event("kernel", "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", begin, end,
          fmt::format(R"("Collective name": "{}", "{}": {}, "{} msg nelems": {}, "dtype": "BFloat16")",
                      is_send ? "send" : "recv", is_send ? "Dst Rank" : "Src Rank", peer, is_send ? "In" : "Out",
                      elements));
  }

  void write(const std::string& path) const {
    std::ofstream(path) << fmt::format(R"({{"distributedInfo": {{"rank": {}}}, "traceEvents": [{}]}})", rank_, events_);
  }

 private:
  void event(const std::string& category, const std::string& name, Time begin, Time end, const std::string& args) {
    events_ += fmt::format(R"({}{{"ph": "X", "cat": "{}", "name": "{}", "pid": 1, "tid": 1, "ts": {}, "dur": {},)"
                           R"( "args": {{{}}}}})",
                           events_.empty() ? "" : ",\n", category, name, begin + clock_, end - begin, args);
  }

  int rank_;
  Time clock_;
  std::string events_;
};

// GPipe on 2 ranks, F 10 µs and B 20 µs. A message is issued 1 µs after its op and takes 5 µs and a nanosecond per
// byte; its op starts 2 µs later. The second rank's clock is 1 s ahead.
struct Pipeline {
  explicit Pipeline(bool is_nccl, std::vector<int> elements) {
    Time free[2] = {0, 0};
    const auto send = [&](int from, Time issued, int size) {
      const Time took = 5 + size * (is_nccl ? 2 : 4) / 1000;
      File& sender = files[from];
      File& receiver = files[1 - from];
      const auto add = [&](File& file, bool is_send, Time begin) {
        if (is_nccl) file.nccl(is_send, &file == files ? 1 : 0, begin, issued + took, size);
        if (!is_nccl) file.gloo(is_send, &file == files ? 1 : 0, begin, issued + took, size);
      };
      add(sender, true, issued);
      add(receiver, false, issued - 1);  // the receive is posted before
      return issued + took;
    };
    const auto run = [&](int rank, const std::string& text, Time ready, Time takes) {
      const Time begin = std::max(free[rank], ready) + 2;
      files[rank].op(text, begin, begin + takes);
      free[rank] = begin + takes;
      return free[rank];
    };
    for (std::size_t i = 0; i < elements.size(); ++i) {
      const Time made = run(0, fmt::format("0F{}", i), 0, 10);
      static_cast<void>(run(1, fmt::format("1F{}", i), send(0, made + 1, elements[i]), 10));
    }
    for (std::size_t i = 0; i < elements.size(); ++i) {
      const Time made = run(1, fmt::format("1B{}", i), 0, 20);
      static_cast<void>(run(0, fmt::format("0B{}", i), send(1, made + 1, elements[i]), 20));
    }
  }

  [[nodiscard]] ForeignRun read(const Scratch& scratch) const {
    std::vector<std::string> paths;
    for (const int rank : {0, 1}) {
      paths.push_back(scratch / fmt::format("rank{}.json", rank));
      files[rank].write(paths.back());
    }
    return load_foreign_traces(paths, TraceFormat::kineto);
  }

  File files[2] = {{0, 0}, {1, 1'000'000}};
};

}  // namespace

BOOST_AUTO_TEST_SUITE(trace_messages)

// The k-th that is sent is the k-th that is received, and the two clocks are brought together by them.
BOOST_AUTO_TEST_CASE(matched_in_order) {
  for (const bool is_nccl : {false, true}) {
    const Scratch scratch;
    const ForeignRun run = Pipeline(is_nccl, {8000, 8000, 8000}).read(scratch);
    BOOST_TEST(run.remarks.empty());
    BOOST_REQUIRE(run.messages.size() == 6U);
    for (const MeasuredMessage& each : run.messages) {
      BOOST_TEST(each.from == 1 - each.to);
      BOOST_TEST(each.bytes == (is_nccl ? 16'000 : 32'000));
      BOOST_TEST(each.sent.start <= each.received.end);
      // The truth is within the width.
      BOOST_TEST(std::abs(each.sent.end - each.received.end) <= run.clock_width.value());
    }
    // From the issue of a send to the end of its receive, both ways.
    BOOST_TEST(run.clock_width.value() == 2 * (5 + (is_nccl ? 16 : 32)) * us);
    BOOST_TEST(run.messages[0].sent.start == 13 * us - 2 * us);  // since the first op
  }
}

// Each message of the program has its time; what is left between the arrival and the op is launch.
BOOST_AUTO_TEST_CASE(costs_of_messages) {
  const Scratch scratch;
  const ForeignRun run = Pipeline(true, {8000, 8000, 8000}).read(scratch);
  MeasuredRun measured = measured_run(run.run, "run");
  BOOST_REQUIRE(add_messages(measured, run.messages));
  const MeasuredCosts costs = measured_costs(measured.program, measured.timeline, run.messages);
  BOOST_TEST(costs.costs.launch == 2 * us);
  BOOST_TEST(costs.costs.stages[0].message == 16'000);
  BOOST_TEST(costs.costs.bandwidth == 0);  // all are of one size
  BOOST_TEST(costs.costs.latency == (1 + 5 + 16) * us);
  BOOST_TEST((costs.costs.model == CommunicationModel::latency));
}

// Of sizes that differ both figures are found.
BOOST_AUTO_TEST_CASE(latency_and_bandwidth) {
  const Scratch scratch;
  const ForeignRun run = Pipeline(true, {8000, 80'000, 8000, 80'000, 8000, 80'000, 8000, 80'000}).read(scratch);
  MeasuredRun measured = measured_run(run.run, "run");
  BOOST_REQUIRE(add_messages(measured, run.messages));
  const MeasuredCosts costs = measured_costs(measured.program, measured.timeline, run.messages);
  BOOST_TEST((costs.costs.model == CommunicationModel::links));
  BOOST_TEST(costs.costs.bandwidth == 1e9, boost::test_tools::tolerance(1e-6));
}

BOOST_AUTO_TEST_CASE(what_cannot_be_matched_is_said) {
  const Scratch scratch;
  Pipeline more(false, {8000});
  more.files[0].gloo(true, 1, 300, 310, 8);
  const ForeignRun run = more.read(scratch);
  BOOST_TEST(run.messages.size() == 1U);  // those of the other direction
  BOOST_REQUIRE(run.remarks.size() == 1U);
  BOOST_TEST(run.remarks[0].starts_with("2 messages were sent from rank 0 to rank 1, and 1 received"));

  // Of more than two ranks nobody knows the peer without shapes.
  std::vector<std::string> paths;
  for (int rank = 0; rank < 3; ++rank) {
    File file(rank, 0);
    file.op(fmt::format("{}F0", rank), 20 * rank, 20 * rank + 10);
    file.op(fmt::format("{}B0", rank), 120 - 20 * rank, 130 - 20 * rank);
    file.gloo_without_peer(11, 12);
    paths.push_back(scratch / fmt::format("rank{}.json", rank));
    file.write(paths.back());
  }
  const ForeignRun three = load_foreign_traces(paths, TraceFormat::kineto);
  BOOST_TEST(three.messages.empty());
  BOOST_REQUIRE(three.remarks.size() == 1U);
  BOOST_TEST(three.remarks[0].find("record_shapes=True") != std::string::npos);
}

// Messages of which there are more or fewer than the program has are none of its.
BOOST_AUTO_TEST_CASE(messages_of_another_program) {
  const Scratch scratch;
  ForeignRun run = Pipeline(true, {8000, 8000}).read(scratch);
  MeasuredRun measured = measured_run(run.run, "run");
  run.messages.pop_back();
  BOOST_TEST(!add_messages(measured, run.messages));
  BOOST_TEST(measured.timeline.communication.empty());
}

// A real run. Without its messages the medians predict 29 % of what it took, and the clocks may differ by 2.6 ms.
BOOST_AUTO_TEST_CASE(a_real_run) {
  const std::string name = std::string(DUALPIPE_TESTS_DIR) + "/goldens/traces/Interleaved1F1B_P2V2M4_rank";
  const std::vector<std::string> paths{name + "0.json.gz", name + "1.json.gz"};
  const ForeignRun run = load_foreign_traces(paths, TraceFormat::kineto);
  BOOST_TEST(run.messages.size() == 24U);
  BOOST_TEST(run.clock_width.value() < 1'400 * us);
  MeasuredRun measured = measured_run(run.run, "run");
  BOOST_REQUIRE(add_messages(measured, run.messages));
  const MeasuredCosts costs = measured_costs(measured.program, measured.timeline, run.messages);
  const auto predicted = static_cast<double>(simulate(measured.program, costs.costs).makespan());
  BOOST_TEST(std::abs(predicted / static_cast<double>(measured.timeline.makespan()) - 1) < 0.06);
}

// With the times of messages nothing is taken for what it is not: what was simulated gives all its costs back.
BOOST_AUTO_TEST_CASE(a_simulated_run_gives_its_costs_back) {
  for (const Case& each : small_cases(4, 8)) {
    const Program program = lower(generate(each.family, each.shape));
    Costs costs = uniform(7'000, 9'000, 5'000, 300, 17'000);
    costs.launch = 20;
    const Timeline timeline = simulate(program, costs);
    BOOST_TEST_CONTEXT(each) {
      const Costs found = measured_costs(program, timeline).costs;
      BOOST_TEST((found.launch == 20 || found.launch == 0));
      BOOST_TEST((found.latency == 300 || found.latency == 0));  // where no op waited for one
      BOOST_TEST(simulate(program, found).makespan() == timeline.makespan());
      const Explanation explanation = explain_measured(program, timeline);
      Time idle = 0;
      for (const IdleSegment& segment : explanation.segments) idle += segment.span.end - segment.span.start;
      Time expected = 0;
      for (int rank = 0; rank < program.schedule.ranks(); ++rank) expected += timeline.idle(rank);
      BOOST_TEST(idle == expected);
      Time at = explanation.path.front().span.start;
      for (const PathStep& step : explanation.path) {
        BOOST_TEST(step.span.start == at);
        at = step.span.end;
      }
      BOOST_TEST(at - explanation.path.front().span.start == timeline.makespan());
    }
  }
}

// Whose input an op is, and so how far clocks may be apart, depends on how many chains there are: clocks that are a
// second off are brought together by two chains of DualPipe's, and by one of another schedule.
BOOST_AUTO_TEST_CASE(clocks_of_several_chains) {
  for (const auto& [name, chains] : {std::pair("dualpipe", 2), {"dualpipev", 1}, {"chimera", 2}}) {
    BOOST_TEST_CONTEXT(name) {
      const Program program = lower(generate(name, {4, 8}));
      const Schedule& schedule = program.schedule;
      const Timeline timeline = simulate(program, uniform(100 * us, 110 * us, 90 * us, 5 * us));
      const Scratch scratch;
      std::vector<std::string> paths;
      for (int rank = 0; rank < schedule.ranks(); ++rank) {
        File file(rank, rank * 1'000'000);
        const auto ops = schedule.rank(rank);
        for (std::size_t i = 0, size = 1; i < ops.size(); i += size) {
          size = unit_size(ops.subspan(i));
          const Span span = timeline.ops[schedule.rank_begin[static_cast<std::size_t>(rank)] + i];
          file.op(cell_text(ops.subspan(i, size)), span.start / us, span.end / us);
        }
        paths.push_back(scratch / fmt::format("rank{}.json", rank));
        file.write(paths.back());
      }
      const ForeignRun run = load_foreign_traces(paths, TraceFormat::kineto);
      const MeasuredRun measured = measured_run(run.run, "run", run.program);
      BOOST_TEST(measured.program.schedule.placement.chains() == chains);
      BOOST_TEST((measured.program.schedule.ops == schedule.ops));
      BOOST_REQUIRE(run.clock_width.has_value());
      for (std::size_t i = 0; i < timeline.ops.size(); ++i) {
        // Of ranks that are not neighbours the widths add up.
        BOOST_TEST(std::abs(measured.timeline.ops[i].start - timeline.ops[i].start) <= 3 * *run.clock_width);
      }
      // The order that ran says it at once.
      const ForeignRun given = load_foreign_traces(paths, TraceFormat::kineto, {.schedule = &schedule});
      BOOST_TEST((given.run == run.run));
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
