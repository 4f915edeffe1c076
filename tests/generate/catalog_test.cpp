// Names, shape rules, and what each family promises about its shape.
#include "dualpipe/sim/generate/catalog.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <set>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

std::string refusal(std::string_view name, const Shape& shape) {
  try {
    (void)generate(name, shape);
  } catch (const ShapeError& error) {
    return error.what();
  }
  return {};
}

BOOST_AUTO_TEST_SUITE(generate_catalog)

BOOST_AUTO_TEST_CASE(lists_its_names) {
  std::set<std::string_view> names;
  std::string listed;
  for (const Family& each : catalog()) {
    BOOST_TEST(names.insert(each.name).second, each.name << " is there twice");
    BOOST_TEST(&family(each.name) == &each);
    listed += (listed.empty() ? "" : ", ") + std::string(each.name);
  }
  BOOST_TEST(listed.starts_with("gpipe, 1f1b, "));
  BOOST_CHECK_EXCEPTION((void)family("1F1B"), InputError, [&](const InputError& error) {
    return error.what() == "there is no schedule named '1F1B'; did you mean 1f1b? The catalog has: " + listed;
  });
  BOOST_CHECK_EXCEPTION((void)family("pipedream"), InputError, [](const InputError& error) {
    return std::string(error.what()).starts_with("there is no schedule named 'pipedream'; the catalog has: gpipe, ");
  });
}

// A wrong shape names the rule and the nearest shapes that work.
BOOST_AUTO_TEST_CASE(refusals) {
  BOOST_TEST(refusal("dualpipe", {5, 20}) ==
             "dualpipe: the number of ranks must be even, and 5 is not; nearest that work: 4 or 6 ranks");
  BOOST_TEST(refusal("dualpipe", {1, 20}) ==
             "dualpipe: the number of ranks must be even, and 1 is not; nearest that work: 2 ranks");
  BOOST_TEST(
      refusal("dualpipe", {4, 6}) ==
      "dualpipe: 4 ranks need at least twice as many micro-batches, counted over both directions, and 6 are fewer; "
      "nearest that works: 8 micro-batches");
  BOOST_TEST(refusal("dualpipe", {4, 9}) ==
             "dualpipe: the number of micro-batches must be even, half for each direction, and 9 is not; nearest that "
             "work: 8 or 10 micro-batches");
  BOOST_TEST(refusal("dualpipev", {4, 7}) ==
             "dualpipev: 4 ranks need at least twice as many micro-batches, and 7 are fewer; nearest that works: 8 "
             "micro-batches");
  BOOST_TEST(refusal("interleaved", {4, 9, 2}) ==
             "interleaved: 9 micro-batches on 4 ranks make 2 rounds, and 2 does not divide them evenly; nearest that "
             "work: 8 or 10 micro-batches");
  BOOST_TEST(refusal("1f1b", {4, 8, 2}) ==
             "1f1b: the number of chunks cannot be chosen, and 2 was asked for; leave it out, or use one of: "
             "interleaved, interleaved-overlap, looped-bfs, interleaved-zb");
  BOOST_TEST(refusal("zb1p", {.ranks = 4, .micro_batches = 8, .waves = 2}) ==
             "zb1p: the number of waves cannot be chosen, and 2 was asked for; leave it out, or use one of: hanayo");
  BOOST_TEST(refusal("interleaved", {.ranks = 4, .micro_batches = 8, .chunks = 0}) ==
             "interleaved: the number of chunks must be between 1 and 65535, and is 0");
  BOOST_TEST(refusal("interleaved", {.ranks = 4, .micro_batches = 8, .chunks = 2, .group = -1}) ==
             "interleaved: the size of a group must be between 1 and 16777216, and is -1");
  BOOST_TEST(refusal("interleaved", {.ranks = 4, .micro_batches = 9, .chunks = 2, .group = 3}) ==
             "interleaved: the size of a group must be between 4 and 9, the number of ranks and that of micro-batches, "
             "and is 3; with less, ranks would wait for each other");
  BOOST_TEST(refusal("interleaved-overlap", {.ranks = 4, .micro_batches = 14, .chunks = 2, .group = 6}) ==
             "interleaved-overlap: 14 micro-batches in groups of 6 leave 2 for the last one, and the 4 ranks need as "
             "many as they are; nearest that work: groups of 5 or 7");
  BOOST_TEST(refusal("chimera", {5, 20}) ==
             "chimera: the number of ranks must be divisible by the 2 chains, and 5 is not; nearest that work: 4 or 6 "
             "ranks");
  BOOST_TEST(refusal("chimera", {.ranks = 4, .micro_batches = 6, .replicas = 2}) ==
             "chimera: the number of micro-batches must be divisible by the 4 chains, and 6 is not; nearest that work: "
             "4 or 8 micro-batches");
  BOOST_TEST(refusal("1f1b", {0, 8}) == "1f1b: the number of ranks must be between 1 and 65535, and is 0");
  BOOST_TEST(refusal("1f1b", {4, -1}) == "1f1b: the number of micro-batches must be between 1 and 16777216, and is -1");
  BOOST_TEST(refusal("gpipe", {4, 1'000'000'000}) ==
             "gpipe: the number of micro-batches must be between 1 and 16777216, and is 1000000000");
  BOOST_TEST(refusal("gpipe", {1024, 1'000'000}) ==
             "gpipe: 1024 ranks and 1000000 micro-batches make up to 2048000000 ops; there can be at most 268435456");
  BOOST_TEST(refusal("dualpipev", {40'000, 80'000}).find("80000 stages; there can be at most 65535") !=
             std::string::npos);
}

BOOST_AUTO_TEST_CASE(what_a_family_says_of_its_schedules) {
  std::set<std::string_view> splitting, pairing;  // in any shape
  for (const Case& each : small_cases(4, 8)) {
    BOOST_TEST_CONTEXT(each) {
      const Family& its_family = family(each.family);
      const Schedule schedule = generate(each.family, each.shape);
      BOOST_TEST(schedule.name == each.family);
      BOOST_TEST(schedule.ranks() == each.shape.ranks);
      BOOST_TEST(schedule.total_micro_batches() == static_cast<std::uint64_t>(each.shape.micro_batches));
      BOOST_TEST(schedule.placement.chains() == its_family.chains(each.shape));
      BOOST_TEST(schedule.placement.stages() == each.shape.ranks * its_family.stages_per_rank(each.shape));
      const bool splits = std::ranges::any_of(schedule.ops, [](Op op) { return op.kind == Kind::weight_gradient; });
      if (splits) splitting.insert(each.family);
      if (std::ranges::any_of(schedule.ops, &Op::with_next)) pairing.insert(each.family);
    }
  }
  for (const Family& each : catalog()) {
    BOOST_TEST(splitting.contains(each.name) == each.splits_backward, each.name);
    BOOST_TEST(pairing.contains(each.name) == each.has_pairs, each.name);
  }
}

// The handcrafted families look at nothing of a request but its shape.
BOOST_AUTO_TEST_CASE(requests) {
  Random random(1);
  for (const Case& each : small_cases(4, 8)) {
    if (family(each.family).is_automatic) continue;
    const Schedule schedule = generate(each.family, each.shape);
    Request request{.family = std::string(each.family), .shape = each.shape};
    BOOST_TEST((generate(request) == schedule), each);
    request.costs = random_costs(random, schedule.placement, CommunicationModel::links);
    request.memory_limit = 1;
    BOOST_TEST((generate(request) == schedule), each);
  }
  BOOST_CHECK_THROW((void)generate(Request{.family = "2f2b", .shape = {4, 8}}), InputError);
  BOOST_CHECK_THROW((void)generate(Request{.family = "dualpipe", .shape = {5, 20}}), ShapeError);
}

// The nearest shapes that a refusal names do work.
BOOST_AUTO_TEST_CASE(nearest_shapes_work) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (std::int64_t micro_batches = 1; micro_batches <= 40; ++micro_batches) {
      const std::string why = refusal("interleaved", {ranks, micro_batches, 2});
      if (why.empty()) continue;
      const auto at = why.find("work: ") + 6;
      for (const std::int64_t near : {std::stoll(why.substr(at)), std::stoll(why.substr(why.find(" or ", at) + 4))}) {
        BOOST_TEST(refusal("interleaved", {ranks, near, 2}).empty());
        BOOST_TEST(near != micro_batches);
      }
    }
  }
}

// A table has one shape for all of its families.
BOOST_AUTO_TEST_CASE(a_shape_as_a_family_takes_it) {
  const Shape all{.ranks = 4, .micro_batches = 8, .chunks = 2, .group = 4, .waves = 3, .replicas = 2};
  BOOST_TEST((as_taken_by(family("1f1b"), all) == Shape{4, 8}));
  BOOST_TEST(
      (as_taken_by(family("interleaved"), all) == Shape{.ranks = 4, .micro_batches = 8, .chunks = 2, .group = 4}));
  BOOST_TEST((as_taken_by(family("hanayo"), all) == Shape{.ranks = 4, .micro_batches = 8, .waves = 3}));
  BOOST_TEST((as_taken_by(family("chimera"), all) == Shape{.ranks = 4, .micro_batches = 8, .replicas = 2}));
}

// Every group size that is taken runs, for all shapes of so many ranks and micro-batches.
BOOST_AUTO_TEST_CASE(groups_complete) {
  int taken = 0;
  for (const char* name : {"interleaved", "interleaved-overlap"}) {
    for (int ranks = 1; ranks <= 5; ++ranks) {
      for (int micro_batches = 1; micro_batches <= 12; ++micro_batches) {
        for (int group = 1; group <= micro_batches; ++group) {
          const Shape shape{.ranks = ranks, .micro_batches = micro_batches, .chunks = 3, .group = group};
          if (!refusal(name, shape).empty()) continue;
          ++taken;
          BOOST_TEST(!find_deadlock(lower(generate(name, shape)), CommunicationModel::stream).has_value(),
                     name << " " << ranks << "x" << micro_batches << ", groups of " << group);
        }
      }
    }
  }
  BOOST_TEST(taken > 100);
}

// DualPipe(2p, 2m) on its first p ranks is DualPipeV(p, m), with the far chain read as the second half of the chain.
BOOST_AUTO_TEST_CASE(dualpipev_is_half_of_dualpipe) {
  for (int ranks = 1; ranks <= 6; ++ranks) {
    for (std::int64_t micro_batches = 2 * ranks; micro_batches <= 2 * ranks + 5; ++micro_batches) {
      const Schedule whole = generate("dualpipe", {2 * ranks, 2 * micro_batches});
      const Schedule half = generate("dualpipev", {ranks, micro_batches});
      for (int rank = 0; rank < ranks; ++rank) {
        std::vector<Op> expected;
        for (Op op : whole.rank(rank)) {
          if (op.stage >= 2 * ranks) op.stage = static_cast<std::uint16_t>(op.stage - 2 * ranks);
          expected.push_back(op);
        }
        const auto actual = half.rank(rank);
        BOOST_TEST(std::equal(actual.begin(), actual.end(), expected.begin(), expected.end()));
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
