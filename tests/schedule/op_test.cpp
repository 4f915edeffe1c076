#include "dualpipe/sim/schedule/op.h"

#include <boost/test/unit_test.hpp>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/program.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe {
namespace {

// What parse_cell() says to the text; empty where it takes it.
std::string refusal(std::string_view text) {
  return test::refusal([&] { static_cast<void>(parse_cell(text)); });
}

BOOST_AUTO_TEST_SUITE(schedule_op)

BOOST_AUTO_TEST_CASE(each_kind_has_one_text) {
  const struct {
    std::string text;
    Op op;
  } cases[] = {
      {"3F7", {7, 3, Kind::forward}},
      {"3B7", {7, 3, Kind::backward}},
      {"0I0", {0, 0, Kind::input_gradient}},
      {"10W20", {20, 10, Kind::weight_gradient}},
      {"0SEND_F2", {2, 0, Kind::send_forward}},
      {"1RECV_F2", {2, 1, Kind::receive_forward}},
      {"1SEND_B2", {2, 1, Kind::send_backward}},
      {"0RECV_B2", {2, 0, Kind::receive_backward}},
      {"0UNSHARD", {0, 0, Kind::unshard}},
      {"5RESHARD", {0, 5, Kind::reshard}},
      {"2REDUCE_GRAD", {0, 2, Kind::reduce_gradients}},
      {"65534F16777215", {micro_batch_count_max - 1, stage_count_max - 1, Kind::forward}},
  };
  for (const auto& [text, op] : cases) {
    BOOST_TEST(to_text(op) == text);
    const Cell cell = parse_cell(text);
    BOOST_TEST(cell.first == op, text);
    BOOST_TEST(!cell.second.has_value(), text);
  }
}

BOOST_AUTO_TEST_CASE(random_ops_round_trip) {
  test::Random random(1);
  for (int i = 0; i < 20'000; ++i) {
    const auto kind = static_cast<Kind>(random.between(0, kind_count - 1));
    const auto stage = static_cast<std::uint16_t>(random.between(0, stage_count_max - 1) >> random.between(0, 15));
    const auto micro_batch =
        static_cast<std::uint32_t>(random.between(0, micro_batch_count_max - 1) >> random.between(0, 23));
    const Op op{has_micro_batch(kind) ? micro_batch : 0, stage, kind};
    const Cell cell = parse_cell(to_text(op));
    BOOST_REQUIRE_EQUAL(cell.first, op);
    BOOST_REQUIRE(!cell.second.has_value());
  }
}

BOOST_AUTO_TEST_CASE(a_pair_is_two_ops_the_first_with_next) {
  const Cell cell = parse_cell("(0F7;3B5)OVERLAP_F_B");
  const Op forward{7, 0, Kind::forward, true};
  const Op backward{5, 3, Kind::backward};
  BOOST_TEST(cell.first == forward);
  BOOST_REQUIRE(cell.second.has_value());
  BOOST_TEST(*cell.second == backward);

  const std::vector<Op> ops = {forward, backward, forward};
  BOOST_TEST(cell_text(ops) == "(0F7;3B5)OVERLAP_F_B");
  BOOST_TEST(cell_text(std::span(ops).subspan(1)) == "3B5");
  BOOST_TEST(cell_text(std::span(ops).subspan(2)) == "0F7", "an unfinished pair");
}

BOOST_AUTO_TEST_CASE(only_compute_ops_are_pairs) {
  const std::vector<Op> batch = {{0, 0, Kind::send_forward, true}, {0, 0, Kind::receive_backward}};
  BOOST_TEST(cell_text(batch) == "0SEND_F0");
}

BOOST_AUTO_TEST_CASE(whatever_is_not_exactly_one_cell_is_refused) {
  using std::string_literals::operator""s;
  const std::string texts[] = {
      "",
      " ",
      "F",
      "0",
      "0F",
      "F0",
      "2B",
      "0f1",
      "0F1junk",
      "0F1 ",
      " 0F1",
      "0 F1",
      "0F 1",
      "0F1\r",
      "0F1\n",
      "0F1,",
      "00F1",
      "0F01",
      "0F00",
      "+0F1",
      "-1F0",
      "0F-1",
      "0F+1",
      "0F1.0",
      "0F1e3",
      "0x1F0",
      "0FF0",
      "0X0",
      "0FB0",
      // out of range
      "65535F0",
      "65536F0",
      "0F16777216",
      "0F1000000000",
      "99999999999999999999F0",
      "0F4294967296",
      "4294967296F0",
      // communication
      "0SEND0",
      "0SEND_F",
      "0SEND_I0",
      "0RECV_F",
      "0send_f0",
      "0SEND_F_0",
      "0REDUCE_GRAD0",
      "0UNSHARD1",
      "0RESHARD2",
      "0_",
      "REDUCE_GRAD",
      // pairs
      "(0F7;3B5)",
      "(0F7;3B5)OVERLAP_F_B ",
      "(0F7;3B5) OVERLAP_F_B",
      "(0F7; 3B5)OVERLAP_F_B",
      "(0F7,3B5)OVERLAP_F_B",
      "(0F7)OVERLAP_F_B",
      "(0F7;3B5;1F1)OVERLAP_F_B",
      "0F7;3B5",
      "((0F7;3B5)OVERLAP_F_B;1F1)OVERLAP_F_B",
      "(0F7;3B5)OVERLAP_F_B0",
      "(0F7;3B5)overlap_f_b",
      "(0F7;3B5)OVERLAP_B_F",
      "(0F7;3B5",
      "(;)OVERLAP_F_B",
      "(",
      "(0F7;3SEND_B5)OVERLAP_F_B",
      "(0UNSHARD;3B5)OVERLAP_F_B",
      "()",
      // PyTorch's older letters
      "2BW2",
      "(0F1;2BW2)OVERLAP_F_B",
      // other bytes
      "0F1\0"s,
      "\0"s,
      "0\0F1"s,
      "\xef\xbb\xbf"
      "0F1",
      "0F\xc3\xa9",
      "\xff",
      "0F1;",
      "\"0F1\"",
  };
  for (const std::string& text : texts) BOOST_TEST(!refusal(text).empty(), "takes " << text);
}

BOOST_AUTO_TEST_CASE(refusals_say_what_was_expected) {
  BOOST_TEST(refusal("0F1junk") == "'0F1junk': unexpected 'junk' after the end of the op");
  BOOST_TEST(refusal("2B") == "'2B': expected a micro-batch number, not the end");
  BOOST_TEST(refusal("00F1") == "'00F1': the stage number '00' has leading zeros");
  BOOST_TEST(refusal("0F1000000000") ==
             "'0F1000000000': the micro-batch number '1000000000' is too large, at most 16777215 is possible");
  BOOST_TEST(refusal("70000F0") == "'70000F0': the stage number '70000' is too large, at most 65534 is possible");
  BOOST_TEST(refusal("1X1") ==
             "'1X1': expected one of F B I W SEND_F RECV_F SEND_B RECV_B UNSHARD RESHARD REDUCE_GRAD, not 'X'");
  BOOST_TEST(refusal("(0F7;3B5)") == "'(0F7;3B5)': expected 'OVERLAP_F_B', not the end");
  BOOST_TEST(refusal("(0F7;3B5)OVERLAP_F_B ") == "'(0F7;3B5)OVERLAP_F_B ': unexpected ' ' after the end of the op");
  BOOST_TEST(refusal("(0F7;3SEND_B5)OVERLAP_F_B") ==
             "'(0F7;3SEND_B5)OVERLAP_F_B': 3SEND_B5 cannot be part of a pair, only F, B, I and W can");
  BOOST_TEST(
      refusal("2BW2") ==
      "'2BW2': this is the dialect of older PyTorch versions, which wrote BW for the full backward and B for its "
      "input-gradient half; write B and I instead, or dump the schedule with a newer PyTorch");
}

BOOST_AUTO_TEST_CASE(refusals_stay_short_and_printable) {
  const std::string text = refusal("0F1\x1b[31m\n" + std::string(1'000'000, 'x'));
  BOOST_TEST(text.size() < 400U);
  BOOST_TEST(text.find("'0F1\\x1b[31m\\x0a") == 0U);
  for (const char c : refusal(std::string(100, '\xff'))) BOOST_REQUIRE(c != '\xff');
}

BOOST_AUTO_TEST_CASE(a_message_has_a_peer_at_the_neighbour) {
  const Placement placement = v_shape(2);  // stages 0 1 2 3 on ranks 0 1 1 0
  const Op send_forward{5, 0, Kind::send_forward, true};
  const Op receive_forward{5, 1, Kind::receive_forward};
  BOOST_TEST(peer_of(send_forward, placement) == receive_forward);
  BOOST_TEST(peer_of(receive_forward, placement) == Op({5, 0, Kind::send_forward}));
  const Op send_backward{5, 3, Kind::send_backward};
  const Op receive_backward{5, 2, Kind::receive_backward};
  BOOST_TEST(peer_of(send_backward, placement) == receive_backward);
  BOOST_TEST(peer_of(receive_backward, placement) == send_backward);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
