#include "dualpipe/sim/schedule/csv.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <sstream>
#include <streambuf>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/sim/schedule/lower.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe {
namespace {

using Read = std::variant<Schedule, Program>;

Read read(const std::string& text, int chains = 1) {
  std::istringstream in(text);
  return read_csv(in, "some/file.csv", {.chains = chains});
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
  return test::refusal([&] { static_cast<void>(read_csv(in, "f.csv", {.chains = chains})); });
}

std::string refusal(const std::string& text, int chains = 1) {
  std::istringstream in(text);
  return refusal(in, chains);
}

std::pair<Read, std::string> read_with_remark(const std::string& text, Letters letters = Letters::by_content) {
  std::istringstream in(text);
  std::vector<std::string> remarks;
  Read result = read_csv(in, "f.csv", {.letters = letters, .remarks = &remarks});
  BOOST_TEST(remarks.size() <= 1U);
  return {std::move(result), remarks.empty() ? "" : remarks[0]};
}

Read read_current(const std::string& text) { return read_with_remark(text, Letters::current).first; }

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

BOOST_AUTO_TEST_CASE(the_rank_that_has_most_of_a_stage_holds_it) {
  const auto ranks = [](const std::string& text) { return std::get<Schedule>(read(text)).placement.rank_of; };
  BOOST_TEST(ranks("0F0,1F0\n0B0,2F0\n") == std::vector<std::uint16_t>({0, 0, 1}), "of equals the first");
  BOOST_TEST(ranks("0F0,1F0,0B0\n1F0,1B0\n") == std::vector<std::uint16_t>({0, 1}), "not the one with a stray op");
}

// UNSHARD, RESHARD and REDUCE_GRAD are FSDP's: without a send and a receive the file has no communication.
BOOST_AUTO_TEST_CASE(a_file_without_messages_is_compute_only) {
  const Read expected = read("0F0,0B0\n1F0,1B0\n");
  BOOST_TEST((read("0F0,0B0,0REDUCE_GRAD\n1F0,1B0,1REDUCE_GRAD\n") == expected));
  BOOST_TEST((read("0UNSHARD,0F0,0B0,0REDUCE_GRAD,0RESHARD\n1UNSHARD,1F0,1B0,1RESHARD\n") == expected));
  BOOST_TEST(std::holds_alternative<Program>(read("0UNSHARD,0F0,0SEND_F0\n1RECV_F0,1F0\n")));
}

// Every B here has its W: it is an I.
BOOST_AUTO_TEST_CASE(old_letters_are_seen) {
  const Read expected = read_current("0F0,0I0,0F1,0W0,0I1,0W1\n1F0,1I0,1W0,1F1,1I1,1W1\n");
  const std::string old_text = "0F0,0B0,0F1,0W0,0B1,0W1\n1F0,1B0,1W0,1F1,1B1,1W1\n";
  const auto [schedule, remark] = read_with_remark(old_text);
  BOOST_TEST((schedule == expected));
  BOOST_TEST(remark ==
             "f.csv: PyTorch's old letters, as every B has a W of its own: B is read as I, the input-gradient half "
             "(--letters new: as the full backward)");
  const auto [with_full, of_full] = read_with_remark("0F0,0B0,0W0,0F1,0BW1\n1F0,1B0,1W0,1F1,1BW1\n");
  BOOST_TEST((with_full == read_current("0F0,0I0,0W0,0F1,0B1\n1F0,1I0,1W0,1F1,1B1\n")));
  BOOST_TEST(of_full ==
             "f.csv: PyTorch's old letters, as line 1 has 0BW1: B is read as I, the input-gradient half, and BW as B "
             "(--letters new: as the full backward)");
  // The backward of a pair is a full one, whatever its letter.
  const auto [with_pair, of_pair] = read_with_remark("0F0,(0F1;0B0)OVERLAP_F_B,0B1,0W1\n");
  BOOST_TEST((with_pair == read_current("0F0,(0F1;0B0)OVERLAP_F_B,0I1,0W1\n")));
  BOOST_TEST(!of_pair.empty());
  // Whoever says what they are hears nothing of it.
  const auto [as_said, none] = read_with_remark(old_text, Letters::old);
  BOOST_TEST((as_said == expected));
  BOOST_TEST(none == "");
  BOOST_TEST((read_with_remark("0F0,0B0\n", Letters::old).first == read_current("0F0,0I0\n")));
}

BOOST_AUTO_TEST_CASE(current_letters_stay) {
  for (const std::string text : {"0F0,0B0\n1F0,1B0\n", "0F0,0I0,0W0\n1F0,1B0\n", "0F0,0I0,0W0,0B0\n1F0,1B0\n"}) {
    for (const Letters letters : {Letters::by_content, Letters::current}) {
      const auto [schedule, remark] = read_with_remark(text, letters);
      BOOST_TEST(remark == "");
      BOOST_TEST(written(schedule) == text);
    }
  }
  // Not all B have a W, nor most of them: the one W is too many, and what it may mean is said.
  const auto [schedule, remark] = read_with_remark("0F0,0F1,0B0,0W0,0B1\n");
  BOOST_TEST(written(schedule) == "0F0,0F1,0B0,0W0,0B1\n");
  BOOST_TEST(remark ==
             "f.csv: 1 of 2 B have a W of their own, as 0W0 is one; B is read as the full backward (--letters old: as "
             "I, its input-gradient half)");
  BOOST_TEST(read_with_remark("0F0,0B0,0W0\n", Letters::current).second == "");
}

BOOST_AUTO_TEST_CASE(letters_that_contradict_each_other_are_refused) {
  BOOST_TEST(refusal("0F0,0BW0\n1F0,1I0\n") ==
             "f.csv:2: column 2: 0BW0 in line 1 has PyTorch's old letters, where B is the input-gradient half, and 1I0 "
             "in line 2 the current ones, where that is I; a file must keep to either");
  BOOST_TEST(refusal("0F0,0I0\n1F0,1BW0\n").find("1BW0 in line 2 has PyTorch's old letters") != std::string::npos);
  const auto refused = [](const std::string& text, Letters letters) {
    return test::refusal([&] { (void)read_with_remark(text, letters); });
  };
  BOOST_TEST(refused("0F0,0I0\n", Letters::old) ==
             "f.csv:1: column 2: 0I0 has the letter I, which PyTorch's old letters (--letters old) do not have");
  BOOST_TEST(refused("0F0,0BW0\n", Letters::current).find("f.csv:1: column 2: '0BW0': this is the dialect of older") ==
             0U);
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
      // What people and their tools add.
      "0f0,0b0\n1f0,1B0\n",
      "'0F0','0B0'\n'1F0', '1B0'\n",
      "None,0F0,nan,0B0\n-,1F0,idle,1B0\n",
      "# by hand, of 2 ranks\n0F0,0B0\n# the second, and last\n1F0,1B0\n#",
      "0F0,0B0 # the first, I think\n1F0,1B0,# the second",
      "rank,step 0,step 1\n0,0F0,0B0\n1,1F0,1B0\n",
      ",0,1\n0,0F0,0B0\n1,1F0,1B0\n",
      "Rank 0: 0F0,0B0\nRank 1: 1F0,1B0\n",
      "rank1,0F0,0B0\nrank2,1F0,1B0\n",
      "time 0,time 1\n\n0F0,0B0\n1F0,1B0\n",
  };
  for (const std::string& text : texts) BOOST_TEST((read(text) == expected), "differs: " << text);
  BOOST_TEST((read("0F0,( 0F1 ; 0b0 ) overlap_f_b,0B1\n") == read("0F0,(0F1;0B0)OVERLAP_F_B,0B1\n")));
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
      {"0F0,1F0\n1B0\n",
       "f.csv: rank 1 (line 2) holds no stage: its only op, 1B0, is of stage 1, which rank 0 (line 1) runs; if the "
       "line "
       "is one too many, delete it"},
      {"#\n0F0,0B0\n1F0,1B0\n1F0,1B0\n",
       "f.csv: rank 2 (line 4) holds no stage: the first of its 2 ops, 1F0, is of stage 1, which rank 1 (line 3) runs; "
       "if the line is one too many, delete it"},
      {"0F0,\n0B0,1F0\n,1B0\n",
       "f.csv: rank 2 (line 3) holds no stage: its only op, 1B0, is of stage 1, which rank 1 (line 2) runs; "
       "the file has a column for each rank where it should have a line: transpose it"},
      {"0F0,0F1,0B0,0B1\n1F0,1F1,20B0,1B0,1B1\n",
       "f.csv: stage 20 occurs only as 20B0 in line 2, column 3, and no rank runs stage 2; stages are numbered without "
       "gaps"},
      {"1F0,1B0\n2F0,2B0\n", "f.csv: stages count from 0, but those of the file are 1 to 2; subtract 1 from each"},
      {"0F0,0B-1\n",
       "f.csv:1: column 2: '0B-1': expected a micro-batch number, not '-1'; stages and micro-batches count from 0"},
      {"F0,B0\n",
       "f.csv:1: column 1: 'F0': expected a stage number, not 'F0'; an op is stage, pass and micro-batch, like 3B7"},
      {"\xff\xfe"
       "0",
       "f.csv: the file is UTF-16; save it as UTF-8, or plain ASCII"},
      {"rank 0,0F0\nrank 2,1F0\n",
       "f.csv: line 2 is labelled 'rank 2', but is rank 1; lines are ranks in ascending order, none left out"},
      {"time,rank\nstage,rank\n0F0\n", "f.csv:2: column 1: 'stage': expected a stage number, not 'stage'"},
      {"Rank 0  Rank 1\nStep 0: 0F0\n",
       "f.csv:2: column 1: 'Step 0: 0F0': expected a stage number, not 'Step 0: 0F0'; an op is stage, pass and "
       "micro-batch, like 3B7; a line is a rank with all its ops, and not a step of all ranks"},
      {"0F0;0F1\n", "f.csv:1: column 1: '0F0;0F1': unexpected ';0F1' after the end of the op"},
      {std::string(129, '0'), "f.csv:1: column 1: '" + std::string(40, '0') +
                                  "…': the cell has more than 128 characters; expected an op like 3B7"},
  };
  for (const auto& [text, error] : cases) BOOST_TEST(refusal(text) == error);
  BOOST_TEST(refusal("0F0\n1F0\n2F0\n", 2) == "f.csv: 3 stages cannot be divided into 2 equally long chains");
  BOOST_TEST(refusal("0F0\n1F0\n", 0) == "f.csv: 2 stages cannot be divided into 0 equally long chains");
}

BOOST_AUTO_TEST_CASE(a_few_bytes_cannot_ask_for_tables_without_end) {
  std::string text;
  for (int stage = 0; stage < 60'000; ++stage) text += std::to_string(stage) + "F0,";
  text += "0F16777215\n";
  BOOST_TEST(
      refusal(text) ==
      "f.csv: 16777216 micro-batches through 60000 stages take more than 268435456 ops, the most that is supported; "
      "the last one is that of 0F16777215 in line 1, column 60001");
}

BOOST_AUTO_TEST_CASE(a_cell_without_end_fails_at_once) {
  for (const char c : {'9', ' ', 'F', '"', '\'', '\0'}) {
    Endless endless("0F0,0", c);
    std::istream in(&endless);
    BOOST_TEST(refusal(in).find("more than 128 characters") != std::string::npos);
    BOOST_TEST(endless.taken() < 200'000U);
  }
}

BOOST_AUTO_TEST_CASE(a_comment_without_end_fails_soon) {
  Endless endless("0F0 #", ',');
  std::istream in(&endless);
  BOOST_TEST(refusal(in) == "f.csv:1: column 1: the comment has more than 65536 characters");
  BOOST_TEST(endless.taken() < 400'000U);
}

// A message alone makes no micro-batch.
BOOST_AUTO_TEST_CASE(micro_batches_are_those_of_ops) {
  BOOST_TEST(std::get<Program>(read("0F0,0SEND_F0,0SEND_F7\n1RECV_F0,1F0\n")).schedule.micro_batches == 1U);
  BOOST_TEST(std::get<Program>(read("0SEND_F7\n")).schedule.micro_batches == 8U);
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
      BOOST_TEST((read_csv(in, golden.path, {.chains = golden.chains()}) == value));
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
