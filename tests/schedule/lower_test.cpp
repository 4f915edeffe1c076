// What lower() adds, word for word on small shapes and by its rules on all.
#include "dualpipe/sim/schedule/lower.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/csv.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

constexpr auto models = {CommunicationModel::latency, CommunicationModel::links, CommunicationModel::stream};

std::vector<std::string> lines_of(const Program& program) {
  std::stringstream text;
  write_csv(text, program);
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

// The same ops and messages in the same slots and batches; programs written down as text have no name.
bool same(Program program, const Program& expected) {
  program.schedule.name = expected.schedule.name;
  return program == expected;
}

Op alone(Op op) {
  op.with_next = false;
  return op;
}

bool trains(const Schedule& schedule) {
  return std::ranges::any_of(schedule.ops, [](Op op) { return op.kind != Kind::forward; });
}

// Each message is sent once and received once, where a chain goes from one rank to another.
void check_messages_match(const Program& program) {
  const Placement& placement = program.schedule.placement;
  std::set<Op> sends, receives;
  for (const Op message : program.communication) {
    if (is_send(message.kind)) BOOST_TEST(sends.insert(alone(message)).second, "twice: " << message);
    if (is_receive(message.kind)) BOOST_TEST(receives.insert(alone(message)).second, "twice: " << message);
  }
  for (const Op send : sends) BOOST_TEST(receives.contains(peer_of(send, placement)), "never received: " << send);
  std::size_t crossings = 0;
  for (int stage = 0; stage < placement.stages(); ++stage) {
    const auto next = placement.next(stage);
    const auto rank_of = [&](int s) { return placement.rank_of[static_cast<std::size_t>(s)]; };
    if (next && rank_of(*next) != rank_of(stage)) ++crossings;
  }
  const std::size_t expected = crossings * program.schedule.micro_batches * (trains(program.schedule) ? 2 : 1);
  BOOST_TEST(sends.size() == expected);
  BOOST_TEST(receives.size() == expected);
}

// A send is made by the unit of ops right before its slot.
void check_sends_follow_their_ops(const Program& program, int rank) {
  const auto ops = program.schedule.rank(rank);
  for (std::size_t begin = 0, end = 0; begin < ops.size(); begin = end) {
    end = begin + unit_size(ops.subspan(begin));
    const auto unit = ops.subspan(begin, end - begin);
    if (end - begin == 2) BOOST_TEST(program.slot(rank, begin + 1).empty());
    for (const Op message : program.slot(rank, end)) {
      if (!is_send(message.kind)) continue;
      BOOST_TEST(std::ranges::any_of(unit,
                                     [&](Op op) {
                                       return op.stage == message.stage && op.micro_batch == message.micro_batch &&
                                              (message.kind == Kind::send_forward ? op.kind == Kind::forward
                                                                                  : is_backward_half(op.kind));
                                     }),
                 message << " does not follow its op");
    }
  }
  for (const Op message : program.slot(rank, 0)) BOOST_TEST(is_receive(message.kind));
}

// The messages of a slot are one batch; what follows it are reductions, each alone.
void check_batches(const Program& program, int rank) {
  for (std::size_t position = 0; position <= program.schedule.rank(rank).size(); ++position) {
    const auto slot = program.slot(rank, position);
    const auto reductions = std::ranges::find(slot, Kind::reduce_gradients, &Op::kind);
    for (auto message = slot.begin(); message != slot.end(); ++message) {
      BOOST_TEST((message->kind == Kind::reduce_gradients) == (message >= reductions));
      BOOST_TEST(message->with_next == (message + 1 < reductions));
    }
  }
}

// Where a stage has its last W or B, by stage; of stages that share their weights.
std::map<std::uint16_t, std::size_t> completions(const Schedule& schedule, int rank) {
  std::map<std::uint16_t, std::size_t> slots;
  const auto ops = schedule.rank(rank);
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const bool makes_gradients = ops[i].kind == Kind::backward || ops[i].kind == Kind::weight_gradient;
    const auto& weights = schedule.placement.weights_of;
    if (makes_gradients && std::ranges::count(weights, weights[ops[i].stage]) > 1) slots[ops[i].stage] = i + 1;
  }
  return slots;
}

std::map<std::uint16_t, std::size_t> reductions(const Program& program, int rank) {
  std::map<std::uint16_t, std::size_t> slots;
  for (std::size_t position = 0; position <= program.schedule.rank(rank).size(); ++position) {
    for (const Op message : program.slot(rank, position)) {
      if (message.kind != Kind::reduce_gradients) continue;
      BOOST_TEST(slots.emplace(message.stage, position).second, "twice: " << message);
    }
  }
  return slots;
}

void check_messages(const Program& program) {
  BOOST_TEST(validate(program).empty());
  check_messages_match(program);
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    check_sends_follow_their_ops(program, rank);
    check_batches(program, rank);
  }
}

// Also that each reduction comes as early as it can: so it does wherever ranks complete weights in one order.
void check_rules(const Program& program) {
  check_messages(program);
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    BOOST_TEST((reductions(program, rank) == completions(program.schedule, rank)));
  }
}

// lower_checked() and find_deadlock() agree. Returns whether the schedule hangs.
bool check_verdict(const Schedule& schedule) {
  const auto [program, completes] = lower_checked(schedule);
  BOOST_TEST((program == lower(schedule)));
  BOOST_TEST((program.schedule == schedule));
  for (const CommunicationModel model : models) {
    BOOST_TEST(find_deadlock(program, model).has_value() != completes, model);
  }
  return !completes;
}

// Calls `visit` with the schedule after each exchange of two neighbouring units of a rank that leaves it valid.
template <typename Visit>
void for_each_exchange(const Schedule& schedule, const Visit& visit) {
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    const auto ops = schedule.rank(rank);
    std::size_t middle = 0;
    for (std::size_t begin = 0; begin + unit_size(ops.subspan(begin)) < ops.size(); begin = middle) {
      middle = begin + unit_size(ops.subspan(begin));
      const std::size_t end = middle + unit_size(ops.subspan(middle));
      Schedule changed = schedule;
      const auto first = changed.ops.begin() + (ops.data() - schedule.ops.data());
      std::rotate(first + static_cast<std::ptrdiff_t>(begin), first + static_cast<std::ptrdiff_t>(middle),
                  first + static_cast<std::ptrdiff_t>(end));
      if (validate(changed).empty()) visit(changed);
    }
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(schedule_lower)

// With F = 1 and B = 2 the run that places the receives is:
//
//   time    0    1    2    3    4    5    6    7    8    9    10   11   12   13
//   rank 0  0F0  0F1  0F2                      0B0       0B1       …
//   rank 1       1F0  1F1            1B0       1F2  1B1       …
//   rank 2            2F0  2B0       2F1  2B1       2F2  …
//
// So 1RECV_F2, sent at 3, stands before 1B0, long before its op; 1RECV_B1 and 1SEND_F2 both come at 8, in one batch.
BOOST_AUTO_TEST_CASE(one_f_one_b) {
  const Program program = lower(generate("1f1b", {3, 3, 1}));
  const std::vector<std::string> expected{
      "0F0,0SEND_F0,0F1,0SEND_F1,0F2,0SEND_F2,0RECV_B0,0B0,0RECV_B1,0B1,0RECV_B2,0B2",
      "1RECV_F0,1F0,1SEND_F0,1RECV_F1,1F1,1SEND_F1,1RECV_F2,1RECV_B0,1B0,1SEND_B0,1F2,1RECV_B1,1SEND_F2,1B1,1SEND_B1,"
      "1RECV_B2,1B2,1SEND_B2",
      "2RECV_F0,2F0,2RECV_F1,2B0,2SEND_B0,2F1,2B1,2SEND_B1,2RECV_F2,2F2,2B2,2SEND_B2"};
  BOOST_TEST(lines_of(program) == expected, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(batches_of_dualpipe) {
  const Program expected = program_of(
      two_way(2), {"0F0 [0SEND_F0 3RECV_F0] 3F0 0F1 [0SEND_F1 3RECV_F1] 3B0 [3SEND_B0 0RECV_B0] (3F1;0B0)OVERLAP_F_B "
                   "3B1 [3SEND_B1 0RECV_B1] 3REDUCE_GRAD 0I1 0W1 0REDUCE_GRAD",
                   "2F0 [1RECV_F0 2SEND_F0] 1F0 2F1 [1RECV_F1 2SEND_F1] 1B0 [2RECV_B0 1SEND_B0] (1F1;2B0)OVERLAP_F_B "
                   "1B1 [2RECV_B1 1SEND_B1] 1REDUCE_GRAD 2I1 2W1 2REDUCE_GRAD"});
  BOOST_TEST(same(lower(generate("dualpipe", {2, 4, 1})), expected));
}

BOOST_AUTO_TEST_CASE(dualpipe_on_four_ranks) {
  const auto lines = lines_of(lower(generate("dualpipe", {4, 8, 1})));
  BOOST_TEST_REQUIRE(lines.size() == 4U);
  BOOST_TEST(lines[0] ==
             "0F0,0SEND_F0,0F1,0SEND_F1,0F2,7RECV_F0,0SEND_F2,7F0,7I0,7RECV_F1,7SEND_B0,7W0,7F1,(0F3;7B1)OVERLAP_F_B,"
             "0SEND_F3,7SEND_B1,7RECV_F2,0RECV_B0,(7F2;0B0)OVERLAP_F_B,7B2,7SEND_B2,7RECV_F3,0RECV_B1,"
             "(7F3;0B1)OVERLAP_F_B,7B3,0RECV_B2,7SEND_B3,7REDUCE_GRAD,0I2,0W2,0RECV_B3,0I3,0W3,0REDUCE_GRAD");
  BOOST_TEST(lines[3] ==
             "4F0,4SEND_F0,4F1,4SEND_F1,4F2,3RECV_F0,4SEND_F2,3F0,3I0,3RECV_F1,3SEND_B0,3W0,3F1,(4F3;3B1)OVERLAP_F_B,"
             "4SEND_F3,3SEND_B1,3RECV_F2,4RECV_B0,(3F2;4B0)OVERLAP_F_B,3B2,3SEND_B2,3RECV_F3,4RECV_B1,"
             "(3F3;4B1)OVERLAP_F_B,3B3,4RECV_B2,3SEND_B3,3REDUCE_GRAD,4I2,4W2,4RECV_B3,4I3,4W3,4REDUCE_GRAD");
}

BOOST_AUTO_TEST_CASE(neighbours_on_one_rank_exchange_nothing) {
  BOOST_TEST(lower(generate("1f1b", {1, 4, 1})).communication.empty());
  BOOST_TEST(lower(generate("interleaved", {1, 2, 3})).communication.empty());
  const Program v = lower(schedule_of(v_shape(2), {"0F0 3F0 3B0 0B0", "1F0 2F0 2B0 1B0"}));
  BOOST_TEST(same(v, program_of(v_shape(2), {"0F0 [0SEND_F0 3RECV_F0] 3F0 3B0 [3SEND_B0 0RECV_B0] 0B0",
                                             "1RECV_F0 1F0 2F0 [2SEND_F0 2RECV_B0] 2B0 1B0 1SEND_B0"})));
}

// Rank 0 completes the weights of stages 0 and 2 first, rank 1 those of 1 and 3. Both reduce 0 and 2 first: else each
// would wait for the other.
BOOST_AUTO_TEST_CASE(reductions_come_in_one_order) {
  const Schedule schedule = schedule_of(two_way(2), {"0F0 3F0 3I0 0I0 0W0 3W0", "2F0 1F0 1I0 2I0 1W0 2W0"});
  const Program program = lower(schedule);
  using Slots = std::map<std::uint16_t, std::size_t>;
  BOOST_TEST((reductions(program, 0) == Slots{{0, 5}, {3, 6}}));
  BOOST_TEST((reductions(program, 1) == Slots{{2, 6}, {1, 6}}));
  BOOST_TEST((program.slot(1, 6)[0].stage == 2));
  check_messages(program);
  BOOST_TEST(!check_verdict(schedule));
}

// One rank holds both copies: nothing to wait for.
BOOST_AUTO_TEST_CASE(shared_weights_on_one_rank) {
  const Schedule schedule = schedule_of(two_way(1), {"0F0 1F0 1B0 0B0"});
  check_rules(lower(schedule));
  BOOST_TEST(!check_verdict(schedule));
}

BOOST_AUTO_TEST_CASE(the_rules_hold_for_every_family) {
  for (const Case& a_case : small_cases(6, 12)) {
    BOOST_TEST_CONTEXT(a_case) { check_rules(lower(generate(a_case.family, a_case.shape))); }
  }
}

// More micro-batches than a word of the table of what was sent has bits.
BOOST_AUTO_TEST_CASE(the_rules_hold_for_many_micro_batches) {
  for (const std::int64_t micro_batches : {63, 64, 65, 128, 129, 300}) {
    BOOST_TEST_CONTEXT(micro_batches << " micro-batches") {
      const Lowered lowered = lower_checked(generate("gpipe", {3, micro_batches, 1}));
      BOOST_TEST(lowered.completes);
      check_rules(lowered.program);
    }
  }
}

BOOST_AUTO_TEST_CASE(no_family_hangs) {
  for (const Case& a_case : small_cases(6, 12)) {
    BOOST_TEST_CONTEXT(a_case) { BOOST_TEST(!check_verdict(generate(a_case.family, a_case.shape))); }
  }
}

BOOST_AUTO_TEST_CASE(every_golden_lowers) {
  for (const Golden& golden : goldens()) {
    BOOST_TEST_CONTEXT(golden) {
      const Schedule schedule = read_schedule(golden);
      BOOST_TEST(!check_verdict(schedule));
      check_rules(lower(schedule));
    }
  }
}

BOOST_AUTO_TEST_CASE(forward_only) {
  for (const Placement& placement : {straight(3, 1), straight(2, 2), v_shape(2), two_way(3)}) {
    std::vector<std::string> ranks(static_cast<std::size_t>(placement.ranks));
    for (int micro_batch = 0; micro_batch < 3; ++micro_batch) {
      for (int stage = 0; stage < placement.stages(); ++stage) {
        const std::size_t rank = placement.rank_of[static_cast<std::size_t>(stage)];
        ranks[rank] += " " + std::to_string(stage) + "F" + std::to_string(micro_batch);
      }
    }
    const Schedule schedule = schedule_of(placement, ranks);
    const Program program = lower(schedule);
    check_rules(program);
    BOOST_TEST(std::ranges::none_of(program.communication, [](Op op) {
      return op.kind == Kind::send_backward || op.kind == Kind::receive_backward || op.kind == Kind::reduce_gradients;
    }));
    BOOST_TEST(!check_verdict(schedule));
  }
}

// Rank 1 wants both activations before it gives a gradient, and rank 0 the first gradient before it makes the second
// activation. The run ends at 0B0 and 1F1; what it did not come to is received right before its op.
BOOST_AUTO_TEST_CASE(a_schedule_that_hangs) {
  const Schedule schedule = schedule_of(straight(2, 1), {"0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"});
  BOOST_TEST(check_verdict(schedule));
  const Program program = lower(schedule);
  BOOST_TEST(same(program, program_of(straight(2, 1), {"0F0 [0SEND_F0 0RECV_B0] 0B0 0F1 [0SEND_F1 0RECV_B1] 0B1",
                                                       "1RECV_F0 1F0 1RECV_F1 1F1 1B0 1SEND_B0 1B1 1SEND_B1"})));
  check_rules(program);
}

// Neighbours exchanged: many of these hang, and all are told apart.
BOOST_AUTO_TEST_CASE(the_verdict_is_find_deadlocks) {
  std::size_t hanging = 0;
  std::size_t completing = 0;
  for (const Case& a_case : small_cases(4, 8)) {
    BOOST_TEST_CONTEXT(a_case) {
      for_each_exchange(generate(a_case.family, a_case.shape), [&](const Schedule& schedule) {
        const bool hangs = check_verdict(schedule);
        ++(hangs ? hanging : completing);
        if (hangs) check_messages(lower(schedule));
      });
    }
  }
  BOOST_TEST(hanging > 100U);
  BOOST_TEST(completing > 1000U);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
