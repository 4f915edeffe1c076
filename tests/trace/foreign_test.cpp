// Traces of other tools, real ones and such as are written here.
#include "dualpipe/sim/trace/foreign.h"

#include <zlib.h>

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

namespace dualpipe::test {
namespace {

std::string golden_trace(const std::string& name) {
  return std::string(DUALPIPE_TESTS_DIR) + "/goldens/traces/" + name;
}

std::vector<std::string> rank_files(const std::string& name) {
  return {golden_trace(name + "_rank0.json.gz"), golden_trace(name + "_rank1.json.gz")};
}

Schedule order_of(const std::string& name) {
  auto loaded = load_schedule(golden_trace(name + "_order.csv"));
  const auto* program = std::get_if<Program>(&loaded);
  return program != nullptr ? program->schedule : std::get<Schedule>(loaded);
}

std::vector<Time> busy_of(const ForeignRun& run) {
  std::vector<Time> busy;
  for (const RankTimes& rank : measured_run(run.run, "run").timeline.ranks) busy.push_back(rank.busy);
  return busy;
}

std::string unpacked(const std::string& path) {
  gzFile in = gzopen(path.c_str(), "rb");
  std::string text;
  char buffer[1 << 16];
  for (int size = gzread(in, buffer, sizeof buffer); size > 0; size = gzread(in, buffer, sizeof buffer)) {
    text.append(buffer, static_cast<std::size_t>(size));
  }
  gzclose(in);
  return text;
}

void write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = text.find(from); at != text.npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

// An event of torch.profiler's; times in microseconds.
std::string event(const std::string& category, const std::string& name, Time begin, Time duration,
                  const std::string& args = "") {
  return R"({"ph": "X", "cat": ")" + category + R"(", "name": ")" + name + R"(", "pid": 1, "tid": 1, "ts": )" +
         std::to_string(begin) + R"(, "dur": )" + std::to_string(duration) + R"(, "args": {)" + args + "}}";
}

std::string document(int rank, const std::vector<std::string>& events) {
  std::string text = R"({"distributedInfo": {"rank": )" + std::to_string(rank) + R"(}, "traceEvents": [)";
  for (const std::string& each : events) text += (&each == events.data() ? "" : ",\n") + each;
  return text + "]}";
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

std::string text_of(const TraceRank& rank) {
  std::string text;
  for (std::size_t i = 0; i < rank.ops.size(); ++i) {
    text += to_text(rank.ops[i]) + " " + std::to_string(rank.spans[i].start) + "-" + std::to_string(rank.spans[i].end) +
            "\n";
  }
  return text;
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

// Without ranges ops are found by the order, within what lies between messages: a little more than in the ranges.
BOOST_AUTO_TEST_CASE(a_schedule_finds_ops_that_no_range_marks) {
  const Scratch scratch;
  std::vector<std::string> files;
  for (const std::string& file : rank_files("GPipe_P2V1M2")) {
    files.push_back(scratch / ("rank" + std::to_string(files.size()) + ".json"));
    write(files.back(), replaced(replaced(unpacked(file), "\"Forward ", "\"forward "), "\"Backward ", "\"backward "));
  }
  BOOST_TEST(refusal([&] {
               static_cast<void>(load_foreign_traces(files, TraceFormat::kineto));
             }).find("no range marks an op; record with") != std::string::npos);
  const Schedule order = order_of("GPipe_P2V1M2");
  const auto busy = busy_of(load_foreign_traces(files, TraceFormat::kineto, {.schedule = &order}));
  BOOST_TEST(std::abs(busy[0] - 4288552) < 4288552 / 10);
  BOOST_TEST(std::abs(busy[1] - 5647280) < 5647280 / 4);  // with the loss, which stands behind the range of F
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

// Two ranks of two chunks, four micro-batches: forwards 0F0 0F1 2F0 2F1 0F2 …, backwards 2B0 2B1 0B0 …
BOOST_AUTO_TEST_CASE(primus_counts_forwards_and_backwards) {
  const Scratch scratch;
  const Program program = lower(generate("interleaved", {2, 4, 2}));
  const Timeline timeline = simulate(program, uniform(1'000'000, 1'000'000, 1'000'000));
  std::vector<std::string> files;
  for (int rank = 0; rank < 2; ++rank) {
    std::string lists[4];
    const auto ops = program.schedule.rank(rank);
    for (std::size_t i = 0; i < ops.size(); ++i) {
      const Span span = timeline.ops[program.schedule.rank_begin[static_cast<std::size_t>(rank)] + i];
      const std::size_t list = ops[i].kind == Kind::forward ? 0 : 2;
      for (const auto& [at, time] : {std::pair(list, span.start), {list + 1, span.end}}) {
        lists[at] += (lists[at].empty() ? "" : ", ") + std::to_string(time / 1'000'000) + ".0";
      }
    }
    files.push_back(scratch / ("pp_rank_" + std::to_string(rank) + ".json"));
    write(files.back(), R"([{"fwd_start": [)" + lists[0] + R"(], "fwd_end": [)" + lists[1] + R"(], "bwd_start": [)" +
                            lists[2] + R"(], "bwd_end": [)" + lists[3] + R"(], "memory": 3.5}])");
  }
  BOOST_TEST((format_of_trace(files[0]) == TraceFormat::primus));
  const ForeignRun run = load_foreign_traces(files, TraceFormat::primus, {.chunks = 2, .schedule = &program.schedule});
  const auto measured = measured_run(run.run, "primus");
  BOOST_TEST((measured.timeline.ops == timeline.ops));
  write(files[0], R"([{"fwd_start": [1], "fwd_end": [0], "bwd_start": [], "bwd_end": []}])");
  BOOST_TEST(refusal([&] {
               static_cast<void>(load_foreign_traces(files, TraceFormat::primus));
             }).find("pp_rank_0.json: [0].fwd_end[0]: before its start") != std::string::npos);
}

// PyTorch's 1F1B marks nothing: its ops are found by the order, and by what autograd and the messages tell. (That each
// of the 312 links from a forward to its backward begins and ends in ops of one micro-batch was seen by another
// program.)
BOOST_AUTO_TEST_CASE(pytorchs_1f1b_without_ranges) {
  const std::string name = "Schedule1F1B_P4V1M8";
  std::vector<std::string> files;
  for (int rank = 0; rank < 4; ++rank)
    files.push_back(golden_trace(name + "_rank" + std::to_string(rank) + ".json.gz"));
  BOOST_TEST(refusal([&] {
               static_cast<void>(load_foreign_traces(files, TraceFormat::kineto));
             }).find("no range marks an op") != std::string::npos);
  const Schedule order = order_of(name);
  ForeignOptions options;
  options.schedule = &order;
  const ForeignRun run = load_foreign_traces(files, TraceFormat::kineto, options);
  BOOST_TEST(run.remarks.empty());
  MeasuredRun measured = measured_run(run.run, name);
  BOOST_TEST((measured.program.schedule.ops == order.ops));
  // All messages are those of the order, and none came before it was sent.
  BOOST_TEST(run.messages.size() == 2U * 3U * 8U);
  BOOST_TEST(add_messages(measured, run.messages));
  for (const MeasuredMessage& each : run.messages) BOOST_TEST(each.sent.start <= each.received.end);
  const Explanation explanation = explain_measured(measured.program, measured.timeline);
  Time idle = 0;
  for (int rank = 0; rank < 4; ++rank) idle += measured.timeline.idle(rank);
  for (const IdleSegment& each : explanation.segments) idle -= each.span.end - each.span.start;
  BOOST_TEST(idle == 0);
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
