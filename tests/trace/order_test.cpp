// Ops that no range names: which they are is told by the order that ran.
#include <fmt/format.h>

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/trace/measured_run.h"
#include "tests/scratch.h"
#include "tests/support.h"
#include "tests/trace/kineto_file.h"

namespace dualpipe::test {
namespace {

const std::string unmarked = "Schedule1F1B_P4V1M8";

std::vector<std::string> rank_files(const std::string& name, int ranks) {
  std::vector<std::string> files;
  for (int rank = 0; rank < ranks; ++rank) files.push_back(golden_trace(fmt::format("{}_rank{}.json.gz", name, rank)));
  return files;
}

Time length_of(const ForeignRun& run) {
  Time end = 0;
  for (const TraceRank& rank : run.run.ranks) end = std::max(end, rank.spans.back().end);
  return end;
}

// A trace three times in a row, each time so many times as long, as a profiler of three steps would have it.
std::vector<std::string> three_steps(const Scratch& scratch, const std::vector<std::string>& files,
                                     const std::vector<double>& stretches, std::optional<int> first_step) {
  constexpr double longest = 10e6;  // microseconds
  std::vector<std::string> written;
  for (const std::string& file : files) {
    auto document = nlohmann::json::parse(unpacked(file));
    const auto events = document["traceEvents"];
    double origin = std::numeric_limits<double>::max();
    for (const auto& event : events) {
      if (event["ph"] == "X") origin = std::min(origin, event["ts"].get<double>());
    }
    origin = std::floor(origin);
    auto& all = document["traceEvents"] = nlohmann::json::array();
    for (std::size_t step = 0; step < stretches.size(); ++step) {
      const double begin = origin + static_cast<double>(step) * longest;
      for (auto event : events) {
        if (!event.contains("ts")) continue;
        event["ts"] = begin + stretches[step] * (event["ts"].get<double>() - origin);
        if (event.contains("dur")) event["dur"] = stretches[step] * event["dur"].get<double>();
        all.push_back(std::move(event));
      }
      if (!first_step) continue;
      all.push_back({{"ph", "X"},
                     {"cat", "user_annotation"},
                     {"name", fmt::format("ProfilerStep#{}", *first_step + static_cast<int>(step))},
                     {"pid", 1},
                     {"tid", 1},
                     {"ts", begin},
                     {"dur", longest}});
    }
    written.push_back(scratch / fmt::format("rank{}.json", written.size()));
    write(written.back(), document.dump());
  }
  return written;
}

// One rank's file: operators that launch kernels, links of autograd, and messages; times in microseconds.
class GpuFile {
 public:
  explicit GpuFile(int rank) : rank_(rank) {}

  // From `begin` on the thread launches for 10; the kernels run for `takes` from `kernel` on.
  void op(bool is_forward, Time begin, Time kernel, Time takes) {
    const std::string args = fmt::format(R"("correlation": {})", ++correlation_);
    if (!is_forward) events_.push_back(event("cpu_op", "autograd::engine::evaluate_function: Mm", begin, 10));
    events_.push_back(event("cpu_op", "aten::mm", begin, 10));
    events_.push_back(event("cuda_runtime", "cudaLaunchKernel", begin + 1, 1, args));
    events_.push_back(event("kernel", "gemm", kernel, takes, args));
    events_.push_back(
        fmt::format(R"({{"ph": "{}", "cat": "fwdbwd", "name": "fwdbwd", "id": 1, "pid": 1, "tid": 1, "ts": {}}})",
                    is_forward ? "s" : "f", begin));
  }
  void message(bool is_send, Time begin) {
    events_.push_back(event("cpu_op", is_send ? "c10d::send" : "c10d::recv_", begin, 1));
  }
  void profiler_step(int number, Time begin, Time duration) {
    events_.push_back(event("user_annotation", fmt::format("ProfilerStep#{}", number), begin, duration));
  }
  [[nodiscard]] std::string write_into(const Scratch& scratch) const {
    std::string path = scratch / fmt::format("rank{}.json", rank_);
    write(path, document(rank_, events_));
    return path;
  }

 private:
  int rank_;
  int correlation_ = 0;
  std::vector<std::string> events_;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(trace_order)

// Without ranges ops are found by the order, within what lies between messages: a little more than in the ranges.
BOOST_AUTO_TEST_CASE(a_schedule_finds_ops_that_no_range_marks) {
  const Scratch scratch;
  std::vector<std::string> files;
  for (const std::string& file : rank_files("GPipe_P2V1M2", 2)) {
    files.push_back(scratch / ("rank" + std::to_string(files.size()) + ".json"));
    write(files.back(), replaced(replaced(unpacked(file), "\"Forward ", "\"forward "), "\"Backward ", "\"backward "));
  }
  BOOST_TEST(refusal([&] {
               static_cast<void>(load_foreign_traces(files, TraceFormat::kineto));
             }).find("no range marks an op; record with") != std::string::npos);
  const Schedule order = order_of("GPipe_P2V1M2");
  const auto run = load_foreign_traces(files, TraceFormat::kineto, {.schedule = &order});
  const auto measured = measured_run(run.run, "run", run.program);
  std::vector<Time> busy;
  for (const RankTimes& rank : measured.timeline.ranks) busy.push_back(rank.busy);
  BOOST_TEST(std::abs(busy[0] - 4288552) < 4288552 / 10);
  BOOST_TEST(std::abs(busy[1] - 5647280) < 5647280 / 4);  // with the loss, which stands behind the range of F
}

// PyTorch's 1F1B marks nothing: its ops are found by the order, and by what autograd and the messages tell. (That each
// of the 312 links from a forward to its backward begins and ends in ops of one micro-batch was seen by another
// program.)
BOOST_AUTO_TEST_CASE(pytorchs_1f1b_without_ranges) {
  const auto files = rank_files(unmarked, 4);
  BOOST_TEST(refusal([&] {
               static_cast<void>(load_foreign_traces(files, TraceFormat::kineto));
             }).find("no range marks an op") != std::string::npos);
  const Schedule order = order_of(unmarked);
  ForeignOptions options;
  options.schedule = &order;
  const ForeignRun run = load_foreign_traces(files, TraceFormat::kineto, options);
  BOOST_TEST(run.remarks.empty());
  MeasuredRun measured = measured_run(run.run, unmarked, run.program);
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

// Of several steps each is found, by ProfilerStep's number or counted, and without a choice that of median length.
BOOST_AUTO_TEST_CASE(steps_of_ops_that_no_range_marks) {
  const Schedule order = order_of(unmarked);
  const auto files = rank_files(unmarked, 4);
  const ForeignRun alone = load_foreign_traces(files, TraceFormat::kineto, {.schedule = &order});
  for (const std::optional<int> first_step : {std::optional<int>(), std::optional(7)}) {
    const Scratch scratch;
    const auto steps = three_steps(scratch, files, {1, 3, 2}, first_step);
    const auto step = [&](std::optional<std::int64_t> number) {
      return load_foreign_traces(steps, TraceFormat::kineto, {.step = number, .schedule = &order});
    };
    const std::int64_t first = first_step.value_or(0);
    const ForeignRun found = step(first);
    BOOST_TEST((found.run == alone.run));
    BOOST_TEST((found.messages == alone.messages));
    BOOST_TEST(found.remarks.empty());
    const ForeignRun median = step(std::nullopt);
    BOOST_TEST((median.run == step(first + 2).run));
    BOOST_TEST(std::abs(length_of(median) - 2 * length_of(alone)) <= 100);
    BOOST_TEST(median.messages.size() == alone.messages.size());
    BOOST_REQUIRE(median.remarks.size() == 1U);
    BOOST_TEST(median.remarks[0].starts_with(fmt::format("of 3 steps this is step {}, of median", first + 2)));
    BOOST_TEST(refusal([&] { static_cast<void>(step(first + 3)); }).find("there is no step") != std::string::npos);
  }
}

// On a GPU an op is as long as its kernels, which may end when the thread is in the next step already.
BOOST_AUTO_TEST_CASE(kernels_of_ops_that_no_range_marks) {
  const Scratch scratch;
  GpuFile first(0);
  GpuFile second(1);
  for (int step = 0; step < 2; ++step) {
    const Time at = 1000 * step;
    first.profiler_step(3 + step, at, 400);
    second.profiler_step(3 + step, at, 400);
    first.op(true, at, at + 300, 50 + step);
    first.message(true, at + 20);
    first.message(false, at + 30);
    first.op(false, at + 40, at + 600, 100 + step);
    second.message(false, at);
    second.op(true, at + 10, at + 350, 60 + step);
    second.op(false, at + 30, at + 450, 110 + step);
    second.message(true, at + 50);
  }
  const Schedule order = generate("1f1b", {2, 1});
  const std::vector<std::string> files{first.write_into(scratch), second.write_into(scratch)};
  for (const int step : {0, 1}) {
    const ForeignRun run = load_foreign_traces(files, TraceFormat::kineto, {.step = 3 + step, .schedule = &order});
    const auto durations = [&](int rank) {
      std::vector<Time> times;
      for (const Span& span : run.run.ranks[static_cast<std::size_t>(rank)].spans)
        times.push_back(span.end - span.start);
      return times;
    };
    BOOST_TEST(durations(0) == (std::vector<Time>{50'000 + 1000 * step, 100'000 + 1000 * step}),
               boost::test_tools::per_element());
    BOOST_TEST(durations(1) == (std::vector<Time>{60'000 + 1000 * step, 110'000 + 1000 * step}),
               boost::test_tools::per_element());
  }
}

// Megatron-LM's functions, where stacks were recorded; a model's own forward_step is a part of the pipeline's.
BOOST_AUTO_TEST_CASE(megatrons_functions) {
  const Scratch scratch;
  const std::vector<std::string> files{scratch / "rank0.json"};
  const Schedule order = generate("1f1b", {1, 2});
  const auto events = [](const std::string& category, const std::string& module) {
    std::vector<std::string> all;
    for (int i = 0; i < 2; ++i) {
      const Time at = 100 * i;
      all.push_back(event(category, module + "forward_step", at, 30));
      all.push_back(event(category, "pretrain_gpt.py(120): forward_step", at + 2, 20));
      all.push_back(event("cpu_op", "aten::mm", at + 5, 10));
      all.push_back(event(category, module + "backward_step", at + 40, 40));
      all.push_back(event("cpu_op", "aten::mm", at + 45, 20));
      all.push_back(event(category, module + "send_forward_recv_backward", at + 80, 10));
    }
    return all;
  };
  const std::string expected = "0F0 0-10000\n0B0 40000-60000\n0F1 100000-110000\n0B1 140000-160000\n";
  for (const auto& [category, module] :
       {std::pair<std::string, std::string>("python_function", "megatron/core/pipeline_parallel/schedules.py(403): "),
        {"user_annotation", "megatron.core.pipeline_parallel.schedules."},
        {"user_annotation", ""}}) {
    write(files[0], document(0, events(category, module)));
    BOOST_TEST(text_of(load_foreign_traces(files, TraceFormat::kineto, {.schedule = &order}).run.ranks[0]) == expected);
    BOOST_TEST(refusal([&] {
                 static_cast<void>(load_foreign_traces(files, TraceFormat::kineto));
               }).find("no range marks the micro-batch of an op; record") != std::string::npos);
  }
  const auto refused = [&](const Schedule& schedule) {
    return refusal(
        [&] { static_cast<void>(load_foreign_traces(files, TraceFormat::kineto, {.schedule = &schedule})); });
  };
  BOOST_TEST(refused(generate("gpipe", {1, 2}))
                 .find("0F1 of the schedule is a forward, but what ran at its place is a "
                       "backward") != std::string::npos);
  BOOST_TEST(refused(generate("1f1b", {1, 3}))
                 .find("its ranges mark 4 forwards and backwards, where the schedule has 6 "
                       "ops") != std::string::npos);
}

// A pattern of the user's with one group, the pass; W, too.
BOOST_AUTO_TEST_CASE(a_pattern_for_the_pass_alone) {
  const Scratch scratch;
  const std::vector<std::string> files{scratch / "rank0.json"};
  std::vector<std::string> events;
  for (const std::string name : {"fwd", "input grad", "weight grad"}) {
    const auto at = static_cast<Time>(20 * events.size());
    events.push_back(event("user_annotation", "stage " + name, at, 30));
    events.push_back(event("cpu_op", "aten::mm", at + 5, 10));
  }
  write(files[0], document(0, events));
  const Schedule order = schedule_of(straight(1, 1), {"0F0 0I0 0W0"});
  ForeignOptions options{.range = "^stage (fwd|input|weight)", .schedule = &order};
  BOOST_TEST(text_of(load_foreign_traces(files, TraceFormat::kineto, options).run.ranks[0]) ==
             "0F0 0-10000\n0I0 40000-50000\n0W0 80000-90000\n");
  options.schedule = nullptr;
  BOOST_TEST(refusal([&] {
               static_cast<void>(load_foreign_traces(files, TraceFormat::kineto, options));
             }).find("or pass alone where the order that ran is given") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
