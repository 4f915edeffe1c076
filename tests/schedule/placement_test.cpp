#include "dualpipe/sim/schedule/placement.h"

#include <boost/test/unit_test.hpp>
#include <functional>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/op.h"
#include "tests/scratch.h"

namespace dualpipe {

using test::refusal;

namespace {

using Numbers = std::vector<std::uint16_t>;

// The error of the two-way placement on two ranks (stages 0 1 | 2 3) after a change for the worse.
std::string refusal_after(const std::function<void(Placement&)>& change) {
  Placement placement = two_way(2);
  change(placement);
  return refusal([&] { check(placement); });
}

BOOST_AUTO_TEST_SUITE(schedule_placement)

BOOST_AUTO_TEST_CASE(straight_repeats_the_ranks) {
  const Placement placement = straight(4, 2);
  BOOST_TEST(placement.rank_of == Numbers({0, 1, 2, 3, 0, 1, 2, 3}));
  BOOST_TEST(placement.chain_begin == Numbers({0, 8}));
  BOOST_TEST(placement.weights_of == Numbers({0, 1, 2, 3, 4, 5, 6, 7}));
  BOOST_TEST(placement.ranks == 4);
  BOOST_TEST(placement.stages_on(1) == std::vector<int>({1, 5}));
  BOOST_TEST(placement.sharers_of(1) == std::vector<int>({1}));
}

BOOST_AUTO_TEST_CASE(v_shape_turns_on_the_last_rank) {
  const Placement placement = v_shape(4);
  BOOST_TEST(placement.rank_of == Numbers({0, 1, 2, 3, 3, 2, 1, 0}));
  BOOST_TEST(placement.chains() == 1);
  BOOST_TEST(placement.stages_on(3) == std::vector<int>({3, 4}));
}

BOOST_AUTO_TEST_CASE(two_way_holds_every_layer_twice) {
  const Placement placement = two_way(4);
  BOOST_TEST(placement.rank_of == v_shape(4).rank_of);
  BOOST_TEST(placement.chain_begin == Numbers({0, 4, 8}));
  BOOST_TEST(placement.weights_of == Numbers({0, 1, 2, 3, 0, 1, 2, 3}));
  BOOST_TEST(placement.sharers_of(1) == std::vector<int>({1, 5}));
  BOOST_TEST(placement.sharers_of(5) == std::vector<int>({1, 5}));
  BOOST_TEST(placement.chains() == 2);
}

BOOST_AUTO_TEST_CASE(a_wave_goes_down_and_up_again) {
  BOOST_TEST((wave(4, 1) == v_shape(4)));
  BOOST_TEST(wave(3, 2).rank_of == Numbers({0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0}));
  BOOST_TEST(wave(3, 2).chains() == 1);
}

BOOST_AUTO_TEST_CASE(replicas_start_ranks_apart) {
  BOOST_TEST((two_way(4, 1) == two_way(4)));
  const Placement placement = two_way(4, 2);
  BOOST_TEST(placement.rank_of == Numbers({0, 1, 2, 3, 2, 3, 0, 1, 3, 2, 1, 0, 1, 0, 3, 2}));
  BOOST_TEST(placement.chain_begin == Numbers({0, 4, 8, 12, 16}));
  BOOST_TEST(placement.sharers_of(1) == std::vector<int>({1, 5, 9, 13}));
  BOOST_TEST(placement.stages_on(0) == std::vector<int>({0, 6, 11, 13}));
}

BOOST_AUTO_TEST_CASE(neighbours_end_at_the_chain) {
  const Placement placement = two_way(2);  // stages 0 1 | 2 3
  const std::vector<int> chain_of = {0, 0, 1, 1};
  const std::vector<std::optional<int>> previous = {std::nullopt, 0, std::nullopt, 2};
  const std::vector<std::optional<int>> next = {1, std::nullopt, 3, std::nullopt};
  for (int stage = 0; stage < placement.stages(); ++stage) {
    const auto s = static_cast<std::size_t>(stage);
    BOOST_TEST(placement.chain_of(stage) == chain_of[s]);
    BOOST_TEST((placement.previous(stage) == previous[s]), "stage " << stage);
    BOOST_TEST((placement.next(stage) == next[s]), "stage " << stage);
  }
}

BOOST_AUTO_TEST_CASE(well_formed_placements_pass) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    check(v_shape(ranks));
    check(two_way(ranks));
    for (int chunks = 1; chunks <= 4; ++chunks) check(straight(ranks, chunks));
  }
  check(straight(static_cast<int>(stage_count_max), 1));
  check(straight(1, static_cast<int>(stage_count_max)));
  check(two_way(static_cast<int>(stage_count_max) / 2));
}

BOOST_AUTO_TEST_CASE(sizes_out_of_range_are_refused) {
  const int too_many = static_cast<int>(stage_count_max) + 1;
  BOOST_CHECK_THROW(static_cast<void>(straight(0, 1)), InputError);
  BOOST_CHECK_THROW(static_cast<void>(straight(1, 0)), InputError);
  BOOST_CHECK_THROW(static_cast<void>(straight(-1, -1)), InputError);
  BOOST_CHECK_THROW(static_cast<void>(straight(too_many, 1)), InputError);
  BOOST_CHECK_THROW(static_cast<void>(straight(2'000'000'000, 2'000'000'000)), InputError);
  BOOST_CHECK_THROW(static_cast<void>(v_shape(too_many / 2)), InputError);
  BOOST_CHECK_THROW(static_cast<void>(two_way(too_many / 2)), InputError);
  BOOST_CHECK_THROW(static_cast<void>(one_chain({})), InputError);
  BOOST_CHECK_THROW(static_cast<void>(one_chain(std::vector{0, -1})), InputError);
  BOOST_CHECK_THROW(static_cast<void>(one_chain(std::vector{0, 65'535})), InputError);
}

BOOST_AUTO_TEST_CASE(check_names_what_does_not_fit) {
  const auto refused = refusal_after;
  BOOST_TEST(refused([](Placement& p) { p.ranks = 0; }) == "a placement on 0 ranks: there must be 1 to 65535");
  BOOST_TEST(refused([](Placement& p) { p.ranks = 1; }) == "stage 1 is on rank 1, but there are only ranks 0 to 0");
  BOOST_TEST(refused([](Placement& p) { p.ranks = 3; }) == "rank 2 holds no stage; each rank must hold one");
  BOOST_TEST(refused([](Placement& p) { p = {}; }) == "a placement of 0 stages: there must be 1 to 65535");
  BOOST_TEST(refused([](Placement& p) { p.chain_begin = {}; }) ==
             "a placement without chains: there must be at least one");
  BOOST_TEST(refused([](Placement& p) { p.chain_begin = {1, 4}; }) == "the first chain begins at stage 1 instead of 0");
  BOOST_TEST(refused([](Placement& p) {
               p.chain_begin = {0, 2, 2, 4};
             }) == "chain 1 has no stages: it begins at stage 2 and the next one at 2");
  BOOST_TEST(refused([](Placement& p) {
               p.chain_begin = {0, 3};
             }) == "the chains hold 3 stages together, the placement 4");
  BOOST_TEST(refused([](Placement& p) {
               p.weights_of = {0, 1, 0};
             }) == "weights are given for 3 stages, but there are 4");
  BOOST_TEST(refused([](Placement& p) {
               p.weights_of = {0, 1, 0, 4};
             }) == "stage 3 uses the weights 4; with 4 stages they are numbered 0 to 3");
}

BOOST_AUTO_TEST_CASE(stages_by_rank_are_those_on_each_rank) {
  const std::vector<int> scattered = {2, 0, 0, 1, 2, 2};
  for (const Placement& placement : {straight(1, 1), straight(4, 3), v_shape(5), two_way(4), one_chain(scattered)}) {
    const StagesByRank by_rank(placement);
    for (int rank = 0; rank < placement.ranks; ++rank) {
      BOOST_TEST(by_rank.on(rank) == placement.stages_on(rank), boost::test_tools::per_element());
    }
  }
}

BOOST_AUTO_TEST_CASE(stages_are_divided_into_chains) {
  BOOST_TEST((in_chains(v_shape(3), 2) == two_way(3)));
  BOOST_TEST((in_chains(two_way(3), 1) == v_shape(3)));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
