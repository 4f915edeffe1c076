#include "dualpipe/sim/trace/run_reader.h"

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "dualpipe/sim/trace/chrome_trace.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

namespace data = boost::unit_test::data;

constexpr Time ms = 1'000'000;

std::string trace_of(const Program& program, const Costs& costs, const Timeline& timeline) {
  std::ostringstream out;
  write_chrome_trace(out, program, costs, timeline);
  return out.str();
}

std::vector<TraceRun> read(const std::string& text) {
  std::istringstream in(text);
  return read_chrome_trace(in, "t.json");
}

// What reading a trace has to give back.
TraceRun run_of(const Program& program, const Costs& costs, const Timeline& timeline) {
  TraceRun run;
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const auto ops = program.schedule.rank(rank);
    const auto first =
        timeline.ops.begin() + static_cast<std::ptrdiff_t>(program.schedule.rank_begin[static_cast<std::size_t>(rank)]);
    const RankMemory memory = rank_memory(program, costs, rank);
    run.ranks.push_back(
        {{ops.begin(), ops.end()}, {first, first + std::ssize(ops)}, {memory.peak_activations, memory.peak}});
  }
  return run;
}

std::string error_of(const std::string& text) {
  return refusal([&] { static_cast<void>(read(text)); });
}

// A trace of one event more than a rank.
std::string with_event(const std::string& event) {
  return R"({"traceEvents":[{"ph":"M","pid":1,"name":"process_name",)"
         R"("args":{"name":"rank 00","rank":0,"peak_activations":1,"peak_memory_bytes":2}},)" +
         event + "]}";
}

// The same of a trace of lanes.
std::string with_lane(const std::string& event) {
  return R"({"traceEvents":[{"ph":"M","pid":9,"tid":7,"name":"thread_name",)"
         R"("args":{"name":"rank 00 compute","rank":0,"peak_activations":1,"peak_memory_bytes":2}},)" +
         event + "]}";
}

std::string op_event(const std::string& start, const std::string& duration, const std::string& op = "0F0") {
  return R"({"ph":"X","pid":1,"tid":1,"ts":)" + start + R"(,"dur":)" + duration +
         R"(,"cat":"compute","name":"F 0","args":{"op":")" + op + "\"}}";
}

struct Flaw {
  std::string text;
  std::string error;
};
std::ostream& operator<<(std::ostream& out, const Flaw& flaw) { return out << flaw.text; }

const std::string rank_1 =
    R"({"ph":"M","pid":2,"name":"process_name","args":{"rank":1,"peak_activations":0,"peak_memory_bytes":0}})";

const std::vector<Flaw> flaws = {
    {"", "t.json:1:1: syntax error while parsing value - unexpected end of input"},
    {"{", "t.json:1:2: syntax error while parsing object key - unexpected end of input"},
    {"7", "t.json: expected an object"},
    {"[]", "t.json: not a trace of dualpipe-sim or dualpipe-run: none of its lanes is a rank"},
    {"{}", "t.json: \"traceEvents\" is missing"},
    {R"({"traceEvents": 1})", "t.json: \"traceEvents\" is not a list"},
    {R"({"traceEvents": {}})", "t.json: \"traceEvents\" is not a list"},
    {R"({"traceEvents": [], "traceEvents": []})", "t.json: \"traceEvents\" is there twice"},
    {R"({"traceEvents": [[]]})", "t.json: traceEvents[0]: expected an event, not a list"},
    {R"({"traceEvents": [{}, 1]})", "t.json: traceEvents[1]: expected an event"},
    {R"({"traceEvents": []})", "not a trace of dualpipe-sim or dualpipe-run: none of its lanes is a rank"},
    // PyTorch's profiler.
    {R"({"schemaVersion": 1, "deviceProperties": [{"id": 0}], "traceEvents": [
        {"ph": "X", "cat": "cpu_op", "name": "aten::add", "pid": 77, "tid": 77, "ts": 5043032597219.918, "dur": 5.11,
         "args": {"External id": 1, "Input Dims": [[2, 3], []]}}], "traceName": "trace.json"})",
     "not a trace of dualpipe-sim or dualpipe-run: none of its lanes is a rank"},
    {R"({"traceEvents": [{"ph": "X"}]})", "none of its lanes is a rank"},
    {with_event(R"({"ph":"X","pid":2,"ts":1,"dur":1,"cat":"compute"},)" + rank_1),
     "t.json: traceEvents[2]: rank 1 is named after its first slice"},
    {with_event(R"({"ph":"M","pid":1,"ph":"M"})"), "t.json: traceEvents[1].ph: is there twice"},
    {with_event(R"({"ph":"M","pid":2,"name":"process_name","args":{"rank":0}})"), "rank 0 is there twice"},
    {with_event(R"({"ph":"M","pid":1,"name":"process_name","args":{"rank":1}})"),
     "t.json: traceEvents[1].pid: is that of another rank"},
    {with_event(R"({"ph":"M","name":"process_name","args":{"rank":1}})"), "traceEvents[1].pid: is missing"},
    {with_event(R"({"ph":"M","pid":9,"tid":1,"name":"thread_name","args":{"rank":0}})"), "rank 0 is there twice"},
    {with_lane(R"({"ph":"M","pid":9,"tid":7,"name":"thread_name","args":{"rank":1}})"),
     "t.json: traceEvents[1].tid: is that of another rank"},
    {with_lane(R"({"ph":"X","pid":9,"tid":8,"ts":1,"dur":1,"cat":"compute"},)"
               R"({"ph":"M","pid":9,"tid":8,"name":"thread_name","args":{"rank":1}})"),
     "t.json: traceEvents[2]: rank 1 is named after its first slice"},
    {with_event(R"({"ph":"M","pid":2,"name":"process_name","args":{"rank":1}})"),
     "traceEvents[1].args.peak_activations: is missing"},
    {with_event(R"({"ph":"M","pid":2,"name":"process_name","args":{"rank":65535}})"),
     "traceEvents[1].args.rank: expected a whole number from 0 to 65534, not '65535'"},
    {with_event(R"({"ph":"M","pid":2,"name":"process_name","args":{"rank":"1"}})"),
     "traceEvents[1].args.rank: expected a whole number from 0 to 65534, not '1'"},
    {with_event(R"({"ph":"M","pid":2,"name":"process_name","args":{"rank":1,"run":3}})"),
     "traceEvents[1].args.run: expected a string, not a number"},
    {R"({"traceEvents": [)" + rank_1 + "]}", "t.json: rank 0 is missing"},
    {with_event(op_event("\"1\"", "1")), "traceEvents[1].ts: expected a number of microseconds, not '\"1\"'"},
    {with_event(op_event("99999999999999999999", "1")), "traceEvents[1].ts: more than 73 years"},
    {with_event(op_event("9000000000000000", "1")), "traceEvents[1].ts: more than 73 years"},
    {with_event(op_event("2305843009213693", "0.953")), "traceEvents[1].dur: ends after more than 73 years"},
    {with_event(op_event("1", "1e999")), "traceEvents[1].dur: more than 73 years"},
    {with_event(op_event("1", "-0.001")), "traceEvents[1].dur: a slice cannot end before it starts"},
    {with_event(op_event("1", "1", "0X0")), "traceEvents[1].args.op: "},
    {with_event(op_event("1", "1", "0SEND_F0")), "traceEvents[1].args.op: 0SEND_F0 is not computed"},
    {with_event(R"({"ph":"X","pid":1,"ts":1,"dur":1,"cat":"compute"})"), "traceEvents[1].args.op: is missing"},
    {with_event(R"({"ph":"X","pid":1,"dur":1,"cat":"compute","args":{"op":"0F0"}})"), "traceEvents[1].ts: is missing"},
    {with_event(op_event("1", "1") + "," + op_event("1.999", "1", "0B0")),
     "traceEvents[2].ts: 0B0 starts before 0F0 has ended"},
    {R"({"traceEvents":[],"x":)" + std::string(100, '['), "t.json: nested too deeply"},
    {R"({"traceEvents":[],"x":")" + std::string(100'000, 'a'), "unexpected end of input"},
    {std::string("{\"x\0\"", 5), "t.json:1: a NUL byte"},
};

}  // namespace

BOOST_AUTO_TEST_SUITE(trace_run_reader)

// Every family, under every model of communication, with random durations, some of them 0.
BOOST_AUTO_TEST_CASE(what_is_written_is_read_back) {
  Random random(31);
  for (const Case& each : small_cases(3, 6)) {
    const Program program = lower(generate(each.family, each.shape));
    for (const auto model : {CommunicationModel::latency, CommunicationModel::links, CommunicationModel::stream}) {
      if (find_deadlock(program, model)) continue;
      const Costs costs = random_costs(random, program.schedule.placement, model, random.one_in(3));
      const Timeline timeline = simulate(program, costs);
      BOOST_TEST_CONTEXT(each << " " << model) {
        const auto runs = read(trace_of(program, costs, timeline));
        BOOST_TEST(runs.size() == 1U);
        BOOST_TEST((runs[0] == run_of(program, costs, timeline)));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(times_are_exact_up_to_years) {
  const Program program = lower(generate("gpipe", {1, 1}));
  const Costs costs = uniform(1, 1, 1);
  Timeline timeline = simulate(program, costs);
  for (const Time start : {Time{-1'234'567}, Time{-1}, Time{0}, Time{999}, Time{1'999'999'999'999'999'999}}) {
    timeline.ops = {{start, start + 7}, {start + 7, start + 1'000'007}};
    BOOST_TEST(read(trace_of(program, costs, timeline))[0].ranks[0].spans == timeline.ops,
               boost::test_tools::per_element());
  }
}

BOOST_AUTO_TEST_CASE(a_plan_and_its_measured_run) {
  const Program program = lower(generate("dualpipe", {4, 8}));
  const Costs costs = uniform(ms, ms, ms, ms / 4);
  const Timeline timeline = simulate(program, costs);
  Timeline in_parts = timeline;
  for (std::size_t i = 0; i < timeline.ops.size(); ++i) {
    const Op op = program.schedule.ops[i];
    in_parts.parts.push_back({op, PartSpan::Lane::compute, "attention", timeline.ops[i]});
    in_parts.parts.push_back({op, PartSpan::Lane::exchange, "dispatch", timeline.ops[i]});
  }
  const std::vector<RankPeak> peaks = {{1, 10}, {2, 20}, {3, 30}, {4, 40}};
  const std::vector<std::string> devices(4, "a device");
  const std::vector<TracedRun> written{
      {program, costs, timeline, "planned"},
      {program, costs, in_parts, "measured", peaks, devices, TraceArgs().add("dtype", "any")}};
  std::ostringstream out;
  write_chrome_trace(out, written);
  const auto runs = read(out.str());
  BOOST_TEST(runs.size() == 2U);
  BOOST_TEST(runs[0].label == "planned");
  BOOST_TEST(runs[1].label == "measured");
  BOOST_TEST((runs[0].ranks == run_of(program, costs, timeline).ranks));
  for (std::size_t rank = 0; rank < peaks.size(); ++rank) {
    BOOST_TEST((runs[1].ranks[rank].peak == peaks[rank]));
    BOOST_TEST((runs[1].ranks[rank].spans == runs[0].ranks[rank].spans));
  }
}

// Traces of old had a process for each rank, all of whose compute slices were its ops.
BOOST_AUTO_TEST_CASE(a_trace_with_a_process_for_each_rank) {
  const std::string text = R"({"traceEvents":[
{"ph":"M","pid":1002,"name":"process_name","args":{"name":"rank 00 planned","rank":0,"run":"planned",)"
                           R"("peak_activations":1,"peak_memory_bytes":3}},
{"ph":"M","pid":1002,"tid":1,"name":"thread_name","args":{"name":"compute"}},
{"ph":"X","pid":1002,"tid":1,"ts":0.000,"dur":2.000,"cat":"compute","name":"F 0","args":{"op":"0F0"}},
{"ph":"X","pid":1002,"tid":1,"ts":2.000,"dur":3.000,"cat":"compute","name":"B 0","args":{"op":"0B0"}},
{"ph":"M","pid":1000,"name":"process_name","args":{"name":"rank 00 measured","rank":0,"run":"measured",)"
                           R"("peak_activations":1,"peak_memory_bytes":4}},
{"ph":"X","pid":1000,"tid":1,"ts":0.000,"dur":2.500,"cat":"compute","name":"F 0","args":{"op":"0F0"}},
{"ph":"X","pid":1000,"tid":2,"ts":0.000,"dur":1.000,"cat":"part","name":"attention 0F0","args":{"op":"0F0"}},
{"ph":"X","pid":1000,"tid":1,"ts":2.500,"dur":3.000,"cat":"compute","name":"B 0","args":{"op":"0B0"}}
]})";
  const std::vector<Op> ops{{0, 0, Kind::forward}, {0, 0, Kind::backward}};
  const std::vector<TraceRun> expected{{"planned", {{ops, {{0, 2'000}, {2'000, 5'000}}, {1, 3}}}},
                                       {"measured", {{ops, {{0, 2'500}, {2'500, 5'500}}, {1, 4}}}}};
  BOOST_TEST((read(text) == expected));
}

// Other programs may write the file anew, and add to it.
BOOST_AUTO_TEST_CASE(layout_and_additions_do_not_matter) {
  const Program program = lower(generate("dualpipev", {2, 4}));
  const Costs costs = uniform(1'234'567, ms, ms, 1'500);
  const std::string text = trace_of(program, costs, simulate(program, costs));
  auto document = nlohmann::json::parse(text);
  document["metadata"] = {{"clock", {1, {{"nested", true}}}}};
  document["traceEvents"].push_back({{"ph", "i"}, {"pid", "any"}, {"ts", 1e300}, {"args", {{"op", {1, 2}}}}});
  BOOST_TEST((read(document.dump(2)) == read(text)));
}

// A trace that was merged with that of another program, whose events come before, among and after ours, in any form.
BOOST_AUTO_TEST_CASE(other_processes_and_events_are_stepped_over) {
  const Program program = lower(generate("dualpipe", {4, 8}));
  const Costs costs = uniform(1'234'567, ms, ms, 1'500);
  const std::string text = trace_of(program, costs, simulate(program, costs));
  const auto ours = nlohmann::json::parse(text);
  const auto others = nlohmann::json::parse(R"([
    {"ph":"M","pid":7,"name":"process_name","args":{"name":"python"}},
    {"ph":"X","cat":"compute","name":"matmul","pid":7,"tid":1,"ts":1.23456,"dur":0.5},
    {"ph":"X","cat":"kernel","name":"ampere_sgemm","pid":"0","tid":"stream 7","ts":3e2,"dur":1,"args":{"grid":[1,2,3]}},
    {"ph":"X","cat":"python","name":"step","pid":1000,"tid":99,"ts":-5,"dur":1e9},
    {"ph":"B","ts":"soon"}, {"ph":"Ω"}, {"ph":["X"]}, {}])");
  auto merged = nlohmann::json::array();
  for (std::size_t i = 0; i < ours["traceEvents"].size(); ++i) {
    merged.push_back(others[i % others.size()]);
    merged.push_back(ours["traceEvents"][i]);
  }
  BOOST_TEST((read(merged.dump()) == read(text)));
  BOOST_TEST((read(nlohmann::json{{"displayTimeUnit", "ns"}, {"traceEvents", merged}}.dump()) == read(text)));
}

BOOST_AUTO_TEST_CASE(a_file_is_loaded) {
  const Program program = lower(generate("1f1b", {2, 4}));
  const Costs costs = uniform(ms, ms, ms);
  const std::string text = trace_of(program, costs, simulate(program, costs));
  const Scratch scratch;
  std::ofstream(scratch / "t.json") << text;
  BOOST_TEST((load_chrome_trace(scratch / "t.json") == read(text)));
  BOOST_TEST(refusal([&] { static_cast<void>(load_chrome_trace(scratch / "none")); }) ==
             (scratch / "none") + ": cannot be opened: No such file or directory");
}

BOOST_DATA_TEST_CASE(an_error_names_file_and_place, data::make(flaws), flaw) {
  const std::string error = error_of(flaw.text);
  BOOST_TEST(error.find(flaw.error) != std::string::npos, "\"" << error << "\" lacks: " << flaw.error);
  BOOST_TEST(error.find("t.json:") == 0U);
}

BOOST_AUTO_TEST_CASE(a_trace_that_is_cut_off_is_an_error) {
  const Program program = lower(generate("dualpipe", {2, 4}));
  const Costs costs = uniform(ms, ms, ms, ms / 3);
  const std::string text = trace_of(program, costs, simulate(program, costs));
  for (std::size_t size = 0; size + 2 < text.size(); ++size) {  // without "}\n"
    const std::string error = error_of(text.substr(0, size));
    if (error.find("t.json:") != 0) BOOST_ERROR("no error after " << size << " bytes");
  }
}

BOOST_AUTO_TEST_CASE(a_trace_without_all_ranks_is_told_so) {
  const Program program = lower(generate("1f1b", {4, 8}));
  const Costs costs = uniform(ms, ms, ms);
  TraceFilter filter;
  filter.first_rank = 2;
  std::ostringstream out;
  write_chrome_trace(out, program, costs, simulate(program, costs), filter);
  BOOST_TEST(error_of(out.str()) ==
             "t.json: rank 0 is missing; a trace that is read back has all ranks (leave out --trace-ranks)");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
