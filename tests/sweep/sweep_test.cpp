// A sweep's lines are what evaluate() finds for each point, in order, whatever the threads; shards merged, and a run
// that was interrupted anywhere and resumed, are the same bytes; what is not whole is refused with what is missing.
#include "dualpipe/sim/sweep/sweep.h"

#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "dualpipe/sim/evaluate/draws.h"
#include "dualpipe/sim/evaluate/evaluate.h"
#include "dualpipe/sim/options/sweep_options.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/sweep/sweep_file.h"
#include "tests/scratch.h"
#include "tests/support.h"
#include "tests/thinned.h"

namespace dualpipe::test {
namespace {

using Json = nlohmann::json;

SweepGrid small_grid() {
  SweepGrid grid;
  grid.schedules = {"1f1b", "interleaved", "zb1p", "zb-auto", "dualpipe"};
  grid.ranks = {2, 4};
  grid.micro_batches = {8, 10};
  grid.parameters.resize(parameters().size());
  grid.parameters[0] = {2, 3};
  Costs costs = uniform(1'000'000, 900'000, 600'000, 30'000, 2'000'000);
  costs.stages[0].activation = 1 << 20;
  costs.stages[0].parameters = 1 << 24;
  costs.stages[0].message = 1 << 18;
  costs.stages[0].recompute = 500'000;
  costs.stages[0].recompute_activation = 1 << 18;
  costs.bandwidth = 1e10;
  grid.costs = costs;
  grid.axes = {{"latency", {"0", "50us"}},
               {"memory-limit", {"40MB", "1GB"}},
               {"comm", {"latency", "links", "stream"}},
               {"forward", {"1x", "1.5x"}}};
  grid.tokens = 4096;
  return grid;
}

std::string all_lines(const Sweep& sweep, unsigned threads, const SweepShard& shard = {}, std::size_t begin = 0) {
  std::string lines;
  sweep.run(shard, begin, threads, [&](std::string_view some, std::size_t) { lines += some; });
  return lines;
}

std::vector<Json> parsed(const std::string& lines) {
  std::vector<Json> rows;
  std::istringstream in(lines);
  for (std::string line; std::getline(in, line);) rows.push_back(Json::parse(line));
  return rows;
}

void write(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

std::string merged(const std::vector<std::string>& paths) {
  std::string text;
  merge_sweep_files(paths, [&](std::string_view line) { text += line; });
  return text;
}

BOOST_AUTO_TEST_SUITE(sweep_sweep)

BOOST_AUTO_TEST_CASE(each_line_is_what_evaluate_finds) {
  const Sweep sweep(small_grid());
  const std::vector<Json> rows = parsed(all_lines(sweep, 2));
  BOOST_TEST_REQUIRE(rows.size() == sweep.size());
  // Interleaved alone takes chunks, and comes twice: 6 variants, 4 places, 24 combinations.
  BOOST_TEST(sweep.size() == 6U * 4U * 24U);
  std::size_t figures = 0;
  Thinned thinned(7);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Json& row = rows[i];
    BOOST_TEST_REQUIRE(row["point"] == i);
    if (!thinned.next()) continue;
    BOOST_TEST_CONTEXT(row.dump()) {
      const Request request = sweep.request(i);
      BOOST_TEST(row["schedule"] == request.family);
      BOOST_TEST(row["ranks"] == request.shape.ranks);
      BOOST_TEST(row["microbatches"] == request.shape.micro_batches);
      BOOST_TEST(machine_of(request.costs).latency == (row["latency"] == "0" ? 0 : 50'000));
      std::string reason;
      try {
        const Evaluation expected = evaluate(request);
        BOOST_TEST(row["makespan_ns"] == expected.timeline.makespan());
        BOOST_TEST(row["span_ns"] == expected.timeline.span());
        BOOST_TEST(row["bubble_rate_span"] == expected.timeline.bubble_rate_span());
        BOOST_TEST(row["peak_memory_bytes"] == expected.peak_memory());
        BOOST_TEST(row["fits"] == (expected.peak_memory() <= request.memory_limit->amount));
        BOOST_TEST(row["tokens_per_second"].get<double>() == 4096e9 * static_cast<double>(request.shape.micro_batches) /
                                                                 static_cast<double>(expected.timeline.makespan()),
                   boost::test_tools::tolerance(1e-12));
        ++figures;
      } catch (const InputError& error) {
        reason = error.what();
      }
      BOOST_TEST(row.value("left_out", "") == reason);
    }
  }
  BOOST_TEST(figures > rows.size() / (slow ? 14 : 2));
}

// Of a schedule in a file there are points in its own shape alone, and their figures are those of the same schedule in
// the catalog.
BOOST_AUTO_TEST_CASE(schedules_of_files) {
  SweepGrid grid = small_grid();
  grid.files = {{"some.csv", generate("zb1p", {.ranks = 4, .micro_batches = 8})},
                {"sent.json", lower(generate("interleaved", {.ranks = 2, .micro_batches = 10, .chunks = 2}))}};
  grid.schedules = {"zb1p", "some.csv", "interleaved", "sent.json"};
  grid.parameters[0] = {2};
  const Sweep sweep(grid);
  BOOST_TEST_REQUIRE(sweep.size() == (2U * 4U + 2U) * 24U);
  const std::string lines = all_lines(sweep, 2);
  std::map<std::string, std::vector<Json>> rows;
  for (Json& row : parsed(lines)) {
    const std::string name = row["schedule"];
    const bool has_place = name.starts_with('s') || (name == "zb1p" ? row["ranks"] == 4 && row["microbatches"] == 8
                                                                    : row["ranks"] == 2 && row["microbatches"] == 10);
    for (const char* const key : {"point", "schedule", "chunks"}) row.erase(key);
    if (has_place) rows[name].push_back(row);
  }
  BOOST_TEST_REQUIRE(rows["some.csv"].size() == 24U);
  BOOST_TEST((rows["some.csv"] == rows["zb1p"]));
  BOOST_TEST((rows["sent.json"] == rows["interleaved"]));
  // The grid has them with it.
  const SweepGrid again = grid_of_json(to_json_line(grid), "grid");
  BOOST_TEST((again == grid));
  BOOST_TEST((Sweep(again).header() == sweep.header()));
  BOOST_TEST((all_lines(Sweep(again), 1) == lines));
  BOOST_TEST((sweep.run_of(48).program->schedule == generate("zb1p", {.ranks = 2, .micro_batches = 10})));
}

BOOST_AUTO_TEST_CASE(shapes_of_files) {
  SweepGrid grid = small_grid();
  grid.files = {{"a.json", generate("1f1b", {.ranks = 4, .micro_batches = 8})},
                {"b.json", generate("gpipe", {.ranks = 4, .micro_batches = 8})},
                {"c.json", generate("gpipe", {.ranks = 3, .micro_batches = 5})}};
  grid.schedules = {"a.json", "1f1b", "b.json", "c.json"};
  const auto says = [&] { return refusal([&] { const Sweep sweep(grid); }); };
  BOOST_TEST(says() ==
             "c.json has 3 ranks and 5 micro-batches, a shape that this sweep does not go through; add it to "
             "the ranks and the micro-batches, or leave the file out");
  grid.ranks.clear();
  BOOST_TEST(says() == "ranks: it has no values");
  grid.micro_batches.clear();
  BOOST_TEST(Sweep(grid).size() == 24U * (3U + 2U));
  std::get<Schedule>(grid.files[1].schedule).ops.pop_back();
  std::get<Schedule>(grid.files[1].schedule).rank_begin.back() -= 1;
  BOOST_TEST(says().starts_with("the schedule 'b.json' is not valid: rank 3"));
}

BOOST_AUTO_TEST_CASE(ranks_of_other_speeds) {
  SweepGrid grid = small_grid();
  grid.schedules = {"zb1p"};
  grid.ranks = {4};
  grid.micro_batches = {8};
  grid.axes = {{"speed", {"1", "0.5@1", "1-1-0.25-1", "0.5", "0.5@4", "1-1"}}};
  const std::vector<Json> rows = parsed(all_lines(Sweep(grid), 1));
  const auto makespan = [&](const std::vector<double>& speed) {
    GivenCosts costs = grid.costs;
    std::get<Costs>(costs).speed = speed;
    return evaluate({.family = "zb1p", .shape = {.ranks = 4, .micro_batches = 8}, .costs = costs}).timeline.makespan();
  };
  BOOST_TEST_REQUIRE(rows.size() == 6U);
  BOOST_TEST(rows[0]["makespan_ns"] == makespan({}));
  BOOST_TEST(rows[1]["makespan_ns"] == makespan({1, 0.5, 1, 1}));
  BOOST_TEST(rows[2]["makespan_ns"] == makespan({1, 1, 0.25, 1}));
  BOOST_TEST(rows[3]["makespan_ns"] == makespan({0.5, 0.5, 0.5, 0.5}));
  BOOST_TEST(rows[4]["left_out"] == "speed 0.5@4: there is no rank 4, of 4");
  BOOST_TEST(rows[5]["left_out"].get<std::string>().starts_with("speeds are given for 2 ranks"));

  grid.axes = {{"seed", {"7", "8", "9", "10", "11", "12"}}, {"straggler", {"1", "0.5"}}};
  const std::vector<Json> drawn = parsed(all_lines(Sweep(grid), 2));
  std::set<std::size_t> stragglers;
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    const std::size_t rank = straggler_of(7 + i / 2, 4);
    stragglers.insert(rank);
    std::vector<double> speed(4, 1);
    if (i % 2 == 1) speed[rank] = 0.5;
    BOOST_TEST(drawn[i]["makespan_ns"] == makespan(speed));
  }
  BOOST_TEST(stragglers.size() > 1U);
}

BOOST_AUTO_TEST_CASE(points_differ_and_have_every_value) {
  const Sweep sweep(small_grid());
  std::set<std::string> distinct;
  for (Json row : parsed(all_lines(sweep, 1))) {
    Json asked;
    for (const char* const key :
         {"schedule", "ranks", "microbatches", "chunks", "latency", "memory-limit", "comm", "forward"}) {
      asked[key] = row.value(key, Json());
    }
    BOOST_TEST(distinct.insert(asked.dump()).second);
  }
}

BOOST_AUTO_TEST_CASE(threads_and_blocks_change_nothing) {
  const Sweep sweep(small_grid());
  const std::string expected = all_lines(sweep, 1);
  for (const unsigned threads : {2U, 3U, 8U}) BOOST_TEST((all_lines(sweep, threads) == expected));
  BOOST_TEST((sweep.lines({}, 0, 100) + all_lines(sweep, 2, {}, 100) == expected));
}

// Whoever cannot take any more lines ends the sweep: no thread waits for a turn that never comes, and what the others
// have found is not handed on.
BOOST_AUTO_TEST_CASE(what_take_throws_ends_it) {
  const Sweep sweep(small_grid());
  for (const unsigned threads : {1U, 2U, 8U}) {
    for (std::size_t calls_max = 0; calls_max < 18; calls_max += 3) {
      std::size_t calls = 0;
      const auto take = [&](std::string_view, std::size_t) {
        if (calls++ == calls_max) throw InputError("full");
      };
      BOOST_CHECK_THROW(sweep.run({}, 0, threads, take), InputError);
      BOOST_TEST(calls == calls_max + 1);
    }
  }
}

BOOST_AUTO_TEST_CASE(the_grid_reads_back_from_the_header) {
  SweepGrid grid = small_grid();
  const Sweep sweep(grid);
  const std::string header = sweep.header({2, 5});
  const SweepHeader parsed_header = parse_sweep_header(header.substr(0, header.size() - 1), "header");
  BOOST_TEST(parsed_header.points == sweep.size());
  BOOST_TEST((parsed_header.shard == SweepShard{2, 5}));
  BOOST_TEST((grid_of_json(parsed_header.grid, "header") == grid));
}

BOOST_AUTO_TEST_CASE(shards_merge_to_the_same_bytes) {
  const Scratch scratch;
  const Sweep sweep(small_grid());
  const std::string whole = sweep.header() + all_lines(sweep, 2);
  for (const std::size_t count : {1U, 2U, 5U}) {
    std::vector<std::string> paths;
    for (std::size_t index = count; index >= 1; --index) {  // in any order
      paths.push_back(scratch / ("shard" + std::to_string(index)));
      write_sweep_file(paths.back(), sweep, {.shard = {index, count}, .threads = 2});
    }
    BOOST_TEST((merged(paths) == whole));
  }
  write_sweep_file(scratch / "whole", sweep, {});
  BOOST_TEST((bytes_of(scratch / "whole") == whole));
}

BOOST_AUTO_TEST_CASE(merge_names_what_is_missing_or_there_twice) {
  const Scratch scratch;
  const Sweep sweep(small_grid());
  std::vector<std::string> paths;
  for (std::size_t index = 1; index <= 4; ++index) {
    paths.push_back(scratch / ("s" + std::to_string(index) + ".jsonl"));
    write_sweep_file(paths.back(), sweep, {.shard = {index, 4}});
  }
  const auto says = [](const std::vector<std::string>& files) { return refusal([&] { (void)merged(files); }); };
  BOOST_TEST(says({paths[0], paths[2], paths[3]}) ==
             "144 of 576 points are missing: 1, 5, 9, 13, 17, …; run again: --shard 2/4");
  BOOST_TEST(says({paths[2]}).ends_with("run again: --shard 1/4, --shard 2/4, --shard 4/4"));
  BOOST_TEST(says({paths[0], paths[1], paths[2], paths[3], paths[1]}) ==
             "point 1 is in " + paths[1] + " and in " + paths[1] + "; leave one of them out");
  const std::string torn = scratch / "torn.jsonl";
  const std::string text = bytes_of(paths[1]);
  write(torn, text.substr(0, text.size() - 10));
  BOOST_TEST(says({paths[0], torn}).find("ends within a line") != std::string::npos);
  write(torn, text.substr(0, text.find("{\"point\":21,")));
  BOOST_TEST(says({paths[0], torn, paths[2], paths[3]}).find("run again: --shard 2/4") != std::string::npos);
  SweepGrid other = small_grid();
  other.axes[0].values[1] = "60us";
  write_sweep_file(torn, Sweep(other), {.shard = {2, 4}});
  BOOST_TEST(says({paths[0], torn}) == torn + ": it is of another sweep than " + paths[0] + "; they differ in: axes");
  write(torn, "{\"traceEvents\": []}\n");
  BOOST_TEST(says({torn}).find("no file of a sweep") != std::string::npos);
  write(torn, "");
  BOOST_TEST(says({torn}) == torn + ": it is empty");
}

BOOST_AUTO_TEST_CASE(resumes_after_any_byte) {
  const Scratch scratch;
  SweepGrid grid = small_grid();
  grid.schedules = {"1f1b"};
  grid.ranks = {2};
  const Sweep sweep(grid);
  const std::string path = scratch / "sweep.jsonl";
  const SweepFileOptions options{.shard = {2, 3}, .threads = 1, .resume = true};
  write_sweep_file(path, sweep, options);
  const std::string whole = bytes_of(path);
  std::filesystem::remove(path);
  Thinned thinned(13);
  for (std::size_t size = 0; size <= whole.size(); size += 7) {
    if (!thinned.next()) continue;
    // What a disk may leave of the last line.
    for (const std::string& rest : {std::string(), std::string(5, '\0')}) {
      write(path + ".partial", whole.substr(0, size) + rest);
      if (size + rest.size() < sweep.header({2, 3}).size() || rest.empty() || size > sweep.header({2, 3}).size()) {
        write_sweep_file(path, sweep, options);
        BOOST_TEST((bytes_of(path) == whole));
        BOOST_TEST(scratch.files().size() == 1U);
      }
      std::filesystem::remove(path);
      std::filesystem::remove(path + ".partial");
    }
  }
}

BOOST_AUTO_TEST_CASE(what_is_not_its_own_is_left_alone) {
  const Scratch scratch;
  const std::string path = scratch / "sweep.jsonl";
  const Sweep sweep(small_grid());
  write(path + ".partial", sweep.header({1, 2}));
  const auto says = [&](const SweepFileOptions& options) {
    return refusal([&] { write_sweep_file(path, sweep, options); });
  };
  BOOST_TEST(says({.resume = false}).find("--resume goes on with it") != std::string::npos);
  BOOST_TEST(says({.resume = true}).find("of another sweep") != std::string::npos);
  BOOST_TEST(bytes_of(path + ".partial") == sweep.header({1, 2}));
  std::filesystem::remove(path + ".partial");
  BOOST_TEST(refusal([&] { write_sweep_file(scratch / "no/such", sweep, {}); }).find("No such file") !=
             std::string::npos);
  // Of a run that is complete there is nothing to do.
  write_sweep_file(path, sweep, {});
  std::size_t told = 0;
  write_sweep_file(path, sweep, {.resume = true}, [&](std::size_t done) { told += done; });
  BOOST_TEST(told == sweep.size());
}

BOOST_AUTO_TEST_CASE(grids_that_cannot_be_are_refused) {
  const auto says = [](auto change) {
    SweepGrid grid = small_grid();
    change(grid);
    return refusal([&] { const Sweep sweep(grid); });
  };
  const auto with_axis = [&](SweepAxis axis) {
    return says([&](SweepGrid& grid) { grid.axes.push_back(std::move(axis)); });
  };
  BOOST_TEST(says([](SweepGrid& grid) { grid.ranks = {}; }) == "ranks: it has no values");
  BOOST_TEST(says([](SweepGrid& grid) { grid.ranks = {2, 2}; }) == "ranks: 2 is there twice");
  BOOST_TEST(says([](SweepGrid& grid) { grid.schedules = {"1f1bb"}; }).find("did you mean 1f1b") != std::string::npos);
  BOOST_TEST(with_axis({"latence", {"1us"}}).find("did you mean latency") != std::string::npos);
  BOOST_TEST(with_axis({"latency", {"1us"}}) == "latency: it varies twice");
  BOOST_TEST(with_axis({"launch", {"1us", "soon"}}).find("launch: 'soon'") != std::string::npos);
  BOOST_TEST(with_axis({"recompute", {"half"}}).find("neither none nor full") != std::string::npos);
  BOOST_TEST(with_axis({"cut", {"1-0"}}) != "");
  for (const char* const text : {"0", "-1", "0.9@", "@3", "0.9@x", "1--1", "1-0-1", "fast", "nan", "1@99999999"}) {
    BOOST_TEST(with_axis({"speed", {text}}) != "", text);
  }
  BOOST_TEST(with_axis({"speed", {"1", "fast"}}) ==
             "speed: 'fast' cannot be read; a finite decimal number is expected");
  BOOST_TEST(with_axis({"straggler", {"0"}}) == "straggler: a speed must be from 1e-6 to 1e6; 0 is not");
  std::vector<std::string> many(100'000);
  for (std::size_t i = 0; i < many.size(); ++i) many[i] = std::to_string(i) + "ns";
  SweepAxis launches{"launch", many};
  SweepAxis weights{"weight", many};
  BOOST_TEST(says([&](SweepGrid& grid) {
               grid.axes = {launches, weights};
             }).find("more than 1000000000 points") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(csv_has_a_cell_for_each_column) {
  const Sweep sweep(small_grid());
  BOOST_TEST(csv_header(sweep.columns()).starts_with("point,schedule,ranks,microbatches,chunks,latency,"));
  BOOST_TEST(csv_row({"point", "schedule", "chunks", "fits", "x", "left_out"},
                     R"({"point":3,"schedule":"1f1b","fits":false,"x":0.25,"left_out":"a \"b\", c"})") ==
             "3,1f1b,,no,0.25,\"a \"\"b\"\", c\"\n");
}

BOOST_AUTO_TEST_CASE(a_task_of_a_slurm_array_is_a_shard) {
  static std::vector<std::pair<std::string, std::string>> variables;
  const auto value_of = [](const char* name) -> const char* {
    for (const auto& [key, value] : variables) {
      if (key == name) return value.c_str();
    }
    return nullptr;
  };
  variables = {};
  BOOST_TEST((shard_of_environment(value_of) == SweepShard{}));
  variables = {{"SLURM_ARRAY_TASK_ID", "7"},
               {"SLURM_ARRAY_TASK_MIN", "5"},
               {"SLURM_ARRAY_TASK_COUNT", "4"},
               {"SLURM_ARRAY_TASK_MAX", "8"}};
  BOOST_TEST((shard_of_environment(value_of) == SweepShard{3, 4}));
  variables[3].second = "11";  // --array=5-11:2
  BOOST_TEST(refusal([&] { (void)shard_of_environment(value_of); }).find("--array=1-N") != std::string::npos);
  variables[0].second = "x";
  BOOST_TEST(refusal([&] { (void)shard_of_environment(value_of); }).starts_with("SLURM_ARRAY_TASK_ID: 'x'"));
  BOOST_TEST((parse_shard("2/8") == SweepShard{2, 8}));
  for (const char* const text : {"", "0/4", "5/4", "1/", "/4", "1/0", "-1/4", "1/4x", "one/4"}) {
    BOOST_TEST(refusal([&] { (void)parse_shard(text); }) != "");
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
