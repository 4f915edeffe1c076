#include "dualpipe/sim/schedule/csv.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <sstream>
#include <streambuf>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/lower.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe {
namespace {

using Read = std::variant<Schedule, Program>;

Read read(const std::string& text, int chains = 1) {
  std::istringstream in(text);
  return read_csv(in, "some/file.csv", chains);
}

template <typename Value>
std::string written(const Value& value) {
  std::ostringstream out;
  write_csv(out, value);
  return out.str();
}

std::string written(const Read& read) {
  return std::visit([](const auto& value) { return written(value); }, read);
}

std::string refusal(std::istream& in, int chains = 1) {
  return test::refusal([&] { static_cast<void>(read_csv(in, "f.csv", chains)); });
}

std::string refusal(const std::string& text, int chains = 1) {
  std::istringstream in(text);
  return refusal(in, chains);
}

// A CSV gives the batches of a program no text: each message becomes one.
Program without_batches(Program program) {
  for (Op& message : program.communication) message.with_next = false;
  return program;
}

// What a file says, without how it says it: no CR, no empty cells.
std::string plain(const std::string& text) {
  std::string result;
  for (const char c : text) {
    const bool at_start = result.empty() || result.back() == '\n';
    if (c == '\r' || (c == ',' && (at_start || result.back() == ','))) continue;
    if (c == '\n' && !at_start && result.back() == ',') result.pop_back();
    result += c;
  }
  if (!result.ends_with('\n')) result += '\n';
  return result;
}

// A file without an end: `head`, then `repeated` for ever. Counts the bytes that were taken from it.
class Endless : public std::streambuf {
 public:
  Endless(const std::string& head, char repeated) : block_(head + std::string(4096, repeated)) {
    setg(block_.data(), block_.data(), block_.data() + block_.size());
    head_ = head.size();
  }
  [[nodiscard]] std::size_t taken() const { return taken_; }

 protected:
  int_type underflow() override {
    taken_ += block_.size();
    setg(block_.data(), block_.data() + head_, block_.data() + block_.size());
    return traits_type::to_int_type(*gptr());
  }

 private:
  std::string block_;
  std::size_t head_ = 0;
  std::size_t taken_ = 0;
};

// Breaks down in the middle, as a disk does.
class Broken : public std::streambuf {
 protected:
  int_type underflow() override { throw std::runtime_error("no disk"); }
};

BOOST_AUTO_TEST_SUITE(schedule_csv)

BOOST_AUTO_TEST_CASE(reads_compute_only_as_a_schedule) {
  const auto schedule = std::get<Schedule>(read("0F0,3F0,(0F1;3B0)OVERLAP_F_B,3F1,0B0,3B1,0I1,0W1\n1F0,2F0\n"));
  BOOST_TEST(schedule.name == "file");
  BOOST_TEST(schedule.micro_batches == 2U);
  BOOST_TEST((schedule.placement == v_shape(2)));
  BOOST_TEST(schedule.rank_begin == std::vector<std::size_t>({0, 9, 11}));
  BOOST_TEST(test::text_of_rank(schedule, 0) == "0F0 3F0 (0F1;3B0)OVERLAP_F_B 3F1 0B0 3B1 0I1 0W1");
  BOOST_TEST(test::text_of_rank(schedule, 1) == "1F0 2F0");
}

BOOST_AUTO_TEST_CASE(reads_compute_comms_as_a_program) {
  const auto program =
      std::get<Program>(read("0UNSHARD,0F0,0SEND_F0,0RECV_B0,0B0,0REDUCE_GRAD\n1RECV_F0,1F0,1B0,1SEND_B0"));
  const auto expected = test::program_of(
      straight(2, 1), {"0UNSHARD 0F0 0SEND_F0 0RECV_B0 0B0 0REDUCE_GRAD", "1RECV_F0 1F0 1B0 1SEND_B0"});
  BOOST_TEST((program.communication == expected.communication));
  BOOST_TEST(program.slot_begin == expected.slot_begin);
  BOOST_TEST((program.schedule.ops == expected.schedule.ops));
  BOOST_TEST(program.slot(0, 1).size() == 2U);
  BOOST_TEST(program.slot(1, 2).size() == 1U);
}

BOOST_AUTO_TEST_CASE(a_rank_may_hold_messages_alone) {
  const auto program = std::get<Program>(read("0F0,0SEND_F0\n1RECV_F0\n"));
  BOOST_TEST(program.schedule.rank(1).empty());
  BOOST_TEST(program.slot(1, 0).size() == 1U);
  BOOST_TEST(program.slot_begin.size() == 4U);
}

BOOST_AUTO_TEST_CASE(two_chains_share_weights) {
  const std::string text = "0F0,3F0,3B0,0B0\n1F0,2F0,1B0,2B0\n";
  BOOST_TEST((std::get<Schedule>(read(text, 2)).placement == two_way(2)));
  BOOST_TEST((std::get<Schedule>(read(text, 1)).placement == v_shape(2)));
}

BOOST_AUTO_TEST_CASE(the_first_rank_that_names_a_stage_holds_it) {
  const auto schedule = std::get<Schedule>(read("0F0,1F0\n0B0,2F0\n"));
  BOOST_TEST(schedule.placement.rank_of == std::vector<std::uint16_t>({0, 0, 1}));
}

BOOST_AUTO_TEST_CASE(layout_of_the_file_carries_no_meaning) {
  const Read expected = read("0F0,0B0\n1F0,1B0\n");
  const std::string texts[] = {
      "0F0,0B0\n1F0,1B0",
      "0F0,0B0\r\n1F0,1B0\r\n",
      "0F0,0B0\n1F0,1B0\n\n\r\n \n",
      "0F0,0B0,\n1F0,1B0,,\n",
      ",,0F0,,0B0\n,1F0,1B0\n",
      " 0F0 ,\t0B0\n  1F0,1B0  \n",
      "\"0F0\",\"0B0\"\r\n\"1F0\", \"1B0\" \r\n",
      "\"\",0F0,0B0\n1F0,1B0\n",
      "\xef\xbb\xbf"
      "0F0,0B0\n1F0,1B0\n",
  };
  for (const std::string& text : texts) BOOST_TEST((read(text) == expected), "differs: " << text);
}

BOOST_AUTO_TEST_CASE(refusals_name_the_place) {
  using std::string_literals::operator""s;
  const struct {
    std::string text;
    std::string error;
  } cases[] = {
      {"", "f.csv: the file has no ops"},
      {"\n\n", "f.csv: the file has no ops"},
      {"\xef\xbb\xbf", "f.csv: the file has no ops"},
      {",,\n", "f.csv: line 1 has no ops; a line is a rank, and each rank runs at least one op"},
      {"0F0\n,\n", "f.csv: line 2 has no ops; a line is a rank, and each rank runs at least one op"},
      {"0F0\n\n\n1F0\n",
       "f.csv: line 2 is empty, but more ops follow; a line is a rank, and each rank runs at least one op"},
      {"0F0\n1F0,1B0,1F1junk\n", "f.csv:2: column 3: '1F1junk': unexpected 'junk' after the end of the op"},
      {"0F0\n1F0,,1F1\r1F2\n", "f.csv:2: column 3: '1F1\\x0d1F2': unexpected '\\x0d1F2' after the end of the op"},
      {"0F0\0,0F1"s, "f.csv:1: column 1: '0F0\\x00': unexpected '\\x00' after the end of the op"},
      {"0F0,\xef\xbb\xbf"
       "0F1",
       "f.csv:1: column 2: '\\xef\\xbb\\xbf0F1': expected a stage number, not '\\xef\\xbb\\xbf0F1'"},
      {"\"0F0,0F1\"\n", "f.csv:1: column 1: '\"0F0': the quote is not closed"},
      {"0F0,\"", "f.csv:1: column 2: '\"': the quote is not closed"},
      {"0F0,4F0\n1F0,3F0\n", "f.csv: no rank runs stage 2, but stage 4 occurs; stages must be numbered without gaps"},
      {"0F0,1F0\n1B0\n", "f.csv: rank 1 (line 2) holds no stage: all that it names are named by ranks before it"},
      {"0F0;0F1\n", "f.csv:1: column 1: '0F0;0F1': unexpected ';0F1' after the end of the op"},
      {std::string(129, '0'), "f.csv:1: column 1: '" + std::string(40, '0') +
                                  "…': the cell has more than 128 characters; expected an op like 3B7"},
  };
  for (const auto& [text, error] : cases) BOOST_TEST(refusal(text) == error);
  BOOST_TEST(refusal("0F0\n1F0\n2F0\n", 2) == "f.csv: 3 stages cannot be divided into 2 equally long chains");
  BOOST_TEST(refusal("0F0\n1F0\n", 0) == "f.csv: 2 stages cannot be divided into 0 equally long chains");
  BOOST_TEST(refusal("0BW0\n").find("older PyTorch") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_few_bytes_cannot_ask_for_tables_without_end) {
  std::string text;
  for (int stage = 0; stage < 60'000; ++stage) text += std::to_string(stage) + "F0,";
  text += "0F16777215\n";
  BOOST_TEST(
      refusal(text) ==
      "f.csv: 16777216 micro-batches through 60000 stages take more than 268435456 ops, the most that is supported");
}

BOOST_AUTO_TEST_CASE(a_cell_without_end_fails_at_once) {
  for (const char c : {'9', ' ', 'F', '"', '\0'}) {
    Endless endless("0F0,0", c);
    std::istream in(&endless);
    BOOST_TEST(refusal(in).find("more than 128 characters") != std::string::npos);
    BOOST_TEST(endless.taken() < 200'000U);
  }
}

BOOST_AUTO_TEST_CASE(too_many_ranks_are_refused) {
  std::string text;
  for (std::uint32_t rank = 0; rank < stage_count_max; ++rank) text += std::to_string(rank) + "F0\n";
  BOOST_TEST(std::get<Schedule>(read(text)).ranks() == 65'535);
  BOOST_TEST(refusal(text + "0F1\n") == "f.csv:65536: column 1: more than 65535 ranks");
}

BOOST_AUTO_TEST_CASE(a_broken_stream_is_no_short_file) {
  Broken broken;
  std::istream in(&broken);
  BOOST_TEST(refusal(in) == "f.csv: cannot be read");
}

BOOST_AUTO_TEST_CASE(cells_fall_on_every_edge_of_the_buffer) {
  // Each indent shifts what follows by one byte against the reader's blocks.
  for (std::size_t indent = 0; indent < 24; ++indent) {
    std::string text(indent, ' ');
    text += "0F0";
    std::string expected = "0F0";
    for (int i = 1; i < 20'000; ++i) {
      const std::string cell = ",0F" + std::to_string(i);
      text += cell;
      expected += cell;
    }
    BOOST_REQUIRE(written(read(text)) == expected + "\n");
  }
}

BOOST_AUTO_TEST_CASE(every_golden_is_written_as_it_was_read) {
  BOOST_TEST(test::goldens().size() > 100U);
  for (const test::Golden& golden : test::goldens()) {
    BOOST_TEST_CONTEXT(golden) {
      const Read value = test::read(golden);
      BOOST_TEST(std::holds_alternative<Program>(value) == golden.lowered);
      const std::string text = written(value);
      BOOST_TEST((text == plain(test::text_of(golden.path))));
      std::istringstream in(text);
      BOOST_TEST((read_csv(in, golden.path, golden.chains()) == value));
    }
  }
}

BOOST_AUTO_TEST_CASE(generated_schedules_and_programs_round_trip) {
  for (const test::Case& a_case : test::small_cases(4, 8)) {
    BOOST_TEST_CONTEXT(a_case) {
      Schedule schedule = generate(a_case.family, a_case.shape);
      const int chains = schedule.placement.chains();
      schedule.name = "file";
      BOOST_TEST((std::get<Schedule>(read(written(schedule), chains)) == schedule));
      const Program program = without_batches(lower(schedule));
      if (program.communication.empty()) continue;
      BOOST_TEST((std::get<Program>(read(written(program), chains)) == program));
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
