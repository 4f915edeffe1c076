#include "dualpipe/sim/trace/chrome_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <set>
#include <sstream>

#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/scratch.h"
#include "tests/support.h"
#include "tests/trace/perfetto.h"

namespace dualpipe::test {
namespace {

using Json = nlohmann::json;
using perfetto::Arrow;
using perfetto::Slice;
using perfetto::Trace;

constexpr Time ms = 1'000'000;

std::string trace_of(const Program& program, const Costs& costs, const Timeline& timeline,
                     const TraceFilter& filter = {}) {
  std::ostringstream out;
  write_chrome_trace(out, program, costs, timeline, filter);
  return out.str();
}

std::size_t send_count(const Program& program) {
  return static_cast<std::size_t>(std::count_if(program.communication.begin(), program.communication.end(),
                                                [](Op op) { return is_send(op.kind); }));
}

Costs two_way_costs(Time latency) { return uniform(ms, ms, ms, latency, 2 * ms); }

// The compute lane of each rank is the timeline's ops, in order, with the idle time before each.
void check_compute_lanes(const Trace& trace, const Program& program, const Timeline& timeline) {
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const auto lane = trace.in_lane(rank, "compute");
    const auto units = detail::report::units_of(program, timeline, rank);
    BOOST_REQUIRE(lane.size() == units.size());
    Time free_since = detail::report::bounds_of(timeline).start;
    for (std::size_t i = 0; i < units.size(); ++i) {
      BOOST_TEST(lane[i].span == units[i].span);
      BOOST_TEST(lane[i].args.at("op") == cell_text(units[i].ops));
      BOOST_TEST(lane[i].args.at("wait_ns") == units[i].span.start - free_since);
      free_since = units[i].span.end;
    }
  }
}

std::string counter_name(int rank, std::string_view what) { return fmt::format("rank {:02} {}", rank, what); }

// Counters change whenever they are written, and end as memory_over_time() does.
void check_counters(const Trace& trace, const Program& program, const Costs& costs, const Timeline& timeline) {
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const auto& live = trace.counters.at(counter_name(rank, "activations live"));
    const auto& bytes = trace.counters.at(counter_name(rank, "memory bytes"));
    for (const auto* counter : {&live, &bytes}) {
      for (std::size_t i = 1; i < counter->size(); ++i) {
        BOOST_TEST((*counter)[i - 1].first < (*counter)[i].first);
        BOOST_TEST((*counter)[i - 1].second != (*counter)[i].second);
      }
    }
    const MemoryPoint last = memory_over_time(program, costs, timeline, rank).back();
    BOOST_TEST(live.back().second == last.activations);
    BOOST_TEST(bytes.back().second == last.bytes);
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(trace_chrome_trace)

// Every family, under every model of communication, with random durations, some of them 0.
BOOST_AUTO_TEST_CASE(keeps_perfettos_rules) {
  Random random(12);
  for (const Case& each : small_cases(3, 6)) {
    const Program program = lower(generate(each.family, each.shape));
    for (const auto model : {CommunicationModel::latency, CommunicationModel::links, CommunicationModel::stream}) {
      if (find_deadlock(program, model)) continue;
      const Costs costs = random_costs(random, program.schedule.placement, model, random.one_in(3));
      const Timeline timeline = simulate(program, costs);
      BOOST_TEST_CONTEXT(each << " " << model) {
        const Trace trace(trace_of(program, costs, timeline));
        check_compute_lanes(trace, program, timeline);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(first_lines) {
  const Program program = lower(generate("1f1b", {2, 1}));
  const Costs costs = uniform(1'234'567, ms, ms, 1'500);
  const std::string expected =
      R"({"traceEvents":[
{"ph":"M","pid":1000,"name":"process_name","args":{"name":"1f1b"}},
{"ph":"M","pid":1000,"tid":1,"name":"thread_name",)"
      R"("args":{"name":"rank 00 compute","rank":0,"peak_activations":1,"peak_memory_bytes":0}},
{"ph":"M","pid":1000,"tid":1,"name":"thread_sort_index","args":{"sort_index":1}},
{"ph":"X","pid":1000,"tid":1,"ts":0.000,"dur":1234.567,"cat":"compute","name":"F 0",)"
      R"("args":{"op":"0F0","stage":0,"chain":0,"micro_batch":0,"wait_ns":0}},
)";
  BOOST_TEST(trace_of(program, costs, simulate(program, costs)).substr(0, expected.size()) == expected);
}

BOOST_AUTO_TEST_CASE(an_arrow_from_each_send_to_its_receive) {
  const Program program = lower(generate("dualpipe", {4, 8}));
  Costs costs = two_way_costs(ms / 2);
  costs.stages[0].activation = 600;
  costs.stages[0].weight_stash = 200;
  costs.stages[0].message = 30;
  const Timeline timeline = simulate(program, costs);
  const Trace trace(trace_of(program, costs, timeline));
  BOOST_TEST(trace.arrows.size() == send_count(program));
  for (const Arrow& arrow : trace.arrows) {
    BOOST_TEST(arrow.from.name.substr(0, 5) == "SEND_");
    BOOST_TEST(arrow.to.name.substr(0, 5) == "RECV_");
    BOOST_TEST(arrow.from.name.substr(5) == arrow.to.name.substr(5));
    BOOST_TEST(arrow.from.args.at("bytes") == 30);
    BOOST_TEST(arrow.to.args.at("bytes") == 30);
    const std::string from = trace.threads.at(arrow.from.track).substr(0, 7);
    const std::string to = trace.threads.at(arrow.to.track).substr(0, 7);
    BOOST_TEST(from != to);
    BOOST_TEST(trace.threads.at(arrow.from.track).substr(0, 23) == from + " send to " + to);
    BOOST_TEST(trace.threads.at(arrow.to.track).substr(0, 28) == to + " receive from " + from);
  }
  check_counters(trace, program, costs, timeline);
}

// Messages of no duration have no slices; the arrows join the ops instead.
BOOST_AUTO_TEST_CASE(arrows_between_ops_where_messages_take_no_time) {
  for (const bool release_early : {false, true}) {
    const Program program = lower(generate("dualpipe", {4, 8}));
    Costs costs = two_way_costs(0);
    costs.release_early = release_early;
    const Trace trace(trace_of(program, costs, simulate(program, costs)));
    BOOST_TEST(trace.threads.size() == 4U);
    BOOST_TEST(trace.arrows.size() == send_count(program));
    for (const Arrow& arrow : trace.arrows) {
      BOOST_TEST((arrow.from.track != arrow.to.track));
      if (!release_early) BOOST_TEST(arrow.from.span.end <= arrow.to.span.start);
    }
  }
}

// Three forwards are under way at once: a lane each, and the same ones at both ends.
BOOST_AUTO_TEST_CASE(overlapping_messages_get_lanes_of_their_own) {
  const Program program = lower(generate("gpipe", {2, 6}));
  const Costs costs = uniform(ms, ms, ms, 3 * ms);
  const Trace trace(trace_of(program, costs, simulate(program, costs)));
  for (const char* lane : {"send to rank 01", "send to rank 01 (2)", "send to rank 01 (3)"}) {
    BOOST_TEST(trace.in_lane(0, lane).size() == 2U);
  }
  BOOST_TEST(trace.in_lane(1, "receive from rank 00 (3)").size() == 2U);
  BOOST_TEST(trace.in_lane(0, "send to rank 01 (4)").empty());
}

BOOST_AUTO_TEST_CASE(a_pair_is_one_slice) {
  const Program program = lower(generate("dualpipe", {4, 8}));
  const Costs costs = two_way_costs(0);
  const Trace trace(trace_of(program, costs, simulate(program, costs)));
  const auto lane = trace.in_lane(0, "compute");
  const auto pair = std::find_if(lane.begin(), lane.end(), [](const Slice& slice) { return slice.name == "F&B' 3 1"; });
  BOOST_REQUIRE((pair != lane.end()));
  BOOST_TEST(pair->args.at("op") == "(0F3;7B1)OVERLAP_F_B");
  BOOST_TEST(pair->args.at("forward") == Json::parse(R"({"stage": 0, "chain": 0, "micro_batch": 3})"));
  BOOST_TEST(pair->args.at("backward") == Json::parse(R"({"stage": 7, "chain": 1, "micro_batch": 1})"));
}

// No tid equals its pid, however many lanes there are: here 1,100 and more.
BOOST_AUTO_TEST_CASE(many_lanes_step_over_the_pid) {
  const Program program = lower(generate("gpipe", {2, 1'100}));
  const Costs costs = uniform(1'000, 1'000, 1'000, 5 * ms);
  const Trace trace(trace_of(program, costs, simulate(program, costs)));
  BOOST_TEST(trace.threads.size() > 2'000U);
}

BOOST_AUTO_TEST_CASE(filter_by_rank_and_time) {
  const Program program = lower(generate("dualpipe", {4, 8}));
  const Costs costs = two_way_costs(ms / 2);
  const Timeline timeline = simulate(program, costs);
  TraceFilter filter;
  filter.first_rank = 1;
  filter.last_rank = 2;
  filter.begin = 8 * ms;
  filter.end = 12 * ms;
  const Trace all(trace_of(program, costs, timeline));
  const Trace part(trace_of(program, costs, timeline, filter));
  const auto kept = [&](const Slice& slice) {
    const int rank = std::stoi(all.threads.at(slice.track).substr(5, 2));
    return filter.has(rank) && slice.span.start < filter.end && slice.span.end > filter.begin;
  };
  const auto kept_in_part = [&](const Slice& slice) {
    const int rank = std::stoi(part.threads.at(slice.track).substr(5, 2));
    return filter.has(rank) && slice.span.start < filter.end && slice.span.end > filter.begin;
  };
  BOOST_TEST(part.slices.size() == static_cast<std::size_t>(std::count_if(all.slices.begin(), all.slices.end(), kept)));
  BOOST_TEST(std::all_of(part.slices.begin(), part.slices.end(), kept_in_part));
  BOOST_TEST(part.arrows.size() ==
             static_cast<std::size_t>(std::count_if(all.arrows.begin(), all.arrows.end(), [&](const Arrow& arrow) {
               return kept(arrow.from) && kept(arrow.to);
             })));
  BOOST_TEST(!part.arrows.empty());
  // A counter begins with what held when the window began.
  const auto& counter = part.counters.at("rank 01 activations live");
  const auto& whole = all.counters.at("rank 01 activations live");
  BOOST_TEST(counter.front().first == filter.begin);
  const auto after = std::find_if(whole.begin(), whole.end(), [&](const auto& p) { return p.first > filter.begin; });
  BOOST_TEST(counter.front().second == std::prev(after)->second);
  BOOST_TEST(counter.back().first < filter.end);
}

// The rows of a rank stand together, those of the plan above those of the measured run; ids are used once.
BOOST_AUTO_TEST_CASE(two_runs_in_one_file) {
  const Program program = lower(generate("1f1b", {3, 4}));
  const Costs planned_costs = uniform(ms, ms, ms);
  const Costs measured_costs = uniform(ms, ms, ms, ms);
  const Timeline planned = simulate(program, planned_costs);
  const Timeline measured = simulate(program, measured_costs);
  const std::vector<TracedRun> runs{{program, planned_costs, planned, "planned"},
                                    {program, measured_costs, measured, "measured"}};
  std::ostringstream out;
  write_chrome_trace(out, runs);
  const Trace trace(out.str());
  const std::vector<std::string> expected{"rank 00 planned compute",
                                          "rank 00 measured compute",
                                          "rank 00 measured send to rank 01",
                                          "rank 00 measured receive from rank 01",  // rank 0 has one neighbour
                                          "rank 01 planned compute",
                                          "rank 01 measured compute",
                                          "rank 01 measured send to rank 00",
                                          "rank 01 measured receive from rank 00",
                                          "rank 01 measured send to rank 02",
                                          "rank 01 measured receive from rank 02",
                                          "rank 02 planned compute",
                                          "rank 02 measured compute",
                                          "rank 02 measured send to rank 01",
                                          "rank 02 measured receive from rank 01"};
  BOOST_TEST(trace.rows() == expected, boost::test_tools::per_element());
  BOOST_TEST(trace.processes.size() == 1U);
  BOOST_TEST(trace.arrows.size() == 2 * send_count(program));
  // Perfetto sorts counters by name.
  std::vector<std::string> counters;
  for (const auto& [name, points] : trace.counters) counters.push_back(name);
  const std::vector<std::string> in_order{
      "rank 00 #1 planned activations live", "rank 00 #2 measured activations live",
      "rank 01 #1 planned activations live", "rank 01 #2 measured activations live",
      "rank 02 #1 planned activations live", "rank 02 #2 measured activations live"};
  BOOST_TEST(counters == in_order, boost::test_tools::per_element());
}

// Whoever looks at colours alone can tell the chains apart, too.
BOOST_AUTO_TEST_CASE(chains_differ_in_name) {
  const Program program = lower(generate("dualpipe", {4, 8}));
  const Costs costs = two_way_costs(ms / 2);
  const Trace trace(trace_of(program, costs, simulate(program, costs)));
  const auto marked = [](const std::string& name) { return name.find('\'') != std::string::npos; };
  int of_second = 0;
  for (const Slice& slice : trace.slices) {
    if (!slice.args.contains("chain")) continue;  // a pair has one of each
    BOOST_TEST(marked(slice.name) == (slice.args.at("chain") == 1), slice.name);
    of_second += marked(slice.name);
  }
  BOOST_TEST(of_second > 0);
  const Program v_shaped = lower(generate("dualpipev", {4, 8}));
  const Trace one_chain(trace_of(v_shaped, costs, simulate(v_shaped, costs)));
  BOOST_TEST(std::ranges::none_of(one_chain.slices, [&](const Slice& slice) { return marked(slice.name); }));
}

// Ops in parts: F of attention and dispatch, B of dispatch and attention. Activations are copied.
Timeline with_parts(const Program& program, Timeline timeline) {
  const auto add = [&](Op op, PartSpan::Lane lane, const char* name, Time start, Time end) {
    op.with_next = false;
    timeline.parts.push_back({op, lane, name, {start, end}});
  };
  for (std::size_t i = 0; i < program.schedule.ops.size(); ++i) {
    const Op op = program.schedule.ops[i];
    const Span span = timeline.ops[i];
    const Time half = (span.start + span.end) / 2;
    const bool forward = op.kind == Kind::forward;
    add(op, PartSpan::Lane::compute, "attention", forward ? span.start : half, forward ? half : span.end);
    add(op, PartSpan::Lane::exchange, "dispatch", forward ? half : span.start, forward ? span.end : half);
  }
  for (std::size_t i = 0; i < program.communication.size(); ++i) {
    const Span span = timeline.communication[i];
    if (program.communication[i].kind == Kind::receive_forward) {
      add(program.communication[i], PartSpan::Lane::copy, "copy", span.end - 10, span.end);
    }
  }
  return timeline;
}

BOOST_AUTO_TEST_CASE(parts_have_lanes_below_the_ops) {
  const Program program = lower(generate("dualpipe", {2, 4}));
  const Costs costs = two_way_costs(ms / 4);
  const Timeline plain = simulate(program, costs);
  const Timeline timeline = with_parts(program, plain);
  const std::string text = trace_of(program, costs, timeline);
  const Trace trace(text);
  const std::vector<std::string> expected = {"compute", "compute, stage 1", "compute, stage 2",    "exchange",
                                             "copy",    "send to rank 00",  "receive from rank 00"};
  const auto rows = trace.rows();
  const auto first_row = std::ranges::find(rows, "rank 01 compute") - rows.begin();
  for (std::size_t lane = 0; lane < expected.size(); ++lane) {
    BOOST_TEST(rows.at(static_cast<std::size_t>(first_row) + lane) == "rank 01 " + expected[lane]);
  }
  std::size_t slices = 0;
  for (const char* lane : {"compute, stage 1", "compute, stage 2", "exchange", "copy"}) {
    slices += trace.in_lane(1, lane).size();
  }
  BOOST_TEST(slices == static_cast<std::size_t>(std::ranges::count_if(timeline.parts, [&](const PartSpan& part) {
               return program.schedule.placement.rank_of[part.op.stage] == 1;
             })));
  const Slice first = trace.in_lane(1, "exchange").front();
  BOOST_TEST(first.name == "dispatch 2F0");
  BOOST_TEST(first.args == Json::parse(R"({"op": "2F0", "stage": 2, "chain": 1, "micro_batch": 0})"));
  BOOST_TEST(trace.in_lane(1, "copy").front().name.substr(0, 5) == "copy ");

  // All else is as without them, but for the numbers of the lanes below.
  const Trace without(trace_of(program, costs, plain));
  BOOST_TEST(trace.arrows.size() == without.arrows.size());
  BOOST_TEST(trace.slices.size() == without.slices.size() + timeline.parts.size());
  check_compute_lanes(trace, program, timeline);
}

BOOST_AUTO_TEST_CASE(the_filter_goes_for_parts_too) {
  const Program program = lower(generate("dualpipe", {2, 4}));
  const Costs costs = two_way_costs(ms / 4);
  const Timeline timeline = with_parts(program, simulate(program, costs));
  TraceFilter filter;
  filter.first_rank = 1;
  filter.begin = 4 * ms;
  filter.end = 6 * ms;
  const Trace all(trace_of(program, costs, timeline));
  const Trace part(trace_of(program, costs, timeline, filter));
  for (const char* lane : {"compute, stage 1", "exchange"}) {
    const auto whole = all.in_lane(1, lane);
    const auto kept = std::ranges::count_if(whole, [&](const Slice& slice) { return filter.has(slice.span); });
    BOOST_TEST(kept > 0);
    BOOST_TEST(std::ssize(part.in_lane(1, lane)) == kept);
    BOOST_TEST(part.in_lane(0, lane).empty());
  }
}

BOOST_AUTO_TEST_CASE(parts_that_overlap_get_lanes_of_their_own) {
  const Program program = lower(generate("1f1b", {1, 1}));
  Timeline timeline = simulate(program, uniform(ms, ms, ms));
  for (const Time start : {0, 10, 20}) {
    timeline.parts.push_back({{}, PartSpan::Lane::exchange, "dispatch", {start, start + 15}});
  }
  const Trace trace(trace_of(program, uniform(ms, ms, ms), timeline));
  BOOST_TEST(trace.in_lane(0, "exchange").size() == 2U);
  BOOST_TEST(trace.in_lane(0, "exchange (2)").size() == 1U);
}

BOOST_AUTO_TEST_CASE(a_run_says_what_it_ran_on) {
  const Program program = lower(generate("1f1b", {2, 2}));
  const Costs costs = uniform(ms, ms, ms);
  const std::vector<std::string> devices = {"NVIDIA H100", "NVIDIA H200"};
  const Timeline timeline = simulate(program, costs);
  const TracedRun run{.program = program,
                      .costs = costs,
                      .timeline = timeline,
                      .label = "measured",
                      .devices = devices,
                      .about = TraceArgs().add("dtype", "bfloat16")};
  std::ostringstream out;
  write_chrome_trace(out, std::span(&run, 1));
  BOOST_TEST(Trace(out.str()).rows() == std::vector<std::string>({"rank 00 measured compute on NVIDIA H100",
                                                                  "rank 01 measured compute on NVIDIA H200"}),
             boost::test_tools::per_element());
  const std::string expected =
      R"("args":{"name":"rank 00 measured compute on NVIDIA H100","rank":0,"run":"measured","device":"NVIDIA H100",)"
      R"("dtype":"bfloat16","peak_activations":)";
  BOOST_TEST(out.str().find(expected) != std::string::npos, out.str());
}

// Clocks that disagree: a receive ends before its send starts. No arrow leads back in time.
BOOST_AUTO_TEST_CASE(measured_out_of_order) {
  const Program program = lower(generate("1f1b", {2, 2}));
  const Costs costs = uniform(ms, ms, ms, ms / 4);
  Timeline timeline = simulate(program, costs);
  for (std::size_t i = 0; i < program.communication.size(); ++i) {
    if (program.communication[i].kind != Kind::receive_backward) continue;
    timeline.communication[i].start -= ms;
    timeline.communication[i].end -= ms;
  }
  const Trace trace(trace_of(program, costs, timeline));
  BOOST_TEST(trace.arrows.size() == 2U);
}

BOOST_AUTO_TEST_CASE(what_does_not_fit_the_program_is_refused) {
  const Program program = lower(generate("1f1b", {2, 2}));
  const Costs costs = uniform(ms, ms, ms);
  for (const Record record : {Record::ranks, Record::ops}) {
    BOOST_TEST(refusal([&] { static_cast<void>(trace_of(program, costs, simulate(program, costs, record))); }) ==
               "a trace needs the spans of all ops and messages; simulate with Record::spans");
  }
  const std::vector<RankPeak> peaks(1);
  const Timeline timeline = simulate(program, costs);
  const TracedRun run{.program = program, .costs = costs, .timeline = timeline, .peaks = peaks};
  std::ostringstream out;
  BOOST_TEST(refusal([&] { write_chrome_trace(out, std::span(&run, 1)); }) ==
             "peaks or devices are given for 1 ranks, but the program has 2; give one for each");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
