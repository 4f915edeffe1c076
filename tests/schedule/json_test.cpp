#include "dualpipe/sim/schedule/json.h"

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/lower.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe {
namespace {

using Read = std::variant<Schedule, Program>;

Read read(const std::string& text) {
  std::istringstream in(text);
  return read_json(in, "f.json");
}

template <typename Value>
std::string written(const Value& value) {
  std::ostringstream out;
  write_json(out, value);
  return out.str();
}

std::string refusal(const std::string& text) {
  return test::refusal([&] { static_cast<void>(read(text)); });
}

const std::string good =
    R"({"format": "dualpipe-schedule", "version": 1, "name": "n", "ranks": 2, "micro_batches": 1, )"
    R"("chains": [[0, 1]], "weights": [0, 1], "ops": [["0F0", "0B0"], ["1F0", "1B0"]]})";

// The refusal of the good file with one part of it replaced.
std::string refusal_with(const std::string& part, const std::string& replacement) {
  std::string text = good;
  const auto at = text.find(part);
  BOOST_REQUIRE_MESSAGE(at != std::string::npos, part << " is not in the good file");
  return refusal(text.replace(at, part.size(), replacement));
}

std::string repeated(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

BOOST_AUTO_TEST_SUITE(schedule_json)

BOOST_AUTO_TEST_CASE(reads_what_the_header_shows) {
  const auto schedule = std::get<Schedule>(read(good));
  BOOST_TEST(schedule.name == "n");
  BOOST_TEST(schedule.micro_batches == 1U);
  BOOST_TEST((schedule.placement == straight(2, 1)));
  BOOST_TEST(test::text_of_rank(schedule, 0) == "0F0 0B0");
  BOOST_TEST(test::text_of_rank(schedule, 1) == "1F0 1B0");
}

BOOST_AUTO_TEST_CASE(reads_batches) {
  const std::string text =
      R"({"ops": [["0F0", ["0SEND_F0", "0RECV_B0"], "0B0", "0REDUCE_GRAD"],
                  ["1RECV_F0", "1F0", ["1SEND_F0"], "1B0", "1SEND_B0"]],
          "weights": [0, 1], "chains": [[0, 1]], "micro_batches": 1, "ranks": 2, "name": "n",
          "version": 1, "format": "dualpipe-schedule"})";
  auto expected = test::program_of(straight(2, 1),
                                   {"0F0 [0SEND_F0 0RECV_B0] 0B0 0REDUCE_GRAD", "1RECV_F0 1F0 1SEND_F0 1B0 1SEND_B0"});
  expected.schedule.name = "n";
  BOOST_TEST((std::get<Program>(read(text)) == expected));
}

BOOST_AUTO_TEST_CASE(writes_one_rank_per_line) {
  auto program = test::program_of(two_way(1), {"0F0 [0SEND_F0 1RECV_F0] 1F0 [1SEND_B0 0RECV_B0] 0SEND_F0"});
  program.schedule.name = "a \"name\"\n";
  BOOST_TEST(written(program) ==
             "{\n"
             "\"format\": \"dualpipe-schedule\", \"version\": 1, \"name\": \"a \\\"name\\\"\\n\", \"ranks\": 1, "
             "\"micro_batches\": 1,\n"
             "\"chains\": [[0], [0]],\n"
             "\"weights\": [0, 0],\n"
             "\"ops\": [\n"
             "[\"0F0\", [\"0SEND_F0\", \"1RECV_F0\"], \"1F0\", [\"1SEND_B0\", \"0RECV_B0\"], \"0SEND_F0\"]\n"
             "]\n"
             "}\n");
}

BOOST_AUTO_TEST_CASE(generated_schedules_and_programs_round_trip) {
  for (const test::Case& a_case : test::small_cases(4, 8)) {
    BOOST_TEST_CONTEXT(a_case) {
      const Schedule schedule = generate(a_case.family, a_case.shape);
      const std::string text = written(schedule);
      BOOST_TEST((std::get<Schedule>(read(text)) == schedule));
      BOOST_TEST(nlohmann::json::parse(text).at("ops").size() == static_cast<std::size_t>(schedule.ranks()));
      const Program program = lower(schedule);
      if (program.communication.empty()) continue;
      BOOST_TEST((std::get<Program>(read(written(program))) == program));
    }
  }
}

BOOST_AUTO_TEST_CASE(goldens_round_trip) {
  for (const test::Golden& golden : test::goldens()) {
    BOOST_TEST_CONTEXT(golden) {
      const Read value = test::read(golden);
      const std::string text = std::visit([](const auto& v) { return written(v); }, value);
      BOOST_TEST((read(text) == value));
    }
  }
}

BOOST_AUTO_TEST_CASE(names_round_trip) {
  for (const std::string name : {"", "\"", "\\", "\n\t\x01", "Zürich", "\xf0\x9f\x9a\x80", "{}[]"}) {
    auto schedule = std::get<Schedule>(read(good));
    schedule.name = name;
    BOOST_TEST(std::get<Schedule>(read(written(schedule))).name == name);
  }
  auto schedule = std::get<Schedule>(read(good));
  schedule.name = "\xff";  // a file name need not be UTF-8; the JSON must be
  BOOST_TEST(std::get<Schedule>(read(written(schedule))).name == "\xef\xbf\xbd");
}

// The bound on the length of one value must not be taken for one on long lists, whatever the strings before them are.
BOOST_AUTO_TEST_CASE(the_largest_placement_round_trips) {
  Schedule schedule;
  schedule.placement = straight(1, static_cast<int>(stage_count_max));
  schedule.micro_batches = 1;
  schedule.rank_begin = {0, 0};
  for (const std::string name : {"\\", "\"", "\\\""}) {
    schedule.name = name;
    BOOST_TEST((std::get<Schedule>(read(written(schedule))) == schedule));
  }
}

BOOST_AUTO_TEST_CASE(values_that_do_not_fit_are_named) {
  const struct {
    std::string part;
    std::string replacement;
    std::string error;
  } cases[] = {
      {"dualpipe-schedule", "dualpipe-costs",
       "f.json: format: 'dualpipe-costs' is another format; expected 'dualpipe-schedule'"},
      {"\"version\": 1", "\"version\": 2", "f.json: version: made by a newer version: this one reads up to 1"},
      {"\"version\": 1", "\"version\": 0",
       "f.json: version: expected a whole number from 1 to 9223372036854775807, not 0"},
      {"\"version\": 1, ", "", "f.json: \"version\" is missing"},
      {"\"format\": \"dualpipe-schedule\", ", "", "f.json: \"format\" is missing"},
      {"\"ranks\": 2, ", "", "f.json: \"ranks\" is missing"},
      {", \"ops\": [[\"0F0\", \"0B0\"], [\"1F0\", \"1B0\"]]", "", "f.json: \"ops\" is missing"},
      {"\"ranks\": 2", "\"ranks\": 2, \"rank\": 2",
       "f.json: rank: unknown key; 'dualpipe-schedule' has format, version, name, ranks, micro_batches, chains, "
       "weights, ops"},
      {"\"ranks\": 2", "\"ranks\": 2, \"ranks\": 2", "f.json: ranks: is there twice"},
      {"\"ops\": [", "\"ops\": [], \"ops\": [", "f.json: ops: is there twice"},
      {"\"ranks\": 2", "\"ranks\": 3", "f.json: ranks: 3 ranks, but \"ops\" has 2 lists"},
      {"\"ranks\": 2", "\"ranks\": \"2\"", "f.json: ranks: expected a whole number from 1 to 65535, not string"},
      {"\"ranks\": 2", "\"ranks\": 2.5", "f.json: ranks: expected a whole number from 1 to 65535"},
      {"\"ranks\": 2", "\"ranks\": 1e300", "f.json: ranks: expected a whole number from 1 to 65535"},
      {"\"ranks\": 2", "\"ranks\": 1e999", "f.json: ranks: the number '1e999' is too large"},
      {"\"ranks\": 2", "\"ranks\": 18446744073709551615", "f.json: ranks: expected a whole number from 1 to 65535"},
      {"\"ranks\": 2", "\"ranks\": -1", "f.json: ranks: expected a whole number from 1 to 65535, not -1"},
      {"\"micro_batches\": 1", "\"micro_batches\": 1000000000",
       "f.json: micro_batches: expected a whole number from 1 to 16777216, not 1000000000"},
      {"\"micro_batches\": 1", "\"micro_batches\": 0",
       "f.json: micro_batches: expected a whole number from 1 to 16777216, not 0"},
      {"\"name\": \"n\"", "\"name\": null", "f.json: name: expected a string, not null"},
      {"[[0, 1]]", "[0, 1]", "f.json: chains[0]: expected a list, not number"},
      {"[[0, 1]]", "[[0, true]]", "f.json: chains[0][1]: expected a whole number from 0 to 65534, not boolean"},
      {"[[0, 1]]", "[[0, 1], []]", "f.json: chain 1 has no stages: it begins at stage 2 and the next one at 2"},
      {"[[0, 1]]", "[[0, 2]]", "f.json: stage 1 is on rank 2, but there are only ranks 0 to 1"},
      {"[[0, 1]]", "{}", "f.json: chains: expected a list, not object"},
      {"[[0, 1]]", "[[[[0]]]]", "f.json: chains[0][0][0]: nested too deeply"},
      {"\"weights\": [0, 1]", "\"weights\": [0]", "f.json: weights are given for 1 stages, but there are 2"},
      {"[\"1F0\", \"1B0\"]", "[\"1F0\", \"1Bx\"]", "f.json: ops[1][1]: '1Bx': expected a micro-batch number, not 'x'"},
      {"[\"1F0\", \"1B0\"]", "\"1F0\"", "f.json: ops[1]: expected the list of a rank's ops, not a single op"},
      {"\"1B0\"", "7", "f.json: ops[1][1]: expected an op or a list, not 7"},
      {"\"1B0\"", "{}", "f.json: ops[1][1]: expected an op or a list, not an object"},
      {"\"1B0\"", "[]", "f.json: ops[1][1]: a batch without messages"},
      {"\"1B0\"", "[\"1RECV_F0\", \"1B0\"]", "f.json: ops[1][1][1]: 1B0 cannot be part of a batch, only messages can"},
      {"\"1B0\"", "[\"1RECV_F0\", []]", "f.json: ops[1][1][1]: a batch holds messages, not lists"},
      {"[[\"0F0\", \"0B0\"], [\"1F0\", \"1B0\"]]", "{}", "f.json: ops: expected a list"},
      {"[[\"0F0\", \"0B0\"], [\"1F0\", \"1B0\"]]", "3", "f.json: ops: expected a list"},
  };
  for (const auto& [part, replacement, error] : cases) BOOST_TEST(refusal_with(part, replacement) == error);
}

BOOST_AUTO_TEST_CASE(no_beginning_of_a_file_is_a_file) {
  for (std::size_t length = 0; length < good.size(); ++length) {
    BOOST_TEST_CONTEXT(length) { BOOST_TEST(refusal(good.substr(0, length)).starts_with("f.json:")); }
  }
}

BOOST_AUTO_TEST_CASE(syntax_errors_name_line_and_column) {
  using std::string_literals::operator""s;
  BOOST_TEST(refusal("") ==
             "f.json:1:1: syntax error while parsing value - unexpected end of input; expected '[', '{', or a literal");
  BOOST_TEST(refusal("{\n \"version\": NaN}") ==
             "f.json:2:13: syntax error while parsing value - invalid literal, near '\"version\": N'");
  for (const std::string text : {"[]", "7", "\"x\"", "null"}) BOOST_TEST(refusal(text) == "f.json: expected an object");
  BOOST_TEST(refusal(good + "{}").starts_with("f.json:1:"));
  BOOST_TEST(refusal(good + "\0rest"s) == "f.json:1: a NUL byte, which no JSON text has");
  BOOST_TEST(refusal("{\"\xff\": 1}").starts_with("f.json:1:"));
  for (const char c : refusal("{\"format\": \"\xff\x1b[31m\"}")) BOOST_REQUIRE((c >= 0x20 && c < 0x7f));
}

BOOST_AUTO_TEST_CASE(files_made_to_exhaust_the_reader_fail_early) {
  const std::string opening = R"({"format": "dualpipe-schedule", "version": 1, )";
  BOOST_TEST(refusal(std::string(200'000, '[')) == "f.json: expected an object");
  BOOST_TEST(refusal(repeated("{\"ops\":", 200'000)) == "f.json: ops: expected a list");
  BOOST_TEST(refusal(opening + "\"ops\": " + std::string(200'000, '[')) ==
             "f.json: ops[0][0][0]: a batch holds messages, not lists");
  BOOST_TEST(refusal(opening + "\"chains\": " + std::string(200'000, '[')) ==
             "f.json: chains[0][0][0]: nested too deeply");
  BOOST_TEST(refusal(opening + "\"name\": \"" + std::string(1'000'000, 'x')) ==
             "f.json:1: a value of more than 65536 characters");
  BOOST_TEST(refusal(std::string(1'000'000, ' ')) == "f.json:1: a value of more than 65536 characters");
  BOOST_TEST(refusal(opening + "\"ranks\": " + std::string(1'000'000, '9')) ==
             "f.json:1: a value of more than 65536 characters");
  BOOST_TEST(refusal(opening + "\"weights\": [" + repeated("0,", 3'000'000)).ends_with(": more than 2097152 values"));
  BOOST_TEST(refusal(opening + "\"ops\": [" + repeated("[],", 70'000)) == "f.json: ops[65535]: more than 65535 ranks");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
