// The simulator on the schedules of others, and against the figures that are known for them.
#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <sstream>

#include "dualpipe/sim/schedule/csv.h"
#include "dualpipe/sim/schedule/json.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

constexpr CommunicationModel models[] = {CommunicationModel::latency, CommunicationModel::links,
                                         CommunicationModel::stream};

// The violations, as text.
template <typename ScheduleOrProgram>
std::string violations_of(const ScheduleOrProgram& checked, const Placement& placement) {
  std::string text;
  for (const Violation& violation : validate(checked)) text += to_text(violation, placement) + "\n";
  return text;
}

// The text of a CSV as we write it: lines end in '\n', and idle cells are gone.
std::string without_idle(const std::string& csv) {
  std::string text;
  for (const char c : csv) {
    if (c == '\r') continue;
    const bool at_begin = text.empty() || text.back() == '\n';
    if (c == ',' && (at_begin || text.back() == ',')) continue;
    if (c == '\n' && at_begin) continue;
    if (c == '\n' && text.back() == ',') text.pop_back();
    text += c;
  }
  if (!text.empty() && text.back() != '\n') text += '\n';
  return text;
}

// Sends and receives of each rank, sorted.
std::vector<std::vector<std::string>> messages_of(const Program& program) {
  std::vector<std::vector<std::string>> ranks;
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    auto& messages = ranks.emplace_back();
    for (std::size_t i = 0; i <= program.schedule.rank(rank).size(); ++i) {
      for (const Op op : program.slot(rank, i)) {
        if (is_send(op.kind) || is_receive(op.kind)) messages.push_back(to_text(op));
      }
    }
    std::ranges::sort(messages);
  }
  return ranks;
}

std::vector<Golden> lowered_goldens() {
  std::vector<Golden> found;
  for (const Golden& golden : goldens()) {
    if (golden.lowered) found.push_back(golden);
  }
  return found;
}

// A row of zero_bubble/index.csv.
struct IndexRow {
  Golden golden;
  Time forward, input_gradient, weight_gradient, latency;
  Bytes forward_memory, input_memory, weight_memory;
  Time makespan, span;
  std::vector<std::string> peaks;

  friend std::ostream& operator<<(std::ostream& out, const IndexRow& row) { return out << row.golden; }
};

std::vector<IndexRow> index() {
  std::vector<IndexRow> rows;
  for (const auto& row : read_table("zero_bubble/index.csv")) {
    const auto number = [&](std::size_t column) { return std::stoll(row.at(column)); };
    IndexRow each{golden("zero_bubble/" + row.at(0)),
                  number(4),
                  number(5),
                  number(6),
                  number(7),
                  number(8),
                  number(9),
                  number(10),
                  number(16),
                  number(17),
                  {}};
    std::istringstream peaks(row.at(18));
    for (std::string peak; std::getline(peaks, peak, ';');) each.peaks.push_back(peak);
    rows.push_back(each);
  }
  return rows;
}

// DualPipe's makespan and the idle time of the first half of its ranks, for DeepSeek's order, without communication.
struct DualPipeFigures {
  int ranks, micro_batches;
  Time forward, input_gradient, weight_gradient, overlapped;
  bool release_early;
  Time makespan;
  std::vector<Time> idle;

  friend std::ostream& operator<<(std::ostream& out, const DualPipeFigures& row) {
    return out << row.ranks << " ranks, " << row.micro_batches << " micro-batches, F " << row.forward << " I "
               << row.input_gradient << " W " << row.weight_gradient << " F&B " << row.overlapped
               << (row.release_early ? ", released early" : "");
  }
};

const DualPipeFigures dualpipe_figures[] = {
    {4, 8, 1, 1, 1, 3, false, 26, {2, 2}},
    {4, 8, 1, 1, 1, 2, false, 22, {1, 1}},
    {4, 8, 2, 2, 1, 4, false, 41, {4, 4}},
    {4, 8, 4, 3, 2, 8, false, 77, {8, 8}},
    {8, 20, 1, 1, 1, 3, false, 66, {6, 6, 6, 6}},  // the figure in DeepSeek's README: 66 cells
    {8, 20, 1, 1, 1, 2, false, 52, {1, 2, 3, 3}},
    {8, 20, 2, 2, 1, 4, false, 101, {10, 11, 12, 12}},
    {8, 20, 4, 3, 2, 8, false, 193, {22, 23, 24, 24}},
    {16, 32, 1, 1, 1, 3, false, 110, {14, 14, 14, 14, 14, 14, 14, 14}},
    {16, 32, 1, 1, 1, 2, false, 88, {1, 2, 3, 4, 5, 6, 7, 7}},
    {16, 32, 2, 2, 1, 4, false, 173, {22, 23, 24, 25, 26, 27, 28, 28}},
    {16, 32, 4, 3, 2, 8, false, 329, {50, 51, 52, 53, 54, 55, 56, 56}},
    // Each op of a pair hands over as soon as it could alone: half the bubble.
    {8, 20, 1, 1, 1, 3, true, 63, {3, 3, 3, 3}},
};

}  // namespace

BOOST_AUTO_TEST_SUITE(simulate_golden)

BOOST_AUTO_TEST_CASE(all_files_are_there) {
  BOOST_TEST(goldens().size() == 162U);
  BOOST_TEST(lowered_goldens().size() == 18U);
  BOOST_TEST(index().size() == 108U);
}

BOOST_DATA_TEST_CASE(is_valid_and_runs, boost::unit_test::data::make(goldens()), golden) {
  const auto file = read(golden);
  BOOST_TEST(std::holds_alternative<Program>(file) == golden.lowered);
  const Program program = read_program(golden);
  const Placement& placement = program.schedule.placement;
  BOOST_TEST(program.schedule.ranks() == golden.ranks);
  BOOST_TEST(program.schedule.total_micro_batches() == static_cast<std::uint64_t>(golden.micro_batches));
  BOOST_TEST(violations_of(program.schedule, placement) == "");
  BOOST_TEST(violations_of(program, placement) == "");
  for (const CommunicationModel model : models) {
    const auto deadlock = find_deadlock(program, model);
    BOOST_TEST((deadlock ? to_text(*deadlock, placement) : "") == "");
    Costs costs = uniform(3, 2, 2, 1);
    costs.model = model;
    BOOST_TEST(simulate(program, costs).makespan() > 0);
  }
}

BOOST_DATA_TEST_CASE(comes_back_as_it_was, boost::unit_test::data::make(goldens()), golden) {
  const auto file = read(golden);
  std::ostringstream csv;
  std::stringstream json;
  std::visit([&](const auto& each) { write_csv(csv, each); }, file);
  std::visit([&](const auto& each) { write_json(json, each); }, file);
  BOOST_TEST(csv.str() == without_idle(text_of(golden.path)));
  BOOST_TEST((read_json(json, "json") == file));
}

// PyTorch lowers a schedule to the same messages as we do. Its order differs: its sweep takes every op to last equally
// long, and it issues one message at a time where we have batches. Neither blocks: is_valid_and_runs has PyTorch's
// order, and ours for every file.
BOOST_DATA_TEST_CASE(pytorch_lowers_to_the_same_messages, boost::unit_test::data::make(lowered_goldens()), lowered) {
  std::string twin = lowered.path;
  twin.erase(twin.rfind("_comms"), 6);
  const Program ours = lower(read_schedule(golden(twin)));
  const Program theirs = read_program(lowered);
  BOOST_TEST((ours.schedule.ops == theirs.schedule.ops));
  BOOST_TEST((messages_of(ours) == messages_of(theirs)));
}

BOOST_DATA_TEST_CASE(zero_bubble_index, boost::unit_test::data::make(index()), row) {
  const Program program = read_program(row.golden);
  Costs costs = uniform(row.forward, row.input_gradient, row.weight_gradient, row.latency);
  const Timeline timeline = simulate(program, costs);
  BOOST_TEST(timeline.makespan() == row.makespan);
  BOOST_TEST(timeline.span() == row.span);

  // mem_* are of a rank's whole share of the layers: with two stages on a rank, of two ops. Doubled, all is integer.
  const int stages = program.schedule.placement.stages() / program.schedule.ranks();
  BOOST_TEST_REQUIRE((row.forward_memory + row.input_memory + row.weight_memory == 0));
  costs.stages[0].activation = 2 * row.forward_memory / stages;
  costs.stages[0].weight_stash = -2 * row.weight_memory / stages;
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const auto peak = static_cast<double>(rank_memory(program, costs, rank).peak);
    const double in_activations = peak / static_cast<double>(2 * row.forward_memory);
    // The index has three decimals.
    BOOST_TEST(std::llround(in_activations * 1000) ==
               std::llround(std::stod(row.peaks.at(static_cast<std::size_t>(rank))) * 1000));
  }
}

BOOST_DATA_TEST_CASE(dualpipe_makespan_and_idle_time, boost::unit_test::data::make(dualpipe_figures), row) {
  const std::string name =
      "deepseek/dualpipe_" + std::to_string(row.ranks) + "ranks_" + std::to_string(row.micro_batches);
  Costs costs = uniform(row.forward, row.input_gradient, row.weight_gradient, 0, row.overlapped);
  costs.release_early = row.release_early;
  const Timeline timeline = simulate(read_program(golden(name + "mb.csv")), costs);
  BOOST_TEST(timeline.makespan() == row.makespan);
  for (int rank = 0; rank < row.ranks; ++rank) {
    const auto mirrored = static_cast<std::size_t>(std::min(rank, row.ranks - 1 - rank));
    BOOST_TEST(timeline.idle(rank) == row.idle.at(mirrored));
  }
}

BOOST_DATA_TEST_CASE(peak_activations, boost::unit_test::data::make(goldens()), golden) {
  const Program program = read_program(golden);
  for (int rank = 0; rank < golden.ranks; ++rank) {
    const int peak = rank_memory(program, uniform(1, 1, 1), rank).peak_activations;
    if (golden.kind == "1f1b") BOOST_TEST(peak == golden.ranks - rank);
    if (golden.kind == "gpipe") BOOST_TEST(peak == golden.micro_batches);
    if (golden.kind == "dualpipe") BOOST_TEST(peak == golden.ranks + 1);
    if (golden.kind == "dualpipev") BOOST_TEST(peak == 2 * golden.ranks + 1);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
