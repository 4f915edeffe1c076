// Programs that hang, and the cycle that find_deadlock() names for them.
#include "dualpipe/sim/simulate/deadlock.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>

#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/oracle.h"
#include "tests/support.h"
#include "tests/verdict.h"

namespace dualpipe::test {
namespace {

constexpr auto latency = CommunicationModel::latency;
constexpr auto links = CommunicationModel::links;
constexpr auto stream = CommunicationModel::stream;

constexpr auto compute = Wait::Lane::compute;
constexpr auto communication = Wait::Lane::communication;
constexpr auto reduction = Wait::Lane::reduction;

Op op(std::string_view text) { return parse_cell(text).first; }

// The cycle, begun at its link on the lowest rank: where it begins says nothing.
std::vector<Wait> cycle_of(const Program& program, CommunicationModel model) {
  const auto deadlock = find_deadlock(program, model);
  BOOST_TEST_REQUIRE(deadlock.has_value());
  BOOST_TEST(flaw_of(*deadlock, program) == "");
  auto cycle = deadlock->cycle;
  std::rotate(cycle.begin(), std::ranges::min_element(cycle, {}, &Wait::rank), cycle.end());
  return cycle;
}

void check_passes(const Program& program, CommunicationModel model) {
  BOOST_TEST(!find_deadlock(program, model).has_value(), model);
  Costs costs = uniform(3, 2, 2, 1);
  costs.model = model;
  BOOST_TEST(difference_from_oracle(program, costs) == "");
  BOOST_TEST(oracle::simulate(program, costs).has_value());
}

void check_hangs(const Program& program, CommunicationModel model, const std::vector<Wait>& expected) {
  BOOST_TEST_REQUIRE(validate(program).empty());
  BOOST_TEST((cycle_of(program, model) == expected),
             model << ":\n"
                   << to_text(*find_deadlock(program, model), program.schedule.placement));
  Costs costs = uniform(3, 2, 2, 1);
  costs.model = model;
  BOOST_TEST(!oracle::simulate(program, costs).has_value());
  BOOST_CHECK_EXCEPTION((void)simulate(program, costs), DeadlockError, [&](const DeadlockError& error) {
    const std::string text = to_text(error.deadlock(), program.schedule.placement);
    return flaw_of(error.deadlock(), program).empty() && std::string(error.what()).ends_with(text);
  });
}

}  // namespace

BOOST_AUTO_TEST_SUITE(simulate_deadlock)

// Rank 1 wants both activations before it gives the first gradient, and rank 0 the first gradient before it makes the
// second activation.
BOOST_AUTO_TEST_CASE(two_ranks_wait_for_each_other) {
  const Program program = lower(schedule_of(straight(2, 1), {"0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"}));
  for (const CommunicationModel model : {latency, links}) {
    check_hangs(program, model, {{compute, 0, 1, op("0B0"), op("1B0")}, {compute, 1, 1, op("1F1"), op("0F1")}});
  }
  BOOST_TEST(to_text(*find_deadlock(program, latency), program.schedule.placement) ==
             "rank 0 cannot run 0B0 (op 1): it waits for 1B0 on rank 1\n"
             "rank 1 cannot run 1F1 (op 1): it waits for 0F1 on rank 0\n");
  BOOST_TEST(find_deadlock(program, stream).has_value());
}

// Rank 0 takes micro-batch 1 through its second chunk before it has begun it.
BOOST_AUTO_TEST_CASE(three_ranks_in_a_ring) {
  const Program program = lower(schedule_of(straight(3, 2), {"0F0 3F1 0F1 3F0", "1F0 1F1 4F0 4F1", "2F0 2F1 5F0 5F1"}));
  check_hangs(program, latency,
              {{compute, 0, 1, op("3F1"), op("2F1")},
               {compute, 2, 1, op("2F1"), op("1F1")},
               {compute, 1, 1, op("1F1"), op("0F1")}});
}

// The backward of a pair is what it waits for: 0B0 needs 1B0, and that the second forward.
BOOST_AUTO_TEST_CASE(a_pair_in_the_cycle) {
  const Program program = lower(schedule_of(straight(2, 1), {"0F0 (0F1;0B0)OVERLAP_F_B 0B1", "1F0 1F1 1B0 1B1"}));
  check_hangs(program, latency, {{compute, 0, 2, op("0B0"), op("1B0")}, {compute, 1, 1, op("1F1"), op("0F1")}});
}

// Two chains in opposite directions. Each rank sends before it receives, and NCCL's send waits for its receive.
BOOST_AUTO_TEST_CASE(crossed_sends) {
  const Program apart = program_of(two_way(2), {"0F0 0SEND_F0 3RECV_F0 3F0", "2F0 2SEND_F0 1RECV_F0 1F0"});
  check_hangs(
      apart, stream,
      {{communication, 0, 1, op("0SEND_F0"), op("1RECV_F0")}, {communication, 1, 1, op("2SEND_F0"), op("3RECV_F0")}});
  BOOST_TEST(to_text(*find_deadlock(apart, stream), apart.schedule.placement) ==
             "rank 0 cannot end 0SEND_F0 (slot 1), nor start what is behind it: it waits for 1RECV_F0 on rank 1\n"
             "rank 1 cannot end 2SEND_F0 (slot 1), nor start what is behind it: it waits for 3RECV_F0 on rank 0\n");
  check_passes(apart, latency);
  check_passes(apart, links);
  // One batch each, and both go at once.
  const Program together = program_of(two_way(2), {"0F0 [0SEND_F0 3RECV_F0] 3F0", "2F0 [2SEND_F0 1RECV_F0] 1F0"});
  // Or one of them receives first.
  const Program in_turn = program_of(two_way(2), {"0F0 0SEND_F0 3RECV_F0 3F0", "2F0 1RECV_F0 2SEND_F0 1F0"});
  for (const CommunicationModel model : {latency, links, stream}) {
    check_passes(together, model);
    check_passes(in_turn, model);
  }
}

// 1F1B with one message at a time: rank 0 sends the next activation before it takes the gradient, which rank 1 sends
// before it takes the activation.
BOOST_AUTO_TEST_CASE(one_f_one_b_unbatched) {
  const Program apart = program_of(straight(2, 1), {"0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1",
                                                    "1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1"});
  check_hangs(
      apart, stream,
      {{communication, 0, 2, op("0SEND_F1"), op("1RECV_F1")}, {communication, 1, 2, op("1SEND_B0"), op("0RECV_B0")}});
  check_passes(apart, latency);
  check_passes(apart, links);
  check_passes(program_of(straight(2, 1), {"0F0 0SEND_F0 0F1 [0SEND_F1 0RECV_B0] 0B0 0RECV_B1 0B1",
                                           "1RECV_F0 1F0 1B0 [1SEND_B0 1RECV_F1] 1F1 1B1 1SEND_B1"}),
               stream);
}

// A send that stands behind an op which needs the answer to it. A message of `latency` leaves as soon as it is made.
BOOST_AUTO_TEST_CASE(late_send) {
  const Program program = program_of(straight(2, 1), {"0F0 0RECV_B0 0B0 0SEND_F0", "1RECV_F0 1F0 1B0 1SEND_B0"});
  check_passes(program, latency);
  check_hangs(program, links, {{compute, 0, 1, op("0B0"), op("1B0")}, {compute, 1, 0, op("1F0"), op("0SEND_F0")}});
  check_hangs(
      program, stream,
      {{communication, 0, 1, op("0RECV_B0"), op("1SEND_B0")}, {communication, 1, 0, op("1RECV_F0"), op("0SEND_F0")}});
}

// Rank 0 holds stages 0 and 3, rank 1 stages 2 and 1 with the same weights, and they reduce them in opposite order.
BOOST_AUTO_TEST_CASE(crossed_reductions) {
  const std::string first = "0F0 [0SEND_F0 3RECV_F0] 3F0 3B0 [3SEND_B0 0RECV_B0] 0B0 ";
  const std::string second = "2F0 [2SEND_F0 1RECV_F0] 1F0 1B0 [1SEND_B0 2RECV_B0] 2B0 ";
  const Program crossed =
      program_of(two_way(2), {first + "0REDUCE_GRAD 3REDUCE_GRAD", second + "1REDUCE_GRAD 2REDUCE_GRAD"});
  const Program alike =
      program_of(two_way(2), {first + "3REDUCE_GRAD 0REDUCE_GRAD", second + "1REDUCE_GRAD 2REDUCE_GRAD"});
  for (const CommunicationModel model : {latency, links, stream}) {
    check_hangs(crossed, model,
                {{reduction, 0, 4, op("0REDUCE_GRAD"), op("2REDUCE_GRAD")},
                 {reduction, 1, 4, op("1REDUCE_GRAD"), op("3REDUCE_GRAD")}});
    check_passes(alike, model);
  }
}

// Rank 0 holds two stages of one set of weights: only the last one's reduction, 2REDUCE_GRAD, meets the other rank.
BOOST_AUTO_TEST_CASE(two_stages_of_one_set_on_a_rank) {
  Placement placement = straight(2, 3);
  placement.weights_of = {0, 0, 0, 3, 3, 5};
  const Program program = program_of(
      placement,
      {"0F0 0SEND_F0 2RECV_F0 2F0 2SEND_F0 4RECV_F0 4F0 4SEND_F0 4RECV_B0 4B0 4SEND_B0 2RECV_B0 2B0 2SEND_B0 "
       "0RECV_B0 0B0 0REDUCE_GRAD 4REDUCE_GRAD 2REDUCE_GRAD",
       "1RECV_F0 1F0 1SEND_F0 3RECV_F0 3F0 3SEND_F0 5RECV_F0 5F0 5B0 5SEND_B0 3RECV_B0 3B0 3SEND_B0 1RECV_B0 "
       "1B0 1SEND_B0 1REDUCE_GRAD 3REDUCE_GRAD"});
  check_hangs(program, latency,
              {{reduction, 0, 6, op("4REDUCE_GRAD"), op("3REDUCE_GRAD")},
               {reduction, 1, 6, op("1REDUCE_GRAD"), op("2REDUCE_GRAD")}});
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
