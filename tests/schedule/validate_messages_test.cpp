// The same of a program's messages: what breaks their rules, and what breaks none.
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "tests/schedule/violations.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

// A program whose messages can be moved about.
class Messages {
 public:
  explicit Messages(const Program& program) : schedule_(program.schedule) {
    for (int rank = 0; rank < schedule_.ranks(); ++rank) {
      for (std::size_t position = 0; position <= schedule_.rank(rank).size(); ++position) {
        const auto slot = program.slot(rank, position);
        slots_.emplace_back(slot.begin(), slot.end());
      }
    }
  }

  [[nodiscard]] std::vector<Op>& slot(int rank, std::size_t position) {
    return slots_[schedule_.rank_begin[static_cast<std::size_t>(rank)] + static_cast<std::size_t>(rank) + position];
  }

  [[nodiscard]] Program program() const {
    Program program{schedule_, {}, {0}};
    for (const std::vector<Op>& slot : slots_) {
      program.communication.insert(program.communication.end(), slot.begin(), slot.end());
      program.slot_begin.push_back(static_cast<std::uint32_t>(program.communication.size()));
    }
    return program;
  }

 private:
  Schedule schedule_;
  std::vector<std::vector<Op>> slots_;
};

// Calls `visit` with every message of a program: its rank, its slot, and where it stands in it.
void for_each_message(const Program& program, const std::function<void(int, std::size_t, std::size_t, Op)>& visit) {
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    for (std::size_t position = 0; position <= program.schedule.rank(rank).size(); ++position) {
      const auto slot = program.slot(rank, position);
      for (std::size_t i = 0; i < slot.size(); ++i) visit(rank, position, i, slot[i]);
    }
  }
}

Op alone(Op message) {
  message.with_next = false;
  return message;
}

// The op that makes or needs the message, as a position in the rank.
std::size_t position_of_op(const Schedule& schedule, int rank, Op message) {
  const bool of_forward = message.kind == Kind::send_forward || message.kind == Kind::receive_forward;
  const auto ops = schedule.rank(rank);
  const auto found = std::ranges::find_if(ops, [&](Op each) {
    return each.stage == message.stage && each.micro_batch == message.micro_batch &&
           (of_forward ? each.kind == Kind::forward : is_backward_half(each.kind));
  });
  return static_cast<std::size_t>(found - ops.begin());
}

}  // namespace

BOOST_AUTO_TEST_SUITE(schedule_validate_messages)

BOOST_AUTO_TEST_CASE(a_broken_schedule_says_nothing_of_its_messages) {
  check_violations(program_of(straight(2, 1), {"0F0 0SEND_F0 0SEND_F0", "1F0 1F0"}),
                   {violation(Rule::doubled, 1, 1, "1F0")});
}

BOOST_AUTO_TEST_CASE(message_unneeded) {
  check_violation(program_of(straight(2, 1), {"0RECV_F0 0F0 0SEND_F0", "1RECV_F0 1F0"}),
                  violation(Rule::message_unneeded, 0, 0, "0RECV_F0"),
                  "rank 0, slot 0, 0RECV_F0: is a message that no stage on another rank needs or makes");
  // Neighbours on one rank.
  check_violations(
      program_of(straight(1, 2), {"0F0 0SEND_F0 1RECV_F0 1F0"}),
      {violation(Rule::message_unneeded, 0, 1, "0SEND_F0"), violation(Rule::message_unneeded, 0, 1, "1RECV_F0")});
}

BOOST_AUTO_TEST_CASE(message_missing) {
  check_violation(program_of(straight(2, 1), {"0F0", "1RECV_F0 1F0"}),
                  violation(Rule::message_missing, 0, 1, "0SEND_F0"), "rank 0, slot 1, 0SEND_F0: is missing");
  check_violations(program_of(straight(2, 1), {"0F0 0SEND_F0", "1F0"}),
                   {violation(Rule::message_missing, 1, 0, "1RECV_F0")});
  // A program that came from nowhere lacks all.
  check_violations(
      program_of(straight(2, 1), {"0F0 0B0", "1F0 1I0 1W0"}),
      {violation(Rule::message_missing, 0, 1, "0SEND_F0"), violation(Rule::message_missing, 0, 1, "0RECV_B0"),
       violation(Rule::message_missing, 1, 0, "1RECV_F0"), violation(Rule::message_missing, 1, 2, "1SEND_B0")});
}

BOOST_AUTO_TEST_CASE(message_doubled) {
  check_violation(program_of(straight(2, 1), {"0F0 0SEND_F0 0SEND_F0", "1RECV_F0 1F0"}),
                  violation(Rule::message_doubled, 0, 1, "0SEND_F0"), "rank 0, slot 1, 0SEND_F0: comes a second time");
}

BOOST_AUTO_TEST_CASE(message_misplaced) {
  check_violation(program_of(straight(2, 1), {"0SEND_F0 0F0", "1RECV_F0 1F0"}),
                  violation(Rule::message_misplaced, 0, 0, "0SEND_F0"),
                  "rank 0, slot 0, 0SEND_F0: comes before the op that makes it");
  check_violation(program_of(straight(2, 1), {"0F0 0SEND_F0", "1F0 1RECV_F0"}),
                  violation(Rule::message_misplaced, 1, 1, "1RECV_F0"),
                  "rank 1, slot 1, 1RECV_F0: comes after the op that needs it");
}

BOOST_AUTO_TEST_CASE(messages_of_nobody) {
  const Program program = lower(schedule_of(straight(2, 1), {"0F0", "1F0"}));
  const auto with = [&](int rank, std::string_view message) {
    Messages messages(program);
    messages.slot(rank, 0).insert(messages.slot(rank, 0).begin(), op(message));
    return messages.program();
  };
  check_violation(with(0, "2RECV_F0"), violation(Rule::no_such_stage, 0, 0, "2RECV_F0"),
                  "rank 0, slot 0, 2RECV_F0: there is no stage 2, the placement has 2");
  check_violation(with(1, "1RECV_F1"), violation(Rule::no_such_stage, 1, 0, "1RECV_F1"),
                  "rank 1, slot 0, 1RECV_F1: there is no micro-batch 1");
  check_violation(with(0, "1RECV_F0"), violation(Rule::wrong_rank, 0, 0, "1RECV_F0"),
                  "rank 0, slot 0, 1RECV_F0: stage 1 is held by rank 1");
}

BOOST_AUTO_TEST_CASE(messages_may_come_early_and_late) {
  check_violations(program_of(straight(2, 1), {"0RECV_B1 0F0 0RECV_B0 0F1 0SEND_F1 0SEND_F0 0B0 0B1",
                                               "1RECV_F1 1RECV_F0 1F0 1B0 1F1 1B1 1SEND_B1 1SEND_B0"}),
                   {});
  check_violations(program_of(straight(2, 1), {"0UNSHARD 0F0 0SEND_F0 0RESHARD", "1RECV_F0 1UNSHARD 1UNSHARD 1F0"}),
                   {});
}

BOOST_AUTO_TEST_CASE(a_message_inside_a_pair) {
  const Schedule schedule = schedule_of(straight(2, 1), {"0F0 (0F1;0B0)OVERLAP_F_B 0B1", "1F0 1B0 1F1 1B1"});
  // What the pair receives and sends, moved between its two ops: each is told once, although some are also late or
  // early there.
  const struct {
    std::size_t slot;
    std::string_view message, other, text;
  } cases[] = {
      {1, "0SEND_F0", "0F1+", "rank 0, slot 2, 0SEND_F0: stands inside the F&B pair that begins with 0F1"},
      {1, "0RECV_B0", "0F1+", "rank 0, slot 2, 0RECV_B0: stands inside the F&B pair that begins with 0F1"},
      {3, "0SEND_F1", "0F1+", "rank 0, slot 2, 0SEND_F1: stands inside the F&B pair that begins with 0F1"},
      {3, "0RECV_B1", "0F1+", "rank 0, slot 2, 0RECV_B1: stands inside the F&B pair that begins with 0F1"},
  };
  const Program program =
      program_of(schedule.placement, {"0F0 0SEND_F0 0RECV_B0 (0F1;0B0)OVERLAP_F_B 0SEND_F1 0RECV_B1 0B1",
                                      "1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1"});
  check_violations(program, {});
  for (const auto& [slot, message, other, text] : cases) {
    Messages messages(program);
    std::erase(messages.slot(0, slot), op(message));
    messages.slot(0, 2).push_back(op(message));
    check_violation(messages.program(), violation(Rule::message_misplaced, 0, 2, message, other), std::string(text));
  }
}

BOOST_AUTO_TEST_CASE(late_in_a_pair_is_told_once) {
  const Schedule schedule =
      schedule_of(straight(3, 1), {"0F0 0F1 0B0 0B1", "1F0 (1F1;1B0)OVERLAP_F_B 1B1", "2F0 2B0 2F1 2B1"});
  Messages messages(lower(schedule));
  for (std::size_t slot = 0; slot <= 4; ++slot)
    std::erase_if(messages.slot(1, slot),
                  [](Op each) { return each.kind == Kind::receive_forward && each.micro_batch == 1; });
  messages.slot(1, 2).push_back(op("1RECV_F1"));
  check_violations(messages.program(), {violation(Rule::message_misplaced, 1, 2, "1RECV_F1")});
}

BOOST_AUTO_TEST_CASE(reductions) {
  const std::vector<std::string> ranks{"0F0 0SEND_F0 3RECV_F0 3F0 3B0 3SEND_B0 3REDUCE_GRAD 0RECV_B0 0B0 0REDUCE_GRAD",
                                       "2F0 2SEND_F0 1RECV_F0 1F0 1B0 1SEND_B0 1REDUCE_GRAD 2RECV_B0 2B0 2REDUCE_GRAD"};
  const Program program = program_of(two_way(2), ranks);
  check_violations(program, {});

  // Missing on one of two ranks; on both it is the caller's choice.
  Messages messages(program);
  messages.slot(1, 4).clear();
  check_violation(messages.program(), violation(Rule::message_missing, 1, 4, "2REDUCE_GRAD"),
                  "rank 1, slot 4, 2REDUCE_GRAD: is missing");
  messages.slot(0, 4).clear();
  check_violations(messages.program(), {});

  // Before the last backward of its stage.
  messages = Messages(program);
  messages.slot(0, 4).clear();
  messages.slot(0, 3).push_back(op("0REDUCE_GRAD"));
  check_violation(messages.program(), violation(Rule::message_misplaced, 0, 3, "0REDUCE_GRAD"),
                  "rank 0, slot 3, 0REDUCE_GRAD: comes before the op that makes it");

  messages = Messages(program);
  messages.slot(0, 4).push_back(op("3REDUCE_GRAD"));
  check_violations(messages.program(), {violation(Rule::message_doubled, 0, 4, "3REDUCE_GRAD")});

  // Weights that nobody shares may be reduced, too: over replicas of the pipeline.
  check_violations(program_of(straight(1, 1), {"0F0 0B0 0REDUCE_GRAD"}), {});
}

// Every single message of a DualPipe program dropped, doubled, or moved to the wrong side of its op: exactly one
// violation, which names it.
BOOST_AUTO_TEST_CASE(every_message_counts) {
  const Program program = lower(generate("dualpipe", {4, 8, 1}));
  const Schedule& schedule = program.schedule;
  std::size_t count = 0;
  for_each_message(program, [&](int rank, std::size_t slot, std::size_t i, Op message) {
    ++count;
    const Op named = alone(message);
    BOOST_TEST_CONTEXT(named << " in slot " << slot << " of rank " << rank) {
      const auto check_one = [&](const Messages& messages, Rule rule) {
        const auto violations = validate(messages.program());
        BOOST_TEST_REQUIRE(violations.size() == 1U);
        BOOST_TEST((violations[0].rule == rule));
        BOOST_TEST(violations[0].rank == rank);
        BOOST_TEST(alone(violations[0].op) == named);
        return violations[0].position;
      };
      Messages dropped(program);
      dropped.slot(rank, slot).erase(dropped.slot(rank, slot).begin() + static_cast<std::ptrdiff_t>(i));
      const std::size_t missing_at = check_one(dropped, Rule::message_missing);
      // Put there it is as good as before.
      Messages restored = dropped;
      restored.slot(rank, missing_at).push_back(named);
      check_violations(restored.program(), {});

      Messages doubled(program);
      doubled.slot(rank, slot).push_back(named);
      BOOST_TEST(check_one(doubled, Rule::message_doubled) == slot);

      if (message.kind == Kind::reduce_gradients) return;
      const std::size_t op_at = position_of_op(schedule, rank, message);
      const std::size_t wrong_side = is_send(message.kind) ? op_at : op_at + 1;
      Messages moved = dropped;
      moved.slot(rank, wrong_side).push_back(named);
      BOOST_TEST(check_one(moved, Rule::message_misplaced) == wrong_side);
    }
  });
  BOOST_TEST(count == program.communication.size());
}

// Moved to another rank it is missing there, and wrong here.
BOOST_AUTO_TEST_CASE(a_message_on_another_rank) {
  const Program program = lower(generate("dualpipe", {4, 8, 1}));
  for_each_message(program, [&](int rank, std::size_t slot, std::size_t i, Op message) {
    const int other = (rank + 1) % 4;
    Messages moved(program);
    moved.slot(rank, slot).erase(moved.slot(rank, slot).begin() + static_cast<std::ptrdiff_t>(i));
    moved.slot(other, 0).push_back(message);
    const auto violations = validate(moved.program());
    BOOST_TEST_REQUIRE(violations.size() == 2U);
    std::multiset<std::pair<Rule, int>> found, expected{{Rule::wrong_rank, other}, {Rule::message_missing, rank}};
    for (const Violation& violation : violations) {
      found.emplace(violation.rule, violation.rank);
      BOOST_TEST(alone(violation.op) == alone(message));
    }
    BOOST_TEST((found == expected));
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
