// The generators against the schedules of others: DeepSeek's, PyTorch's, Megatron's, the zero-bubble authors'.
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <map>
#include <sstream>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/csv.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

std::vector<Golden> of_catalog() {
  std::vector<Golden> found;
  for (const Golden& golden : goldens()) {
    if (catalog_name(golden)) found.push_back(golden);
  }
  return found;
}

// The cells of each row as they stand in the file, without our reader: empty ones dropped, a space between the others.
std::vector<std::string> rows_of(const std::string& csv) {
  std::vector<std::string> rows;
  std::istringstream lines(csv);
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    std::string row;
    std::istringstream cells(line);
    for (std::string cell; std::getline(cells, cell, ',');) {
      if (!cell.empty()) row += (row.empty() ? "" : " ") + cell;
    }
    rows.push_back(row);
  }
  return rows;
}

// The zero-bubble authors' files are for the durations, the latency and the memory that index.csv has.
Request request_of(const Golden& golden) {
  Request request{.family = std::string(*catalog_name(golden)), .shape = {golden.ranks, golden.micro_batches}};
  if (family(request.family).takes_chunks) request.shape.chunks = golden.chunks;
  for (const auto& row : read_table("zero_bubble/index.csv")) {
    if (golden.path != "zero_bubble/" + row.at(0)) continue;
    const auto number = [&](std::size_t column) { return std::stoll(row.at(column)); };
    Costs costs = uniform(number(4), number(5), number(6), number(7));
    costs.stages[0].activation = number(8);
    costs.stages[0].weight_stash = -number(10);
    request.costs = costs;
    if (!row.at(11).empty()) request.memory_limit = MemoryLimit::micro_batches(number(11));
  }
  return request;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(generate_golden)

BOOST_AUTO_TEST_CASE(all_files_are_there) {
  std::map<std::string_view, int> files;
  for (const Golden& golden : of_catalog()) ++files[*catalog_name(golden)];
  const std::map<std::string_view, int> expected{
      {"gpipe", 3},     {"1f1b", 12},          {"interleaved", 15}, {"looped-bfs", 3}, {"zb1p", 12},
      {"zb-h2", 9},     {"interleaved-zb", 3}, {"zbv", 13},         {"1f1b-v", 9},     {"dualpipe", 4},
      {"dualpipev", 7}, {"v-half", 9},         {"v-min", 9},        {"zb-auto", 27},   {"zbv-auto", 9}};
  BOOST_TEST((files == expected));
}

BOOST_DATA_TEST_CASE(cell_for_cell, boost::unit_test::data::make(of_catalog()), golden) {
  const Schedule schedule = generate(request_of(golden));
  const auto rows = rows_of(text_of(golden.path));
  BOOST_TEST_REQUIRE(static_cast<std::size_t>(schedule.ranks()) == rows.size());
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    BOOST_TEST(text_of_rank(schedule, rank) == rows[static_cast<std::size_t>(rank)]);
  }
  // The file has no placement but the rank of each stage; the generator's must be the one read off it.
  BOOST_TEST((schedule.placement == read_schedule(golden).placement));
}

// PyTorch's interleaved zero bubble with one chunk is ZB-H1.
BOOST_AUTO_TEST_CASE(interleaved_zero_bubble_of_one_chunk_is_zb1p) {
  for (int ranks = 1; ranks <= 5; ++ranks) {
    for (int rounds = 1; rounds <= 3; ++rounds) {
      const Shape shape{ranks, std::int64_t{rounds} * ranks};
      BOOST_TEST((generate("interleaved-zb", shape).ops == generate("zb1p", shape).ops));
    }
  }
}

// What a report on Megatron-LM (issue 1829) drew for its microbatch_group_size_per_vp_stage. One group size is smaller
// than the number of ranks: that order hangs, and there is no such shape.
BOOST_AUTO_TEST_CASE(groups_as_in_megatron) {
  const Schedule schedule = generate("interleaved", {.ranks = 4, .micro_batches = 9, .chunks = 2, .group = 5});
  const auto rows = rows_of(text_of("megatron/interleaved_4ranks_9mb_v2_group5.csv"));
  BOOST_TEST_REQUIRE(rows.size() == 4);
  for (int rank = 0; rank < 4; ++rank) BOOST_TEST(text_of_rank(schedule, rank) == rows[static_cast<std::size_t>(rank)]);

  std::istringstream hanging(text_of("megatron/interleaved_4ranks_8mb_v2_group2.csv"));
  const Schedule read = std::get<Schedule>(read_csv(hanging, "group2"));
  BOOST_TEST(find_deadlock(lower(read), CommunicationModel::latency).has_value());
  BOOST_CHECK_THROW((void)generate("interleaved", {.ranks = 4, .micro_batches = 8, .chunks = 2, .group = 2}),
                    ShapeError);
}

// The first half of DualPipe's ranks is DualPipeV, its far chain read as the second half of the chain ("cut in half").
// This holds DualPipe to DeepSeek's order at shapes that no file has.
BOOST_AUTO_TEST_CASE(dualpipe_cut_in_half_is_dualpipev) {
  for (int ranks = 1; ranks <= 6; ++ranks) {
    for (int micro_batches = 2 * ranks; micro_batches <= 2 * ranks + 5; ++micro_batches) {
      const Schedule whole = generate("dualpipe", {2 * ranks, 2 * micro_batches});
      const Schedule half = generate("dualpipev", {ranks, micro_batches});
      BOOST_TEST(whole.micro_batches == half.micro_batches);
      for (int rank = 0; rank < ranks; ++rank) {
        const auto ops = whole.rank(rank);
        std::vector<Op> folded(ops.begin(), ops.end());
        for (Op& op : folded) {
          if (op.stage >= 2 * ranks) op.stage = static_cast<std::uint16_t>(op.stage - 2 * ranks);
        }
        BOOST_TEST(folded == half.rank(rank), boost::test_tools::per_element());
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
