// What flows between stages, by hand for the placements of three families.
#include "dualpipe/sim/schedule/flow.h"

#include <boost/test/unit_test.hpp>
#include <set>
#include <vector>

#include "tests/support.h"

namespace dualpipe::test {
namespace {

Op op(int stage, Kind kind, std::uint32_t micro_batch = 5) {
  return {micro_batch, static_cast<std::uint16_t>(stage), kind, false};
}

// The stage before and after each, -1 at an end of the chain, and whether these are on another rank.
struct Ends {
  int before, after;
  bool before_is_remote, after_is_remote;
};

void check(const Placement& placement, const std::vector<Ends>& expected) {
  const auto end = [&](int stage, bool is_remote) -> std::optional<FlowEnd> {
    if (stage < 0) return std::nullopt;
    return FlowEnd{static_cast<std::uint16_t>(stage), placement.rank_of[static_cast<std::size_t>(stage)], is_remote};
  };
  BOOST_TEST_REQUIRE(expected.size() == placement.rank_of.size());
  for (int stage = 0; stage < placement.stages(); ++stage) {
    const Ends& ends = expected[static_cast<std::size_t>(stage)];
    const auto before = end(ends.before, ends.before_is_remote);
    const auto after = end(ends.after, ends.after_is_remote);
    BOOST_TEST_CONTEXT("stage " << stage) {
      BOOST_TEST((producer_of(op(stage, Kind::forward), placement) == before));
      BOOST_TEST((consumer_of(op(stage, Kind::forward), placement) == after));
      for (const Kind backward : {Kind::backward, Kind::input_gradient}) {
        BOOST_TEST((producer_of(op(stage, backward), placement) == after));
        BOOST_TEST((consumer_of(op(stage, backward), placement) == before));
      }
      BOOST_TEST(!producer_of(op(stage, Kind::weight_gradient), placement));
      BOOST_TEST(!consumer_of(op(stage, Kind::weight_gradient), placement));
      BOOST_TEST((other_end_of(op(stage, Kind::receive_forward), placement) == before));
      BOOST_TEST((other_end_of(op(stage, Kind::send_forward), placement) == after));
      BOOST_TEST((other_end_of(op(stage, Kind::receive_backward), placement) == after));
      BOOST_TEST((other_end_of(op(stage, Kind::send_backward), placement) == before));
    }
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(schedule_flow)

BOOST_AUTO_TEST_CASE(producers_and_consumers) {
  // Ranks 0 1, stages 0 1.
  check(straight(2, 1), {{-1, 1, false, true}, {0, -1, true, false}});
  // Ranks 0 1 1 0: the turn is on one rank.
  check(v_shape(2), {{-1, 1, false, true}, {0, 2, true, false}, {1, 3, false, true}, {2, -1, true, false}});
  // Two chains on the same ranks: nothing flows from the one to the other.
  check(two_way(2), {{-1, 1, false, true}, {0, -1, true, false}, {-1, 3, false, true}, {2, -1, true, false}});
}

// The receive for an op comes from the send of its producer's, and both are of the size of one boundary.
BOOST_AUTO_TEST_CASE(messages_belong_to_ops) {
  for (const Placement& placement : {straight(3, 2), v_shape(3), two_way(3)}) {
    for (int stage = 0; stage < placement.stages(); ++stage) {
      for (const Kind pass : {Kind::forward, Kind::backward, Kind::input_gradient}) {
        const Op receive = receive_for(op(stage, pass));
        BOOST_TEST(is_receive(receive.kind));
        BOOST_TEST(op_of(receive) == op(stage, pass == Kind::forward ? Kind::forward : Kind::backward));
        BOOST_TEST(op_of(send_of(op(stage, pass))) == op_of(receive));
        const auto producer = producer_of(op(stage, pass), placement);
        if (!producer) continue;
        const Op send = send_of(op(producer->stage, pass));
        BOOST_TEST(peer_of(receive, placement) == send);
        BOOST_TEST(peer_of(send, placement) == receive);
        BOOST_TEST(output_stage_of(send, placement) == output_stage_of(receive, placement));
        BOOST_TEST(output_stage_of(send, placement) == (pass == Kind::forward ? int{producer->stage} : stage));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(keys_tell_what_flows_apart) {
  std::set<std::uint64_t> keys;
  for (const int stage : {0, 1, static_cast<int>(stage_count_max) - 1}) {
    for (const std::uint32_t micro_batch : {0U, 1U, micro_batch_count_max - 1}) {
      for (const Kind pass : {Kind::forward, Kind::backward}) {
        const std::uint64_t key = key_of(op(stage, pass, micro_batch));
        BOOST_TEST(keys.insert(key).second);
        BOOST_TEST(key == key_of(send_of(op(stage, pass, micro_batch))));
        BOOST_TEST(key == key_of(receive_for(op(stage, pass, micro_batch))));
      }
      BOOST_TEST(key_of(op(stage, Kind::input_gradient, micro_batch)) ==
                 key_of(op(stage, Kind::backward, micro_batch)));
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
