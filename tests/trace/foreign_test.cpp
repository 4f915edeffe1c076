// Traces of other tools, real ones and such as are written here.
#include "dualpipe/sim/trace/foreign.h"

#include <fmt/format.h>

#include <boost/test/unit_test.hpp>
#include <cmath>

#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/explain/measured_costs.h"
#include "dualpipe/sim/report/explain_report.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/schedule_file.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "dualpipe/sim/trace/chrome_trace.h"
#include "dualpipe/sim/trace/measured_run.h"
#include "tests/scratch.h"
#include "tests/support.h"
#include "tests/thinned.h"
#include "tests/trace/kineto_file.h"

namespace dualpipe::test {
namespace {

std::vector<std::string> rank_files(const std::string& name) {
  return {golden_trace(name + "_rank0.json.gz"), golden_trace(name + "_rank1.json.gz")};
}

std::vector<Time> busy_of(const ForeignRun& run) {
  std::vector<Time> busy;
  for (const RankTimes& rank : measured_run(run.run, "run").timeline.ranks) busy.push_back(rank.busy);
  return busy;
}

// One rank, micro-batch 0 and 1, each F of 10 from `begin` on, each B of 20.
std::vector<std::string> step(Time begin, const std::string& forward, const std::string& backward) {
  std::vector<std::string> events;
  for (int i = 0; i < 2; ++i) {
    const Time at = begin + 30 * i;
    events.push_back(event("user_annotation", forward + std::to_string(i), at, 10));
    events.push_back(event("cpu_op", "aten::mm", at, 10));
    events.push_back(event("user_annotation", backward + std::to_string(i), at + 10, 20));
    events.push_back(event("cpu_op", "aten::mm", at + 10, 20));
  }
  return events;
}

// What AMD Primus would have written of a run that was simulated: starts and ends, in milliseconds, in the order run.
std::vector<std::string> primus_files(const Scratch& scratch, const Schedule& schedule, const Timeline& timeline) {
  std::vector<std::string> files;
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    std::string lists[4];
    const auto ops = schedule.rank(rank);
    for (std::size_t i = 0; i < ops.size(); ++i) {
      const Span span = timeline.ops[schedule.rank_begin[static_cast<std::size_t>(rank)] + i];
      const std::size_t list = ops[i].kind == Kind::forward ? 0 : 2;
      for (const auto& [at, time] : {std::pair(list, span.start), {list + 1, span.end}}) {
        lists[at] += fmt::format("{}{}.{:06}", lists[at].empty() ? "" : ", ", time / 1'000'000, time % 1'000'000);
      }
    }
    files.push_back(scratch / ("pp_rank_" + std::to_string(rank) + ".json"));
    write(files.back(), R"([{"fwd_start": [)" + lists[0] + R"(], "fwd_end": [)" + lists[1] + R"(], "bwd_start": [)" +
                            lists[2] + R"(], "bwd_end": [)" + lists[3] + R"(], "memory": 3.5}])");
  }
  return files;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(trace_foreign)

// The sums were made by another program, from first to last operator of each range, without c10d's.
BOOST_AUTO_TEST_CASE(pytorchs_ranges_give_every_op_of_the_order) {
  for (const auto& [name, busy] : {std::pair<std::string, std::vector<Time>>("GPipe_P2V1M2", {4288552, 5647280}),
                                   {"Interleaved1F1B_P2V2M4", {29460424, 22895591}},
                                   {"InterleavedZeroBubble_P2V2M4", {12617500, 26550506}}}) {
    const auto files = rank_files(name);
    BOOST_TEST((format_of_trace(files[0]) == TraceFormat::kineto));
    const Schedule order = order_of(name);
    const ForeignRun run = load_foreign_traces(files, TraceFormat::kineto, {.schedule = &order});
    BOOST_TEST(busy_of(run) == busy, boost::test_tools::per_element());
    BOOST_TEST((run.clock_width.value() > 0));
    const auto measured = measured_run(run.run, name);
    BOOST_TEST(measured.program.schedule.placement.chains() == 1);
    const Explanation explanation = explain_measured(measured.program, measured.timeline);
    Time explained = 0;
    for (const IdleSegment& each : explanation.segments) explained += each.span.end - each.span.start;
    BOOST_TEST(explained == measured.timeline.idle(0) + measured.timeline.idle(1));
  }
}

// A clock that is off changes nothing, and neither does the order of the files.
BOOST_AUTO_TEST_CASE(clocks_are_aligned) {
  const Scratch scratch;
  const auto files = rank_files("GPipe_P2V1M2");
  const ForeignRun expected = load_foreign_traces(files, TraceFormat::kineto);
  write(scratch / "late.json", replaced(unpacked(files[1]), "1790857026000000000", "1790857026123000000"));
  const std::vector<std::string> shifted{scratch / "late.json", files[0]};
  const ForeignRun run = load_foreign_traces(shifted, TraceFormat::kineto);
  BOOST_TEST((run.run == expected.run));
  BOOST_TEST((run.clock_width == expected.clock_width));
}

BOOST_AUTO_TEST_CASE(kernels_count_where_there_are_any_but_not_those_of_messages) {
  const Scratch scratch;
  write(scratch / "rank0.json",
        document(0, {event("user_annotation", "PP:0F0", 0, 10), event("cpu_op", "aten::mm", 1, 2),
                     event("cuda_runtime", "cudaLaunchKernel", 2, 1, R"("correlation": 7)"),
                     event("cuda_runtime", "cudaLaunchKernel", 3, 1, R"("correlation": 8)"),
                     event("cuda_runtime", "cudaLaunchKernel", 4, 1, R"("correlation": 9)"),
                     event("user_annotation", "PP:0B0", 10, 10), event("cpu_op", "aten::mm", 12, 5),
                     event("kernel", "gemm", 100, 20, R"("correlation": 7)"),
                     event("kernel", "gelu", 125, 5, R"("correlation": 8)"),
                     event("kernel", "ncclDevKernel_SendRecv", 130, 50, R"("correlation": 9)"),
                     event("kernel", "gemm", 300, 50, R"("correlation": 99)")}));
  const std::vector<std::string> files{scratch / "rank0.json"};
  const ForeignRun run = load_foreign_traces(files, TraceFormat::kineto);
  BOOST_TEST(text_of(run.run.ranks[0]) == "0B0 0-5000\n0F0 88000-118000\n");
}

BOOST_AUTO_TEST_CASE(names_of_other_tools_and_of_the_user) {
  const Scratch scratch;
  const std::vector<std::string> files{scratch / "rank0.json"};
  write(files[0], document(0, {event("user_annotation", "F0.0.1", 0, 10), event("cpu_op", "aten::mm", 0, 10),
                               event("user_annotation", "B0.0.2", 10, 10), event("cpu_op", "aten::mm", 10, 10),
                               event("user_annotation", "W0.0.3", 20, 10), event("cpu_op", "aten::mm", 20, 10)}));
  BOOST_TEST(text_of(load_foreign_traces(files, TraceFormat::kineto).run.ranks[0]) ==
             "0F0 0-10000\n0I0 10000-20000\n0W0 20000-30000\n");
  write(files[0],
        document(0, {event("user_annotation", "0F0", 0, 10), event("cpu_op", "aten::mm", 0, 10),
                     event("user_annotation", "(0F1;1B0)OVERLAP_F_B", 10, 10), event("cpu_op", "aten::mm", 10, 10),
                     event("user_annotation", "1W0", 20, 10), event("cpu_op", "aten::mm", 20, 10),
                     event("user_annotation", "2 steps", 30, 10), event("cpu_op", "aten::mm", 30, 10)}));
  BOOST_TEST(text_of(load_foreign_traces(files, TraceFormat::kineto).run.ranks[0]) ==
             "0F0 0-10000\n0F1 10000-20000\n1B0 10000-20000\n1W0 20000-30000\n");
  write(files[0], document(0, step(0, "my fwd mb=", "my bwd mb=")));
  const ForeignOptions options{.range = "my ([fb]wd) mb=([0-9]+)"};
  BOOST_TEST(text_of(load_foreign_traces(files, TraceFormat::kineto, options).run.ranks[0]) ==
             "0F0 0-10000\n0B0 10000-30000\n0F1 30000-40000\n0B1 40000-60000\n");
  for (const char* const bad : {"(", "fwd"}) {
    BOOST_TEST(refusal([&] { static_cast<void>(load_foreign_traces(files, TraceFormat::kineto, {.range = bad})); }) !=
               "");
  }
}

BOOST_AUTO_TEST_CASE(one_of_several_steps) {
  const Scratch scratch;
  const std::vector<std::string> files{scratch / "rank0.json"};
  std::vector<std::string> events;
  for (const Time begin : {0, 1000, 2000}) {
    auto each = step(begin, "Forward ", "Backward ");
    if (begin == 1000) each.back() = event("cpu_op", "aten::mm", begin + 40, 19);  // the shortest
    if (begin == 2000) each.push_back(event("cpu_op", "aten::mm", begin + 59, 30));
    events.insert(events.end(), each.begin(), each.end());
    events.push_back(event("user_annotation", "ProfilerStep#" + std::to_string(5 + begin / 1000), begin, 500));
  }
  write(files[0], document(0, events));
  const auto length = [&](std::optional<std::int64_t> step) {
    const ForeignRun run = load_foreign_traces(files, TraceFormat::kineto, {.step = step});
    BOOST_TEST(run.remarks.size() == (step ? 0 : 1));
    return run.run.ranks[0].spans.back().end;
  };
  BOOST_TEST(length(5) == 60000);
  BOOST_TEST(length(6) == 59000);
  BOOST_TEST(length(7) == 89000);
  BOOST_TEST(length(std::nullopt) == 60000);
  BOOST_TEST(refusal([&] { static_cast<void>(length(9)); }).find("there is no step 9; there are 5 to 7") !=
             std::string::npos);
}

BOOST_AUTO_TEST_CASE(what_is_missing_is_named) {
  const Scratch scratch;
  const auto files = rank_files("GPipe_P2V1M2");
  const auto said = [&](const std::vector<std::string>& paths) {
    return refusal([&] { static_cast<void>(load_foreign_traces(paths, format_of_trace(paths[0]))); });
  };
  BOOST_TEST(said({files[1]}).find("there is no file of rank 0") != std::string::npos);
  BOOST_TEST(said({files[0], files[0]}).find("both of rank 0") != std::string::npos);
  const std::string whole = bytes_of(files[0]);
  write(scratch / "cut.json.gz", whole.substr(0, whole.size() / 2));
  BOOST_TEST(said({scratch / "cut.json.gz"}) != "");
  write(scratch / "other.json", replaced(unpacked(files[0]), "distributedInfo", "other"));
  BOOST_TEST(said({scratch / "other.json"}).find("does not say its rank") != std::string::npos);
  write(scratch / "none.json", R"({"traceEvents": [{"ph": "X", "cat": "else"}]})");
  BOOST_TEST(said({scratch / "none.json"}).find("none of its events") != std::string::npos);
  const Schedule order = order_of("Interleaved1F1B_P2V2M4");
  BOOST_TEST(refusal([&] {
               static_cast<void>(load_foreign_traces(files, TraceFormat::kineto, {.schedule = &order}));
             }).find("rank 0, op 2: 0B0 ran, but the schedule has 2F0") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(pytorchs_simulator) {
  const std::vector<std::string> files{golden_trace("pytorch_dump_chrometrace_interleaved_P2V2M4.json")};
  BOOST_TEST((format_of_trace(files[0]) == TraceFormat::pytorch));
  const Schedule order = order_of("Interleaved1F1B_P2V2M4");
  const auto busy = busy_of(load_foreign_traces(files, TraceFormat::pytorch, {.schedule = &order}));
  BOOST_TEST(busy == (std::vector<Time>{16000, 16000}), boost::test_tools::per_element());
}

// Any interleaved run that is written down in Primus' way is read back op by op, to the nanosecond.
BOOST_AUTO_TEST_CASE(primus_counts_forwards_and_backwards) {
  Random random(11);
  Thinned thinned(3);
  for (int ranks = 2; ranks <= 5; ++ranks) {
    for (int chunks = 1; chunks <= 4; ++chunks) {
      for (const int rounds : {1, 2, 5}) {
        if (!thinned.next()) continue;
        BOOST_TEST_CONTEXT(ranks << " ranks, " << chunks << " chunks, " << ranks * rounds << " micro-batches") {
          const Shape shape{ranks, ranks * rounds, chunks};
          const Program program =
              lower(chunks == 1 ? generate("1f1b", {ranks, ranks * rounds}) : generate("interleaved", shape));
          Costs costs = random_costs(random, program.schedule.placement, CommunicationModel::latency);
          for (StageCosts& stage : costs.stages) stage.forward += 1'234'567;
          const Timeline timeline = simulate(program, costs);
          const Scratch scratch;
          const auto files = primus_files(scratch, program.schedule, timeline);
          BOOST_TEST((format_of_trace(files[0]) == TraceFormat::primus));
          const ForeignRun run = load_foreign_traces(files, TraceFormat::primus, {.chunks = chunks});
          const auto measured = measured_run(run.run, "primus", run.program);
          BOOST_TEST((measured.program.schedule.ops == program.schedule.ops));
          BOOST_TEST((measured.timeline.ops == timeline.ops));
          BOOST_TEST(
              (load_foreign_traces(files, TraceFormat::primus, {.chunks = chunks, .schedule = &program.schedule}).run ==
               run.run));
        }
      }
    }
  }
}

// Other chunks than there were make no step of it, or one that nobody can have run; times must be in order.
BOOST_AUTO_TEST_CASE(primus_with_other_chunks) {
  const Scratch scratch;
  const Program program = lower(generate("interleaved", {2, 4, 2}));
  const auto files = primus_files(scratch, program.schedule, simulate(program, uniform(1000, 1000, 1000)));
  for (const int chunks : {3, 4, 8}) {
    BOOST_TEST(refusal([&] {
                 const ForeignRun run = load_foreign_traces(files, TraceFormat::primus, {.chunks = chunks});
                 static_cast<void>(measured_run(run.run, "primus", run.program));
               }) != "");
  }
  BOOST_TEST(refusal([&] {
               static_cast<void>(
                   load_foreign_traces(files, TraceFormat::primus, {.chunks = 1, .schedule = &program.schedule}));
             }).find("but the schedule has") != std::string::npos);
  write(files[0], R"([{"fwd_start": [1], "fwd_end": [0], "bwd_start": [], "bwd_end": []}])");
  BOOST_TEST(refusal([&] {
               static_cast<void>(load_foreign_traces(files, TraceFormat::primus));
             }).find("pp_rank_0.json: [0].fwd_end[0]: before its start") != std::string::npos);
}

// A real run: 1F1B on 8 GPUs. Its own medians predict it within 2.1 %, and within 1.5 % with the time between ops.
BOOST_AUTO_TEST_CASE(medians_predict_a_real_run) {
  const std::vector<std::string> files{golden_trace("primus_pp8_measured_iteration7_trace.json")};
  const auto measured = measured_run(load_foreign_traces(files, format_of_trace(files[0])).run, "primus");
  const auto ms = [](Time time) { return static_cast<double>(time) / 1e6; };
  BOOST_TEST(std::lround(ms(measured.timeline.makespan())) == 3237);
  MeasuredCosts costs = measured_costs(measured.program, measured.timeline);
  BOOST_TEST(costs.costs.launch > 0);
  BOOST_TEST(std::abs(ms(simulate(measured.program, costs.costs).makespan()) / 3237 - 1) < 0.015);
  costs.costs.launch = costs.costs.latency = 0;
  BOOST_TEST(std::abs(ms(simulate(measured.program, costs.costs).makespan()) / 3237 - 1) < 0.021);
  const Explanation explanation = explain_measured(measured.program, measured.timeline);
  Time launch = 0;
  for (const IdleSegment& each : explanation.segments) {
    if (each.cause == Cause::launch) launch += each.span.end - each.span.start;
  }
  BOOST_TEST(launch > 0);
}

// What we write ourselves is read back as the schedule that it was; what was measured of it, as what simulate() made.
BOOST_AUTO_TEST_CASE(our_own_traces) {
  for (const Case& each : small_cases(4, 8)) {
    const Program program = lower(generate(each.family, each.shape));
    Random random(7);
    const Costs costs = random_costs(random, program.schedule.placement, CommunicationModel::latency);
    const Timeline timeline = simulate(program, costs);
    std::stringstream trace;
    write_chrome_trace(trace, program, costs, timeline);
    const auto measured = measured_run(read_chrome_trace(trace, "trace")[0], "trace");
    BOOST_TEST_CONTEXT(each) {
      BOOST_TEST((measured.program.schedule.ops == program.schedule.ops));
      BOOST_TEST((measured.program.schedule.placement.chain_begin == program.schedule.placement.chain_begin));
      BOOST_TEST((measured.timeline.ranks == timeline.ranks));
      const Explanation explanation = explain_measured(measured.program, measured.timeline);
      Time idle = 0;
      for (int rank = 0; rank < each.shape.ranks; ++rank) idle += timeline.idle(rank);
      for (const IdleSegment& part : explanation.segments) idle -= part.span.end - part.span.start;
      BOOST_TEST(idle == 0);
      for (const Time slack : explanation.slack) BOOST_TEST(slack >= 0);
    }
  }
}

// A fault that was put in is what most of the idle time is due to: a slow rank, and a slow link.
BOOST_AUTO_TEST_CASE(a_fault_is_named) {
  const Program program = lower(generate("1f1b", {4, 12}));
  Costs costs = uniform(1000, 1000, 1000);
  costs.speed = {1, 1, 0.5, 1};
  const Timeline slow = simulate(program, costs);
  const auto report = explain_report(program, std::nullopt, slow, explain_measured(program, slow));
  BOOST_TEST((report.causes[0].cause == Cause::backward));
  BOOST_TEST(report.causes[0].sources[0].rank == 2);
  BOOST_TEST(report.awaited[0].rank == 2);

  // Each message from rank 1 to rank 2 takes a hundred times as long as an op: the boundary's stage has large outputs.
  costs = uniform(1000, 1000, 1000);
  costs.stages.resize(4, costs.stages[0]);
  costs.stages[1].message = 100'000;
  costs.model = CommunicationModel::links;
  costs.bandwidth = 1e9;
  const Timeline late = simulate(program, costs);
  const auto of_link = explain_report(program, std::nullopt, late, explain_measured(program, late));
  BOOST_TEST((of_link.causes[0].cause == Cause::transfer));
  const CauseSource& most = of_link.causes[0].sources[0];
  BOOST_TEST(((most.rank == 1 && most.to == 2) || (most.rank == 2 && most.to == 1)));
}

BOOST_AUTO_TEST_CASE(a_run_that_ended_early_is_no_step) {
  TraceRun run;
  run.ranks.resize(2);
  run.ranks[0] = {{Op{0, 0, Kind::forward, false}, Op{0, 0, Kind::backward, false}}, {{0, 1}, {5, 6}}, {}};
  run.ranks[1] = {{Op{0, 1, Kind::forward, false}}, {{2, 3}}, {}};
  BOOST_TEST(refusal([&] {
               static_cast<void>(measured_run(run, "run.json"));
             }).starts_with("run.json: what ran is no whole step: "));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
