// The table: its rows, its terms, its words.
#include "dualpipe/sim/report/table.h"

#include <boost/test/unit_test.hpp>
#include <climits>
#include <nlohmann/json.hpp>
#include <string>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::test {
namespace {

Costs costs_ms(Time forward, Time backward, Time weight) {
  constexpr Time ms = 1'000'000;
  Costs costs;
  costs.stages.resize(1);
  costs.stages[0].forward = forward * ms;
  costs.stages[0].backward = backward * ms;
  costs.stages[0].weight_gradient = weight * ms;
  costs.stages[0].input_gradient = (backward - weight) * ms;
  return costs;
}

BOOST_AUTO_TEST_SUITE(report_table)

// DeepSeek's table, for 8 stages and 20 micro-batches: 7(F+B), 7(F+B-2W), 3(F&B+B-3W), 3(F&B+B-3W).
BOOST_AUTO_TEST_CASE(text_as_people_see_it) {
  const ScheduleTable table =
      schedule_table({"1f1b", "zb1p", "dualpipe", "dualpipev"}, {8, 20, 1}, EqualTerms::stages, costs_ms(1, 2, 1));
  const std::string text = to_text(table);
  BOOST_TEST(text.substr(0, text.find("\nclosed form, simulated")) ==
             R"(8 stages, 20 micro-batches; durations of one stage

schedule   ranks  closed form         it says  simulated  it holds  bubble  by span  makespan  activations  parameters
1f1b           8  (P-1)(F+B)            21 ms      21 ms  yes       25.93%   25.93%     81 ms         1..8          1x
zb1p           8  (P-1)(F+B-2W)          7 ms       7 ms  yes       10.45%   10.45%     67 ms         1..8          1x
dualpipe       8  (PP/2-1)(F&B+B-3W)     6 ms       6 ms  yes        9.09%    9.09%     66 ms            9          2x
dualpipev      4  (PP/2-1)(F&B+B-3W)     6 ms       6 ms  yes        4.76%    4.76%    126 ms            9          2x
)");
}

// What cannot be compared, or does not hold, is said under the table; the other rows stand.
BOOST_AUTO_TEST_CASE(notes) {
  const ScheduleTable table =
      schedule_table({"1f1b", "zb1p", "dualpipe"}, {5, 20, 1}, EqualTerms::stages, costs_ms(1, 4, 3));
  const std::string text = to_text(table);
  BOOST_TEST(text.find("zb1p: the closed form needs W <= min(F, I): F = 1 ms, I = 1 ms, W = 3 ms\n") !=
             std::string::npos);
  BOOST_TEST(text.find("no row for dualpipe: the number of ranks must be even") != std::string::npos);
  BOOST_TEST(text.find("\n1f1b ") != std::string::npos);
  BOOST_TEST(text.find("-4 ms") != std::string::npos);  // (P-1)(F+B-2W), where it makes no sense
  BOOST_TEST(text.find("\ndualpipe ") == std::string::npos);
}

BOOST_AUTO_TEST_CASE(equal_stages_or_ranks) {
  const auto rows = [](EqualTerms terms) {
    return schedule_table({"1f1b", "interleaved", "dualpipe", "dualpipev"}, {8, 32, 2}, terms, costs_ms(1, 2, 1)).rows;
  };
  const auto by_stages = rows(EqualTerms::stages);
  const auto by_ranks = rows(EqualTerms::ranks);
  const int expected_ranks[] = {8, 4, 8, 4};
  const int expected_stages[] = {8, 16, 16, 16};
  for (std::size_t i = 0; i < by_stages.size(); ++i) {
    BOOST_TEST(by_stages[i].shape.ranks == expected_ranks[i]);
    BOOST_TEST(by_ranks[i].shape.ranks == 8);
    BOOST_TEST(by_ranks[i].stages == expected_stages[i]);
    BOOST_TEST(by_stages[i].form->holds());
    BOOST_TEST(by_stages[i].form->bubble == by_stages[i].bubble);
  }
  const auto odd = schedule_table({"dualpipev"}, {7, 32, 1}, EqualTerms::stages, costs_ms(1, 2, 1)).rows;
  BOOST_TEST(odd[0].unfit == "dualpipev: 7 stages cannot be 2 on every rank; nearest that work: 6 or 8 stages");
}

BOOST_AUTO_TEST_CASE(memory_column_where_there_are_bytes) {
  Costs costs = costs_ms(1, 2, 1);
  BOOST_TEST(to_text(schedule_table({"1f1b"}, {2, 4, 1}, EqualTerms::stages, costs)).find("  memory\n") ==
             std::string::npos);
  costs.stages[0].activation = 1 << 30;
  const std::string text = to_text(schedule_table({"1f1b"}, {2, 4, 1}, EqualTerms::stages, costs));
  BOOST_TEST(text.find("  memory\n") != std::string::npos);
  BOOST_TEST(text.find("2 GiB\n") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(markdown_csv_json) {
  const ScheduleTable table = schedule_table({"zb-h2", "dualpipe"}, {3, 9, 1}, EqualTerms::stages, costs_ms(2, 3, 1));
  BOOST_TEST(to_markdown(table).find("| zb-h2 ") != std::string::npos);
  BOOST_TEST(to_markdown(table).find("- no row for dualpipe") != std::string::npos);

  const std::string csv = to_csv(table);
  // (P-1)(F+B-3W) = 2 * 2 ms, by span.
  BOOST_TEST(csv.find("\nzb-h2,3,3,9,(P-1)(F+B-3W),span,4000000,4000000,yes,") != std::string::npos);

  const auto json = nlohmann::json::parse(to_json(table));
  BOOST_TEST(json["equal"] == "stages");
  BOOST_TEST(json["stages"] == 3);
  BOOST_TEST(json["microbatches"] == 9);
  const auto& row = json["rows"][0];
  BOOST_TEST(row["closed_form"]["holds"] == true);
  BOOST_TEST(row["closed_form"]["by"] == "span");
  BOOST_TEST(row["bubble_ns"] == 4'000'000);
  BOOST_TEST(json["rows"][1]["unfit"].get<std::string>().find("must be even") != std::string::npos);
}

// Each would divide by 0, or count past the largest number.
BOOST_AUTO_TEST_CASE(counts_that_no_schedule_has) {
  for (const Shape& shape : {Shape{4, 8, 0}, Shape{0, 8, 2}, Shape{INT_MAX, 8, 2}, Shape{4, 8, INT_MIN}}) {
    const ScheduleTable table = schedule_table({"interleaved"}, shape, EqualTerms::stages, costs_ms(1, 2, 1));
    BOOST_TEST(table.rows[0].unfit.find("must be between 1 and 65535") != std::string::npos);
  }
}

BOOST_AUTO_TEST_CASE(unknown_name) {
  BOOST_CHECK_THROW((void)schedule_table({"2f2b"}, {4, 8, 1}, EqualTerms::ranks, costs_ms(1, 2, 1)), InputError);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
