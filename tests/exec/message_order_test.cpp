// Programs whose messages are matched by their order alone.
#include "dualpipe/exec/transport/message_order.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "tests/exec/training.h"
#include "tests/support.h"

namespace dualpipe::test {

using detail::transport::check_message_order;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// The receives of rank 1 the other way round than rank 0 sends.
Program swapped() {
  Program program = program_of("gpipe", 2, 2);
  std::vector<Op*> receives;
  for (Op& each : program.communication) {
    if (each.kind == Kind::receive_forward) receives.push_back(&each);
  }
  std::swap(receives.at(0)->micro_batch, receives.at(1)->micro_batch);
  return program;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_message_order)

BOOST_AUTO_TEST_CASE(an_order_that_differs_between_the_ends_is_refused) {
  for (const std::string& name : family_names())
    for (const std::size_t streams : {1U, 2U}) BOOST_CHECK_NO_THROW(check_message_order(program_of(name, 4), streams));
  BOOST_CHECK_EXCEPTION(check_message_order(swapped(), 2), InputError, [](const auto& error) {
    return contains(error.what(), "as number 1 from rank 0 to rank 1 the one issues 0SEND_F0, and the other 1RECV_F1");
  });
  Program unmatched = program_of("gpipe", 2, 2);
  std::ranges::find(unmatched.communication, Kind::receive_forward, &Op::kind)->kind = Kind::reduce_gradients;
  BOOST_CHECK_THROW(check_message_order(unmatched, 2), InputError);
}

// In one batch rank 1 takes a gradient and an activation the other way round than rank 0 sends them: that matters only
// where both go over one stream.
BOOST_AUTO_TEST_CASE(one_stream_keeps_the_order_of_both_directions) {
  Program program = program_of("dualpipev", 2, 4);
  const auto received = [](const Op& each) {
    return is_receive(each.kind) && (each.stage == 1 || each.stage == 2);  // those of rank 1
  };
  const auto first = std::ranges::adjacent_find(program.communication, [&](const Op& a, const Op& b) {
    return received(a) && received(b) && a.with_next && a.kind != b.kind;
  });
  BOOST_REQUIRE((first != program.communication.end()));
  std::swap(first[0], first[1]);
  std::swap(first[0].with_next, first[1].with_next);
  BOOST_CHECK_NO_THROW(check_message_order(program, 2));
  BOOST_CHECK_THROW(check_message_order(program, 1), InputError);
}

// Rank 0 takes the gradient before it sends what that is made from.
BOOST_AUTO_TEST_CASE(a_program_that_hangs_as_a_stream_is_refused) {
  Program program = lower(schedule_of(straight(2, 1), {"0F0 0B0", "1F0 1B0"}));
  BOOST_REQUIRE(program.slot(0, 1).size() == 2U);  // one batch
  Op* const slot = &program.communication[program.slot_begin[program.slot_index(0, 1)]];
  std::swap(slot[0], slot[1]);
  slot[0].with_next = slot[1].with_next = false;
  BOOST_TEST(to_text(slot[0]) == "0RECV_B0");
  BOOST_TEST(!find_deadlock(program, CommunicationModel::latency).has_value());
  BOOST_CHECK_THROW(check_message_order(program, 2), DeadlockError);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
