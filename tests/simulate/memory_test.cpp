// Memory by hand, and what the three views of it owe each other.
#include "dualpipe/sim/simulate/memory.h"

#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"

namespace dualpipe {

static std::ostream& operator<<(std::ostream& out, const MemoryPoint& point) {
  return out << point.time << ": " << point.bytes << " bytes, " << point.activations << " activations";
}
static bool operator==(const MemoryPoint& a, const MemoryPoint& b) {
  return a.time == b.time && a.bytes == b.bytes && a.activations == b.activations;
}

namespace test {
namespace {

StageCosts stage_memory(Bytes activation, Bytes weight_stash, Bytes message, Bytes parameters, Bytes gradients,
                        Bytes optimizer) {
  StageCosts stage = uniform(2, 2, 1).stages[0];
  stage.activation = activation;
  stage.weight_stash = weight_stash;
  stage.message = message;
  stage.parameters = parameters;
  stage.gradients = gradients;
  stage.optimizer = optimizer;
  return stage;
}

// Costs of one op, all stages alike, with nothing held all the time and nothing received.
Costs activations_only(Bytes activation, Bytes weight_stash) {
  Costs costs;
  costs.stages = {stage_memory(activation, weight_stash, 0, 0, 0, 0)};
  return costs;
}

std::string held_text(const Program& program, int rank, std::size_t position) {
  std::string text;
  for (const Op op : held_at(program, rank, position)) text += (text.empty() ? "" : " ") + to_text(op);
  return text;
}

Bytes workspace_at(const Program& program, const Costs& costs, int rank, std::size_t position) {
  const auto ops = program.schedule.rank(rank);
  const StageCosts& stage = costs.of(ops[position].stage);
  if (!ops[position].with_next) return stage.workspace(ops[position].kind);
  if (stage.overlapped_workspace) return *stage.overlapped_workspace;
  const bool is_last = !program.schedule.placement.next(ops[position].stage).has_value();
  const Bytes output = is_last ? 0 : std::min(stage.message, stage.forward_workspace);
  const Op backward = ops[position + 1];
  return std::max(stage.forward_workspace, output + costs.of(backward.stage).workspace(backward.kind));
}

// The three views agree: on the peaks, on when they are reached, on what holds them.
std::string disagreement(const Program& program, const Costs& costs) {
  const Timeline timeline = simulate(program, costs);
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const RankMemory memory = rank_memory(program, costs, rank);
    const auto points = memory_over_time(program, costs, timeline, rank);
    const auto name = "rank " + std::to_string(rank) + ": ";
    if (!std::ranges::is_sorted(points, {}, &MemoryPoint::time)) return name + "time runs backwards";
    if (std::ranges::max(points, {}, &MemoryPoint::bytes).bytes != memory.peak) return name + "another peak over time";
    if (std::ranges::max(points, {}, &MemoryPoint::activations).activations != memory.peak_activations) {
      return name + "other peak activations over time";
    }
    if (points.front().time != 0) return name + "nothing known at 0";
    if (points.back().bytes != memory.resident || points.back().activations != 0)
      return name + "something is left over";

    const auto bytes_of = [&](Op op) {
      return op.kind == Kind::forward ? costs.of(op.stage).held_activation() : costs.of(op.stage).weight_stash;
    };
    Bytes held = memory.resident + workspace_at(program, costs, rank, memory.peak_position);
    for (const Op op : held_at(program, rank, memory.peak_position)) held += bytes_of(op);
    // What is received is in no op's name.
    const bool receives = std::ranges::any_of(costs.stages, [](const StageCosts& stage) { return stage.message > 0; });
    if (receives ? held > memory.peak : held != memory.peak) return name + "the ops at the peak hold other bytes";
    const auto active = held_at(program, rank, memory.peak_activations_position);
    if (std::ranges::count(active, Kind::forward, &Op::kind) != memory.peak_activations) {
      return name + "other ops at the peak of activations";
    }
  }
  return {};
}

Costs without_messages(Costs costs) {
  for (StageCosts& stage : costs.stages) stage.message = 0;
  return costs;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(simulate_memory)

// 1F1B on 2 ranks. Stage 0: M_B 100, its output 10 bytes, 7 resident. Stage 1: M_B 70, 56 resident.
//
//   rank 0: 7 +100 F0 +100 F1 | +10 RECV_B0: 217 | B0 -110 | +10 RECV_B1 | B1 -110
//   rank 1: 56 | +10 RECV_F0 | F0 -10 +70: 126 | B0 -70 | +10 | F1 -10 +70: 126 again | B1 -70
BOOST_AUTO_TEST_CASE(one_f_one_b_by_hand) {
  const Program program = program_of(straight(2, 1), {"0F0 0SEND_F0 0F1 [0SEND_F1 0RECV_B0] 0B0 0RECV_B1 0B1",
                                                      "1RECV_F0 1F0 1B0 [1SEND_B0 1RECV_F1] 1F1 1B1 1SEND_B1"});
  Costs costs = uniform(2, 2, 1, 1);
  costs.stages = {stage_memory(100, 0, 10, 1, 2, 4), stage_memory(70, 0, 999, 8, 16, 32)};
  BOOST_TEST((rank_memory(program, costs, 0) == RankMemory{1, 7, 2, 1, 217, 2}));
  BOOST_TEST((rank_memory(program, costs, 1) == RankMemory{1, 56, 1, 0, 126, 0}));
  BOOST_TEST(held_text(program, 0, 0) == "0F0");
  BOOST_TEST(held_text(program, 0, 2) == "0F0 0F1");
  BOOST_TEST(held_text(program, 0, 3) == "0F1");
  BOOST_TEST(held_text(program, 1, 1) == "1F0");

  // Times as in simulate_oracle/by_hand: F0 3..5, B0 5..8, F1 8..10, B1 10..13 on rank 1.
  const Timeline timeline = simulate(program, costs);
  // An op releases and the slot behind it receives at one moment.
  const std::vector<MemoryPoint> rank_0{{0, 7, 0}, {0, 107, 1}, {2, 207, 2}, {4, 217, 2}, {12, 117, 1}, {17, 7, 0}};
  const std::vector<MemoryPoint> rank_1{{0, 56, 0}, {0, 66, 0}, {3, 126, 1}, {8, 66, 0}, {8, 126, 1}, {13, 56, 0}};
  BOOST_TEST(memory_over_time(program, costs, timeline, 0) == rank_0, boost::test_tools::per_element());
  BOOST_TEST(memory_over_time(program, costs, timeline, 1) == rank_1, boost::test_tools::per_element());
}

// M_B 100, M_W 40:  F0 100 | I0 -60 | F1 +100: 140 | W0 -40 | I1 -60 | W1 -40
BOOST_AUTO_TEST_CASE(split_backward) {
  const Program program = lower(schedule_of(straight(1, 1), {"0F0 0I0 0F1 0W0 0I1 0W1"}));
  BOOST_TEST((rank_memory(program, activations_only(100, 40), 0) == RankMemory{1, 0, 1, 0, 140, 2}));
  BOOST_TEST(held_text(program, 0, 1) == "0F0");
  BOOST_TEST(held_text(program, 0, 2) == "0I0 0F1");
  BOOST_TEST(held_text(program, 0, 3) == "0I0 0F1");
  BOOST_TEST(held_text(program, 0, 4) == "0F1");
  BOOST_TEST(held_text(program, 0, 5) == "0I1");
}

// M_B 100, M_W 40, workspaces F 5, I 90, W 70:  F0 105 | I0 100 + 90 | W0 40 + 70
BOOST_AUTO_TEST_CASE(an_op_holds_its_workspace_while_it_runs) {
  const Program program = lower(schedule_of(straight(1, 1), {"0F0 0I0 0W0"}));
  Costs costs = activations_only(100, 40);
  costs.stages[0].forward_workspace = 5;
  costs.stages[0].input_gradient_workspace = 90;
  costs.stages[0].weight_gradient_workspace = 70;
  BOOST_TEST((rank_memory(program, costs, 0) == RankMemory{1, 0, 1, 0, 190, 1}));
  const std::vector<MemoryPoint> points{{0, 0, 0},  {0, 105, 1}, {2, 100, 1}, {2, 190, 1},
                                        {4, 40, 0}, {4, 110, 0}, {5, 0, 0}};
  BOOST_TEST(memory_over_time(program, costs, simulate(program, costs), 0) == points, boost::test_tools::per_element());
}

// Stages 0 and 1 on one rank, M_B 5, message 3: what F0 makes is held until F1 starts, and is then part of its M_B; the
// gradient that B1 makes, until the end of B0.
//
//   F0 5 | +3 waits: 8 | F1 10 | B1 5 + 3 | B0 0
BOOST_AUTO_TEST_CASE(what_a_stage_of_the_same_rank_waits_for_is_held) {
  const Program program = lower(schedule_of(v_shape(1), {"0F0 1F0 1B0 0B0"}));
  Costs costs = activations_only(5, 0);
  costs.stages[0].message = 3;
  const std::vector<MemoryPoint> points{{0, 0, 0}, {0, 5, 1}, {2, 8, 1}, {2, 10, 2}, {7, 8, 1}, {10, 0, 0}};
  BOOST_TEST(memory_over_time(program, costs, simulate(program, costs), 0) == points, boost::test_tools::per_element());
}

// A pair runs its F and then its B, while the output of the F waits; or so much as is measured.
BOOST_AUTO_TEST_CASE(workspace_of_a_pair) {
  const Program program = lower(schedule_of(v_shape(1), {"0F0 1F0 (0F1;1B0)OVERLAP_F_B 1F1 0B0 1B1 0B1"}));
  const auto costs_with = [](Bytes forward, Bytes backward, std::optional<Bytes> overlapped) {
    Costs costs = activations_only(100, 0);
    costs.stages[0].message = 10;
    costs.stages.resize(2, costs.stages[0]);
    costs.stages[0].forward_workspace = forward;
    costs.stages[1].backward_workspace = backward;
    costs.stages[0].overlapped_workspace = overlapped;
    return costs;
  };
  const auto peak = [&](Bytes forward, Bytes backward, std::optional<Bytes> overlapped) {
    const RankMemory memory = rank_memory(program, costs_with(forward, backward, overlapped), 0);
    BOOST_TEST(memory.peak_position == 2U);
    return memory.peak;
  };
  BOOST_TEST(peak(70, 50, std::nullopt) == 370);
  BOOST_TEST(peak(70, 65, std::nullopt) == 375);
  BOOST_TEST(peak(70, 65, 300) == 600);

  // What B frees is there for F: less than before the pair and the activation of F together.
  const Costs interleaved = costs_with(70, 65, -30);
  const auto points = memory_over_time(program, interleaved, simulate(program, interleaved), 0);
  BOOST_TEST(std::ranges::count(points, 270, &MemoryPoint::bytes) == 1);
}

// Where W keeps more than the forward did, I makes it more: it is there from the end of I, and so at the op after.
BOOST_AUTO_TEST_CASE(weight_gradients_that_keep_more) {
  const Program program = lower(schedule_of(straight(1, 1), {"0F0 0I0 0W0"}));
  BOOST_TEST((rank_memory(program, activations_only(100, 150), 0) == RankMemory{1, 0, 1, 0, 150, 2}));
  BOOST_TEST(held_text(program, 0, 2) == "0I0");
}

// Both activations of a pair are there at once.
BOOST_AUTO_TEST_CASE(pair_holds_its_forward_before_its_backward_is_released) {
  const Program program = lower(schedule_of(v_shape(1), {"0F0 1F0 0F1 (1F1;1B0)OVERLAP_F_B 0B0 1B1 0B1"}));
  BOOST_TEST((rank_memory(program, activations_only(5, 0), 0) == RankMemory{2, 0, 4, 3, 20, 3}));
  BOOST_TEST(held_text(program, 0, 3) == "0F0 1F0 0F1 1F1");
  BOOST_TEST(held_text(program, 0, 4) == "0F0 1F0 0F1 1F1");
  BOOST_TEST(held_text(program, 0, 5) == "0F0 0F1 1F1");
}

// The published peaks: P - r of 1F1B, M of GPipe, PP + 1 on every rank of DualPipe and DualPipeV.
BOOST_AUTO_TEST_CASE(peak_activations_of_the_families) {
  const Costs costs = activations_only(1, 1);
  for (const Case& each : small_cases(6, 14)) {
    const Program program = lower(generate(each.family, each.shape));
    const std::int64_t ranks = each.shape.ranks;
    const std::int64_t micro_batches = each.shape.micro_batches;
    for (int rank = 0; rank < ranks; ++rank) {
      BOOST_TEST_CONTEXT(each << ", rank " << rank) {
        const std::int64_t peak = rank_memory(program, costs, rank).peak_activations;
        const auto bytes = rank_memory(program, costs, rank).peak;
        if (each.family == "gpipe") BOOST_TEST(peak == micro_batches);
        if (each.family == "looped-bfs") BOOST_TEST(peak == micro_batches * each.shape.chunks);
        if (each.family == "1f1b") BOOST_TEST(peak == std::min(micro_batches, ranks - rank));
        if (each.family == "zb1p") BOOST_TEST(bytes == std::min(micro_batches, ranks));
        if (each.family == "zb-h2") BOOST_TEST(bytes == std::min(micro_batches, 2 * ranks - 1));
        if (each.family == "dualpipe") BOOST_TEST(peak == ranks + 1);
        if (each.family == "dualpipev") BOOST_TEST(peak == 2 * ranks + 1);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(views_agree_on_small_shapes) {
  Random random(1);
  for (const Case& each : small_cases(4, 9)) {
    const Program program = lower(generate(each.family, each.shape));
    for (const auto model : {CommunicationModel::latency, CommunicationModel::links, CommunicationModel::stream}) {
      const Costs costs = random_costs(random, program.schedule.placement, model, true);
      BOOST_TEST_CONTEXT(each << ", " << model) {
        BOOST_TEST(disagreement(program, costs) == "");
        BOOST_TEST(disagreement(program, without_messages(costs)) == "");
      }
    }
  }
}

BOOST_DATA_TEST_CASE(views_agree_on_goldens, boost::unit_test::data::make(goldens()), golden) {
  Random random(2);
  const Program program = read_program(golden);
  const Costs costs = random_costs(random, program.schedule.placement, CommunicationModel::latency, true);
  BOOST_TEST(disagreement(program, costs) == "");
  BOOST_TEST(disagreement(program, without_messages(costs)) == "");
}

// More than 64 bits count is an error, not a number.
BOOST_AUTO_TEST_CASE(bytes_that_overflow_are_refused) {
  Costs costs = uniform(1, 2, 1);
  costs.stages[0].activation = bytes_max;
  const Program program = lower(generate("gpipe", {2, 20}));
  BOOST_CHECK_THROW((void)memory_of_ranks(program, costs), InputError);
  costs.stages[0].activation = bytes_max / 20;
  BOOST_TEST(memory_of_ranks(program, costs)[0].peak == bytes_max / 20 * 20);
  costs.stages.resize(2, costs.stages[0]);
  for (StageCosts& stage : costs.stages) stage.overlapped_workspace = 4 * (bytes_max / 5 * 5);
  BOOST_CHECK_THROW((void)memory_of_ranks(program, costs), InputError);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace test
}  // namespace dualpipe
