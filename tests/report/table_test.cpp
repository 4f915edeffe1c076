// The table: its rows, its terms, its words.
#include "dualpipe/sim/report/table.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <climits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

constexpr Time ms = 1'000'000;
constexpr Bytes gb = 1'000'000'000;

Costs costs_ms(Time forward, Time backward, Time weight) {
  return uniform(forward * ms, (backward - weight) * ms, weight * ms);
}

TableRequest asked_for(const std::vector<std::string>& names, const Shape& shape, EqualTerms terms, GivenCosts costs) {
  TableRequest request;
  for (const std::string& name : names) request.schedules.push_back({name, std::nullopt});
  request.ranks = {shape.ranks};
  request.micro_batches = {shape.micro_batches};
  request.parameters = shape;
  request.terms = terms;
  request.costs = std::move(costs);
  return request;
}

ScheduleTable table_of(const std::vector<std::string>& names, const Shape& shape, EqualTerms terms, GivenCosts costs) {
  return schedule_table(asked_for(names, shape, terms, std::move(costs)));
}

std::vector<std::string> names_of(const ScheduleTable& table) {
  std::vector<std::string> names;
  for (const TableRow& row : table.rows) names.push_back(row.schedule);
  return names;
}

std::string refusal_of(TableRequest request) {
  return refusal([&] { (void)schedule_table(std::move(request)); });
}

// 4 uneven parts, with bytes.
ModelCosts uneven_model() {
  ModelCosts model;
  for (const Time forward : {4, 3, 2, 6}) {
    StageCosts part = costs_ms(forward, 2 * forward, forward).stages[0];
    part.activation = forward * gb;
    part.weight_stash = gb;
    part.parameters = 2 * forward * gb;
    model.parts.push_back(part);
  }
  return model;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(report_table)

// DeepSeek's table, for 8 stages and 20 micro-batches: 7(F+B), 7(F+B-2W), 3(F&B+B-3W), 3(F&B+B-3W).
BOOST_AUTO_TEST_CASE(deepseeks_table) {
  TableRequest request = asked_for({}, {8, 20, 1}, EqualTerms::stages, costs_ms(1, 2, 1));
  request.sort = TableSort::none;
  const ScheduleTable table = schedule_table(request);
  const std::string text = to_text(table, {.width = 110});
  BOOST_TEST(text.substr(0, text.find("\nbubble ")) ==
             R"(8 stages, 20 micro-batches
per micro-batch, of a stage: F 1 ms, B 2 ms (I 1 ms, W 1 ms),
  F&B = F + B (not measured)
communication: latency, messages take no time
memory: no bytes given

schedule   ranks  makespan  bubble  by span  activations  parameters  closed form         simulated  it holds
1f1b           8     81 ms  25.93%   25.93%         1..8          1x  (P-1)(F+B)              21 ms  yes
zb1p           8     67 ms  10.45%   10.45%         1..8          1x  (P-1)(F+B-2W)            7 ms  yes
dualpipe       8     66 ms   9.09%    9.09%            9          2x  (PP/2-1)(F&B+B-3W)       6 ms  yes
dualpipev      4    126 ms   4.76%    4.76%            9          2x  (PP/2-1)(F&B+B-3W)       6 ms  yes
)");
}

// What has no row, or a form that does not hold, is said under the table; the other rows stand.
BOOST_AUTO_TEST_CASE(notes) {
  const ScheduleTable table = table_of({"1f1b", "zb1p", "dualpipe"}, {5, 20, 1}, EqualTerms::ranks, costs_ms(1, 4, 3));
  const std::string text = to_text(table);
  BOOST_TEST(text.find("zb1p: the closed form needs W <= min(F, I): F = 1 ms, I = 1 ms, W = 3 ms\n") !=
             std::string::npos);
  BOOST_TEST(text.find("no row for dualpipe: the number of ranks must be even") != std::string::npos);
  BOOST_TEST(text.find("-4 ms") != std::string::npos);  // (P-1)(F+B-2W), where it makes no sense
  BOOST_TEST((names_of(table) == std::vector<std::string>{"zb1p", "1f1b"}));
  // A note is there once, with all whose it is; without its column it is not there.
  ModelCosts model = uneven_model();
  const ScheduleTable uneven = table_of({"1f1b", "gpipe", "zb1p"}, {4, 8, 1}, EqualTerms::ranks, model);
  BOOST_TEST(to_text(uneven).find("zb1p, 1f1b, gpipe: the closed form needs equal stages\n") != std::string::npos);
  BOOST_TEST(to_text(uneven, {.width = 80}).find("closed form needs") == std::string::npos);
}

// One model on the same ranks: with V stages per chain and rank each has 1/V of the rank's share, so that all ranks
// have as much work under each schedule.
BOOST_AUTO_TEST_CASE(equal_ranks_have_equal_work) {
  const ScheduleTable table = table_of({}, {4, 8, 2}, EqualTerms::ranks, costs_ms(2, 4, 2));
  BOOST_TEST(table.rows.size() >= 8U);
  for (const TableRow& row : table.rows) {
    BOOST_TEST_CONTEXT(row.schedule) {
      BOOST_TEST(row.ranks == 4);
      const double busy = static_cast<double>(row.makespan) * (1 - row.bubble_rate_makespan);
      BOOST_TEST(busy == 8 * 6 * ms, boost::test_tools::tolerance(1e-9));
      BOOST_TEST(row.imbalance_rate == 0);
      BOOST_TEST(row.parameters * row.share == (family(row.schedule).chains({}) == 2 ? 2 : 1));
      BOOST_TEST(*row.speedup * static_cast<double>(row.makespan) == 33.0 * 2 * ms,
                 boost::test_tools::tolerance(1e-9));  // 1F1B's: (M + P - 1)(F + B)
    }
  }
  BOOST_TEST(std::ranges::is_sorted(table.rows, {}, &TableRow::makespan));
  BOOST_TEST(table.rows[0].is_best);
  BOOST_TEST(std::ranges::count(table.rows, true, &TableRow::is_best) == 1);
}

// Uneven parts serve every row, as if the user had given the stages of each schedule.
BOOST_AUTO_TEST_CASE(rows_are_simulations_of_the_stages_that_the_parts_make) {
  const ModelCosts model = uneven_model();
  const ScheduleTable table = table_of({}, {4, 8, 2}, EqualTerms::ranks, model);
  BOOST_TEST(table.rows.size() >= 8U);
  for (const TableRow& row : table.rows) {
    BOOST_TEST_CONTEXT(row.schedule) {
      const Shape shape = as_taken_by(family(row.schedule), {4, 8, 2});
      const Program program = lower(generate({.family = row.schedule, .shape = shape, .costs = model}));
      const Costs costs = stage_costs(model, program.schedule.placement);
      const Timeline timeline = simulate(program, costs);
      BOOST_TEST(row.makespan == timeline.makespan());
      Bytes peak = 0;
      for (const RankMemory& rank : memory_of_ranks(program, costs)) peak = std::max(peak, rank.peak);
      BOOST_TEST(row.peak_memory == peak);
      double busy = 0;
      Time most = 0;
      for (const RankTimes& rank : timeline.ranks) {
        busy += static_cast<double>(rank.busy) / 4;
        most = std::max(most, rank.busy);
      }
      const auto makespan = static_cast<double>(row.makespan);
      const auto close = boost::test_tools::tolerance(1e-9);
      BOOST_TEST(row.imbalance_rate == (static_cast<double>(most) - busy) / makespan, close);
      BOOST_TEST(row.bubble_rate_makespan == row.imbalance_rate + 1 - static_cast<double>(most) / makespan, close);
      BOOST_TEST(row.idle_per_ideal == (makespan - busy) / busy, close);
    }
  }
}

BOOST_AUTO_TEST_CASE(equal_stages_or_ranks) {
  const auto rows = [](EqualTerms terms) {
    TableRequest request =
        asked_for({"1f1b", "interleaved", "dualpipe", "dualpipev"}, {8, 32, 2}, terms, costs_ms(1, 2, 1));
    request.sort = TableSort::none;
    return schedule_table(request).rows;
  };
  const auto by_stages = rows(EqualTerms::stages);
  const auto by_ranks = rows(EqualTerms::ranks);
  const int expected_ranks[] = {8, 4, 8, 4};
  const int expected_stages[] = {8, 16, 16, 16};
  for (std::size_t i = 0; i < by_stages.size(); ++i) {
    BOOST_TEST(by_stages[i].ranks == expected_ranks[i]);
    BOOST_TEST(by_ranks[i].ranks == 8);
    BOOST_TEST(by_ranks[i].stages == expected_stages[i]);
    BOOST_TEST(by_stages[i].form->holds());
    BOOST_TEST(by_stages[i].form->bubble == by_stages[i].bubble);
  }
  BOOST_TEST(refusal_of(asked_for({"dualpipev"}, {7, 32, 1}, EqualTerms::stages, costs_ms(1, 2, 1))) ==
             "no schedule can be compared:\n"
             "  dualpipev: 7 stages cannot be 2 on every rank; nearest that work: 6 or 8 stages");
}

// Megatron-LM's figure for 1F1B, idle over ideal time, is (p - 1) / m.
BOOST_AUTO_TEST_CASE(idle_over_ideal) {
  for (const int ranks : {2, 4, 8}) {
    const auto rows = table_of({"1f1b"}, {ranks, 16, 1}, EqualTerms::ranks, costs_ms(1, 2, 1)).rows;
    BOOST_TEST(rows[0].idle_per_ideal == (ranks - 1) / 16.0, boost::test_tools::tolerance(1e-12));
    BOOST_TEST(!rows[0].is_best);  // of one
  }
}

BOOST_AUTO_TEST_CASE(memory_limit) {
  Costs costs = costs_ms(1, 2, 1);
  costs.stages[0].activation = gb;
  TableRequest request = asked_for({"gpipe", "1f1b", "zb-h2"}, {4, 8, 1}, EqualTerms::ranks, costs);
  BOOST_TEST(to_text(schedule_table(request)).find("fits") == std::string::npos);
  request.memory_limit = 4 * gb;
  const ScheduleTable table = schedule_table(request);
  BOOST_TEST((names_of(table) == std::vector<std::string>{"zb-h2", "gpipe", "1f1b"}));
  BOOST_TEST(!table.rows[0].fits());
  BOOST_TEST(*table.rows[0].room == -3 * gb);
  BOOST_TEST(*table.rows[2].room == 0);
  BOOST_TEST(table.rows[2].is_best);  // not the quicker one, which does not fit
  const std::string text = to_text(table, {.bytes = ByteUnits::decimal});
  BOOST_TEST(text.find("no, 3 GB over") != std::string::npos);
  BOOST_TEST(text.find("8 micro-batches, 4 GB per rank\n") != std::string::npos);
  BOOST_TEST(to_text(table).find("no, 2.794 GiB over") != std::string::npos);
  BOOST_TEST(to_json(table).find("\"fits\": false") != std::string::npos);

  request.costs = costs_ms(1, 2, 1);
  BOOST_TEST(refusal_of(request).starts_with("a memory limit needs the bytes that it limits"));
}

// An automatic schedule keeps the limit where one of its orders can; else its row has the least that it needs.
BOOST_AUTO_TEST_CASE(memory_limit_of_automatic_schedules) {
  Costs costs = costs_ms(1, 2, 1);
  costs.stages[0].activation = costs.stages[0].weight_stash = gb;
  TableRequest request = asked_for({"zb-auto", "zbv-auto"}, {4, 12}, EqualTerms::ranks, costs);
  request.sort = TableSort::none;
  const auto rooms = [&](Bytes limit) {
    request.memory_limit = limit;
    const ScheduleTable table = schedule_table(request);
    BOOST_TEST_REQUIRE(names_of(table) == (std::vector<std::string>{"zb-auto", "zbv-auto"}));
    return std::pair(*table.rows[0].room, *table.rows[1].room);
  };
  BOOST_TEST((rooms(6 * gb) == std::pair(0 * gb, 0 * gb)));
  BOOST_TEST((rooms(2 * gb) == std::pair(0 * gb, -2 * gb)));
  BOOST_TEST((rooms(gb / 2) == std::pair(-gb / 2, -4 * gb + gb / 2)));
}

// Half of the activations, a forward more.
BOOST_AUTO_TEST_CASE(recomputation_side_by_side) {
  Costs costs = costs_ms(1, 2, 1);
  costs.stages[0].activation = 10 * gb;
  costs.stages[0].recompute = ms;
  TableRequest request = asked_for({"1f1b"}, {4, 8, 1}, EqualTerms::ranks, costs);
  BOOST_TEST(schedule_table(request).rows.size() == 1U);
  request.recompute = {Recomputation::none};
  BOOST_TEST(refusal_of(request).starts_with("to choose whether to recompute, the costs must know both"));

  std::get<Costs>(request.costs).stages[0].recompute_activation = 2 * gb;
  request.recompute = {};
  const auto rows = schedule_table(request).rows;
  BOOST_REQUIRE(rows.size() == 2);
  BOOST_TEST((rows[0].recompute == Recomputation::none));
  BOOST_TEST(rows[0].makespan == 33 * ms);
  BOOST_TEST(rows[0].peak_memory == 40 * gb);
  BOOST_TEST(rows[1].makespan == 44 * ms);
  BOOST_TEST(rows[1].peak_memory == (4 * 2 + 8) * gb);  // one of them made anew, whole
  BOOST_TEST(*rows[1].speedup == 0.75);                 // over 1F1B without
  request.recompute = {Recomputation::full};
  BOOST_TEST(schedule_table(request).rows.size() == 1U);
}

BOOST_AUTO_TEST_CASE(quantiles_over_seeds) {
  Costs costs = costs_ms(1, 2, 1);
  TableRequest request = asked_for({"1f1b"}, {4, 8, 1}, EqualTerms::ranks, costs);
  request.seeds = 40;
  BOOST_TEST(refusal_of(request).starts_with("several seeds need jitter"));
  costs.jitter = 0.2;
  costs.seed = 5;
  request.costs = costs;
  const Program program = lower(generate("1f1b", {4, 8}));
  std::vector<Time> makespans;
  for (int i = 0; i < 40; ++i, ++costs.seed) makespans.push_back(simulate(program, costs).makespan());
  std::ranges::sort(makespans);
  const Quantiles quantiles = *schedule_table(request).rows[0].makespans;
  BOOST_TEST(quantiles.low == makespans[1]);
  BOOST_TEST(quantiles.median == makespans[19]);
  BOOST_TEST(quantiles.high == makespans[37]);
  // 40 / 2 +- 0.98 sqrt(40): the 13th and the 28th.
  BOOST_TEST(quantiles.median_least == makespans[12]);
  BOOST_TEST(quantiles.median_most == makespans[27]);
}

BOOST_AUTO_TEST_CASE(who_wins_in_how_many_runs) {
  Costs costs = costs_ms(10, 20, 10);
  costs.jitter = 0.3;
  TableRequest request = asked_for({"zb1p", "interleaved", "1f1b"}, {4, 8, 2}, EqualTerms::ranks, costs);
  request.seeds = 60;
  request.straggler = 0.9;
  std::map<std::string, double> wins;
  double all = 0;
  for (const TableRow& row : schedule_table(request).rows) all += wins[row.schedule] = *row.win_rate;
  BOOST_TEST(all == 1, boost::test_tools::tolerance(1e-12));
  // The same, run by run: the straggler of a seed is one for all, and so none of 4 in a row is never it.
  std::map<std::string, double> counted;
  std::set<Time> distinct;
  for (int seed = 0; seed < 60; ++seed) {
    TableRequest one = request;
    Costs of_seed = costs;
    of_seed.seed = static_cast<std::uint64_t>(seed);
    one.costs = of_seed;
    one.seeds = 1;
    const auto rows = schedule_table(one).rows;  // the shortest first
    counted[rows[0].schedule] += 1.0 / 60;
    distinct.insert(rows[0].makespans->median);
  }
  for (const auto& [schedule, rate] : counted) BOOST_TEST(wins[schedule] == rate, boost::test_tools::tolerance(1e-9));
  BOOST_TEST(distinct.size() > 50U);
  // A straggler in every run: nothing is as short as without.
  request.straggler.reset();
  const Time without = schedule_table(request).rows[0].makespans->median;
  request.straggler = 0.5;
  BOOST_TEST(schedule_table(request).rows[0].makespans->low > without);
  request.straggler = 0;
  BOOST_TEST(refusal_of(request).starts_with("the straggler: a speed must be"));
}

BOOST_AUTO_TEST_CASE(tokens_and_flops) {
  TableRequest request = asked_for({"1f1b"}, {4, 8, 1}, EqualTerms::ranks, costs_ms(1, 2, 1));
  request.tokens = 1000;
  request.flops = 3e9;
  request.peak_flops = 1e12;
  const TableRow row = schedule_table(request).rows[0];  // 33 ms
  BOOST_TEST(*row.tokens_per_second == 8000 / 0.033, boost::test_tools::tolerance(1e-12));
  BOOST_TEST(*row.flops_utilization == 8 * 3e9 / (0.033 * 4 * 1e12), boost::test_tools::tolerance(1e-12));
}

// A row for each pair of counts; those of a pair stand together, each beside its own 1F1B.
BOOST_AUTO_TEST_CASE(several_shapes_and_a_file) {
  TableRequest request = asked_for({"zb1p", "dualpipe"}, {}, EqualTerms::ranks, costs_ms(1, 2, 1));
  request.ranks = {2, 3};
  request.micro_batches = {4, 8};
  request.schedules.push_back({"mine.csv", lower(generate("gpipe", {2, 8}))});
  const ScheduleTable table = schedule_table(request);
  std::string rows;
  for (const TableRow& row : table.rows) {
    rows += row.schedule + " " + std::to_string(row.ranks) + " " + std::to_string(row.micro_batches) + "\n";
    BOOST_TEST(row.speedup.has_value());
  }
  BOOST_TEST(rows == "dualpipe 2 4\nzb1p 2 4\ndualpipe 2 8\nzb1p 2 8\nmine.csv 2 8\nzb1p 3 4\nzb1p 3 8\n");
  BOOST_TEST(table.left_out.size() == 2U);
  BOOST_TEST(table.left_out[0].schedule == "dualpipe");
  BOOST_TEST(to_text(table).starts_with("one model on 2 or 3 ranks, 4 or 8 micro-batches\n"));
}

BOOST_AUTO_TEST_CASE(sorted_by) {
  Costs costs = costs_ms(1, 2, 1);
  costs.stages[0].activation = gb;
  TableRequest request = asked_for({"gpipe", "zb-h2", "1f1b"}, {4, 8, 1}, EqualTerms::ranks, costs);
  const auto sorted = [&](TableSort sort) {
    request.sort = sort;
    return names_of(schedule_table(request));
  };
  BOOST_TEST((sorted(TableSort::none) == std::vector<std::string>{"gpipe", "zb-h2", "1f1b"}));
  BOOST_TEST((sorted(TableSort::makespan) == std::vector<std::string>{"zb-h2", "gpipe", "1f1b"}));
  BOOST_TEST((sorted(TableSort::memory) == std::vector<std::string>{"1f1b", "zb-h2", "gpipe"}));
  BOOST_TEST((sorted(TableSort::bubble) == std::vector<std::string>{"zb-h2", "gpipe", "1f1b"}));
}

// A given cut is for one number of stages; what has another has no row.
BOOST_AUTO_TEST_CASE(a_cut_leaves_out_what_it_does_not_fit) {
  ModelCosts model = uneven_model();
  model.cut = {1, 2, 1};
  const ScheduleTable table = table_of({"1f1b", "interleaved"}, {3, 6, 2}, EqualTerms::ranks, model);
  BOOST_TEST((names_of(table) == std::vector<std::string>{"1f1b"}));
  BOOST_TEST(table.left_out[0].reason.find("cut for 3 stages") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(no_line_is_wider_than_the_terminal) {
  TableRequest request = asked_for({}, {8, 20, 2}, EqualTerms::ranks, uneven_model());
  request.memory_limit = 40 * gb;
  const ScheduleTable table = schedule_table(request);
  for (const std::size_t width : {80U, 100U, 120U}) {
    const std::string text = to_text(table, {.width = width});
    for (std::size_t begin = 0; begin < text.size(); begin = text.find('\n', begin) + 1) {
      const std::string line = text.substr(begin, text.find('\n', begin) - begin);
      BOOST_TEST(display_width(line) <= width, line);
    }
    BOOST_TEST(text.find("vs 1f1b") != std::string::npos);
    BOOST_TEST(text.find("  fits") != std::string::npos);
  }
  BOOST_TEST(to_text(table, {.width = 1000}) == to_text(table));
}

BOOST_AUTO_TEST_CASE(markdown_csv_json) {
  const ScheduleTable table = table_of({"zb-h2", "dualpipe"}, {3, 9, 1}, EqualTerms::stages, costs_ms(2, 3, 1));
  BOOST_TEST(to_markdown(table).find("| zb-h2 ") != std::string::npos);
  BOOST_TEST(to_markdown(table).find("- no row for dualpipe") != std::string::npos);
  BOOST_TEST(to_html(table).find("<td style=\"text-align: left\">zb-h2</td>") != std::string::npos);
  BOOST_TEST(to_html(table).find("<li>no row for dualpipe") != std::string::npos);

  const std::string csv = to_csv(table);
  // (P-1)(F+B-3W) = 2 * 2 ms, by span.
  BOOST_TEST(csv.find("\nzb-h2,3,3,9,,(P-1)(F+B-3W),span,4000000,4000000,yes,") != std::string::npos);

  const auto json = nlohmann::json::parse(to_json(table));
  BOOST_TEST(json["equal"] == "stages");
  BOOST_TEST(json["stages"][0] == 3);
  BOOST_TEST(json["microbatches"][0] == 9);
  BOOST_TEST(json["costs"]["stages"][0]["forward_ns"] == 2 * ms);
  BOOST_REQUIRE(json["rows"].size() == 1);
  const auto& row = json["rows"][0];
  BOOST_TEST(row["closed_form"]["holds"] == true);
  BOOST_TEST(row["closed_form"]["by"] == "span");
  BOOST_TEST(row["bubble_ns"] == 4 * ms);
  BOOST_TEST(row["bubble"].get<double>() == table.rows[0].bubble_rate_makespan);
  BOOST_TEST(row["makespan_ns"] == table.rows[0].makespan);
  BOOST_TEST(row["ranks"] == 3);
  BOOST_TEST(row["peak_memory_bytes"] == 0);
  BOOST_TEST(row["fits"].is_null());
  BOOST_TEST(json["left_out"][0]["schedule"] == "dualpipe");
  BOOST_TEST(json["left_out"][0]["reason"].get<std::string>().find("must be even") != std::string::npos);
}

// Each would divide by 0, or count past the largest number.
BOOST_AUTO_TEST_CASE(counts_that_no_schedule_has) {
  for (const Shape& shape : {Shape{4, 8, 0}, Shape{0, 8, 2}, Shape{INT_MAX, 8, 2}, Shape{4, 8, INT_MIN}}) {
    const auto request = asked_for({"interleaved"}, shape, EqualTerms::stages, costs_ms(1, 2, 1));
    BOOST_TEST(refusal_of(request).find("must be between 1 and 65535") != std::string::npos);
  }
}

BOOST_AUTO_TEST_CASE(unknown_name) {
  BOOST_CHECK_THROW((void)table_of({"2f2b"}, {4, 8, 1}, EqualTerms::ranks, costs_ms(1, 2, 1)), InputError);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
