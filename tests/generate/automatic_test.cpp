// The automatic schedules: their authors' orders, the memory limit, and what a request may leave out.
#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "dualpipe/sim/evaluate/evaluate.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

namespace data = boost::unit_test::data;

constexpr std::string_view automatic[] = {"zb-auto", "zbv-auto"};

std::string fnv1a(const Schedule& schedule) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    for (const char c : (rank > 0 ? "\n" : "") + text_of_rank(schedule, rank)) {
      hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    }
  }
  std::ostringstream text;
  text << std::hex;
  text.width(16);
  text.fill('0');
  text << hash;
  return text.str();
}

// Of all stages, or one for each: "3;1;2".
std::int64_t number_of(const std::string& list, int stage) {
  std::istringstream texts(list);
  std::string text;
  std::getline(texts, text, ';');
  for (std::string next; stage > 0 && std::getline(texts, next, ';'); --stage) text = next;
  return std::stoll(text);
}

// schedule,ranks,microbatches,F,I,W,c,mem_F,mem_W,limit,fnv1a64
Request request_of(const std::vector<std::string>& row) {
  Request request{.family = row.at(0), .shape = {std::stoi(row.at(1)), std::stoll(row.at(2))}};
  Costs costs;
  for (int stage = 0; stage < family(request.family).placement(request.shape).stages(); ++stage) {
    StageCosts& cost = costs.stages.emplace_back();
    cost.forward = number_of(row.at(3), stage);
    cost.input_gradient = number_of(row.at(4), stage);
    cost.weight_gradient = number_of(row.at(5), stage);
    cost.backward = cost.input_gradient + cost.weight_gradient;
    cost.activation = number_of(row.at(7), stage);
    cost.weight_stash = number_of(row.at(8), stage);
  }
  costs.latency = std::stoll(row.at(6));
  request.costs = costs;
  if (!row.at(9).empty()) request.memory_limit = std::stoll(row.at(9));
  return request;
}

Bytes largest_peak(const Schedule& schedule, const Costs& costs) {
  Bytes peak = 0;
  for (const RankMemory& rank : memory_of_ranks(lower(schedule), costs)) peak = std::max(peak, rank.peak);
  return peak;
}

// Whatever the costs, the schedule is one that runs.
void check_runs(const Schedule& schedule) {
  std::string text;
  for (const Violation& violation : validate(schedule)) text += to_text(violation, schedule.placement) + "\n";
  BOOST_TEST(text == "");
  BOOST_TEST(lower_checked(schedule).completes);
}

// Costs of every kind: uneven stages, ranks and messages, workspaces, and what is held all the time.
Request random_request(Random& random) {
  Request request{.family = std::string(automatic[random.between(0, 1)]),
                  .shape = {static_cast<int>(random.between(1, 7)), random.between(1, 20)}};
  const Placement placement = family(request.family).placement(request.shape);
  Costs costs =
      random_costs(random, placement, static_cast<CommunicationModel>(random.between(0, 2)), random.one_in(3));
  if (random.one_in(3)) costs.launch = random.between(0, 50);
  if (random.one_in(3)) {
    for (int rank = 0; rank < placement.ranks; ++rank)
      costs.speed.push_back(0.25 * static_cast<double>(random.between(1, 8)));
  }
  request.costs = costs;
  return request;
}

// The least limit in bytes that works, as the refusal of a limit that does not names it.
MemoryLimit least_limit(Request request, const MemoryLimit& too_little) {
  request.memory_limit = too_little;
  try {
    (void)generate(request);
  } catch (const MemoryLimitError& error) {
    BOOST_TEST(std::string(error.what()).ends_with("the least limit that works is " + to_text(error.least())));
    return error.least();
  }
  BOOST_FAIL("the limit is kept");
  return too_little;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(generate_automatic)

BOOST_AUTO_TEST_CASE(orders_of_the_authors) {
  const auto rows = read_table("zero_bubble_orders.csv");
  BOOST_TEST(rows.size() == 409U);
  for (const auto& row : rows) {
    const Request request = request_of(row);
    BOOST_TEST(fnv1a(generate(request)) == row.at(10),
               request.family << ' ' << request.shape.ranks << 'x' << request.shape.micro_batches << " F " << row[3]
                              << " I " << row[4] << " W " << row[5] << " c " << row[6] << " limit " << row[9]);
  }
}

// The example of the issue: 8000 bytes are room for 8 micro-batches of 1000 bytes, which is ZB-1p.
BOOST_AUTO_TEST_CASE(a_limit_in_bytes) {
  Request request{.family = "zb-auto", .shape = {8, 24}, .memory_limit = Bytes{8000}};
  Costs costs = uniform(18'522, 18'086, 9'337, 601);
  costs.stages[0].activation = 1000;
  costs.stages[0].weight_stash = 366;
  request.costs = costs;
  const Schedule schedule = generate(request);
  BOOST_TEST(largest_peak(schedule, costs) == 8000);
  request.memory_limit = MemoryLimit::micro_batches(8);
  BOOST_TEST((generate(request) == schedule));
  request.memory_limit = Bytes{7999};
  BOOST_TEST(largest_peak(generate(request), costs) <= 7999);
  request.memory_limit = Bytes{999};
  BOOST_CHECK_EXCEPTION((void)generate(request), MemoryLimitError, [](const MemoryLimitError& error) {
    return std::string(error.what()) ==
           "zb-auto: rank 0 needs 1000 bytes, more than the memory limit of 999 bytes; the least limit that works is "
           "1000 bytes";
  });
}

BOOST_AUTO_TEST_CASE(what_is_held_besides_counts) {
  Request request{.family = "zb-auto", .shape = {4, 8}};
  Costs costs = uniform(10, 10, 10);
  costs.stages[0].activation = costs.stages[0].weight_stash = 100;
  costs.stages[0].parameters = 1000;
  costs.stages[0].forward_workspace = 50;
  request.costs = costs;
  BOOST_TEST(least_limit(request, Bytes{1000}).amount == 1150);
  request.memory_limit = Bytes{1450};
  BOOST_TEST(largest_peak(generate(request), costs) == 1450);
  BOOST_TEST(largest_peak(generate("zb1p", request.shape), costs) == 1450);
}

// Of any costs: the order runs, and keeps a limit if there is one that does; the least that is named is kept.
BOOST_AUTO_TEST_CASE(any_limit_is_kept_or_refused) {
  Random random(5);
  int kept = 0;
  int refused = 0;
  for (int i = 0; i < 400; ++i) {
    Request request = random_request(random);
    const Costs costs = std::get<Costs>(request.costs);
    BOOST_TEST_CONTEXT(request.family << ' ' << request.shape.ranks << 'x' << request.shape.micro_batches << " #"
                                      << i) {
      const Schedule free = generate(request);
      check_runs(free);
      request.memory_limit = random.between(0, largest_peak(free, costs));
      try {
        const Schedule schedule = generate(request);
        check_runs(schedule);
        BOOST_TEST(largest_peak(schedule, costs) <= request.memory_limit->amount);
        ++kept;
      } catch (const MemoryLimitError& error) {
        BOOST_TEST(error.least().amount > request.memory_limit->amount);
        request.memory_limit = error.least();
        BOOST_TEST(largest_peak(generate(request), costs) <= error.least().amount);
        ++refused;
      }
    }
  }
  BOOST_TEST(kept > 50);
  BOOST_TEST(refused > 50);
}

// Where ranks hold unlike bytes, a rank that has room for more must not make the next one take more than it has room
// for.
BOOST_AUTO_TEST_CASE(uneven_ranks_keep_a_limit) {
  Random random(7);
  for (int i = 0; i < 300; ++i) {
    Request request{.family = "zbv-auto", .shape = {static_cast<int>(random.between(2, 8)), random.between(4, 18)}};
    Costs costs;
    Bytes least = 0;
    for (int stage = 0; stage < 2 * request.shape.ranks; ++stage) {
      costs.stages.push_back(uniform(random.between(1, 50), random.between(1, 50), random.between(1, 50)).stages[0]);
      costs.stages.back().activation = random.between(1, 60);
      costs.stages.back().weight_stash = random.between(0, 80);
      least = std::max({least, costs.stages.back().activation, costs.stages.back().weight_stash});
    }
    costs.latency = random.between(0, 90);
    request.costs = costs;
    request.memory_limit = (2 * request.shape.ranks + random.between(0, 6)) * least;
    BOOST_TEST_CONTEXT(request.shape.ranks << 'x' << request.shape.micro_batches << " #" << i) {
      const Schedule schedule = generate(request);
      check_runs(schedule);
      BOOST_TEST(largest_peak(schedule, costs) <= request.memory_limit->amount);
    }
  }
}

// The least that works is one activation, or where a V has to be filled 2P of a stage, or all that there are; whatever
// the durations.
BOOST_AUTO_TEST_CASE(least_limits) {
  Random random(6);
  for (int ranks = 1; ranks <= 6; ++ranks) {
    for (std::int64_t micro_batches = 1; micro_batches <= 9; ++micro_batches) {
      for (const std::string_view name : automatic) {
        Request request{.family = std::string(name), .shape = {ranks, micro_batches}};
        Costs costs =
            uniform(random.between(1, 30), random.between(1, 30), random.between(1, 30), random.between(0, 9));
        costs.stages[0].activation = 50;
        costs.stages[0].weight_stash = random.between(0, 50);
        request.costs = costs;
        const std::int64_t expected = name == "zb-auto" ? 1 : std::min<std::int64_t>(ranks, micro_batches);
        const Bytes bytes = expected * (name == "zb-auto" ? 50 : 100);
        BOOST_TEST_CONTEXT(name << ' ' << ranks << 'x' << micro_batches) {
          BOOST_TEST(least_limit(request, bytes - 1).amount == bytes);
          BOOST_TEST(
              (least_limit(request, {expected * MemoryLimit::per_micro_batch - 1, MemoryLimit::Unit::micro_batches}) ==
               MemoryLimit::micro_batches(expected)));
        }
      }
    }
  }
}

// Nobody says what ops cost: all cost the same. What they hold is then known in micro-batches alone.
BOOST_AUTO_TEST_CASE(without_costs) {
  for (const std::string_view name : automatic) {
    Request request{.family = std::string(name), .shape = {4, 8}, .memory_limit = MemoryLimit::micro_batches(4)};
    const Schedule schedule = generate(request);
    Costs costs = uniform(7, 7, 7);
    costs.stages[0].activation = costs.stages[0].weight_stash = 1;
    BOOST_TEST(largest_peak(schedule, costs) == (name == "zb-auto" ? 4 : 8));
    request.costs = costs;
    BOOST_TEST((generate(request) == schedule));
    request.costs = {};
    request.memory_limit = Bytes{8000};
    BOOST_CHECK_EXCEPTION((void)generate(request), InputError, [&](const InputError& error) {
      return error.what() ==
             std::string(name) +
                 ": the memory limit of 8000 bytes cannot be kept without knowing what the stages hold; "
                 "give their costs, or the limit in micro-batches";
    });
  }
  BOOST_TEST((generate("zbv-auto", {4, 8}) ==
              generate({.family = "zbv-auto", .shape = {4, 8}, .memory_limit = MemoryLimit::micro_batches(4)})));
}

// Parts of a model, communication, speeds and overheads all have their say.
BOOST_AUTO_TEST_CASE(what_the_order_depends_on) {
  for (const std::string_view name : automatic) {
    Request request{.family = std::string(name), .shape = {4, 12}};
    Costs costs = uniform(1000, 1200, 800, 50);
    costs.stages[0].activation = costs.stages[0].weight_stash = 10;
    costs.stages[0].message = 100;
    const auto changes = [&](auto change) {
      Costs other = costs;
      request.costs = other;
      const Schedule before = generate(request);
      change(other);
      request.costs = other;
      return generate(request) != before;
    };
    BOOST_TEST(!changes([](Costs&) {}));
    BOOST_TEST(changes([](Costs& c) { c.stages[0].weight_gradient = 300; }));
    BOOST_TEST(changes([](Costs& c) { c.latency = 600; }));
    BOOST_TEST(changes([](Costs& c) {
      c.model = CommunicationModel::links;
      c.bandwidth = 0.2e9;
    }));
    BOOST_TEST(changes([](Costs& c) { c.speed = {1, 1, 0.5, 1}; }));
    BOOST_TEST(changes([](Costs& c) { c.stages[0].recompute = 1000; }));
    BOOST_TEST(!changes([](Costs& c) { c.jitter = 0.1; }));
    BOOST_TEST(!changes([](Costs& c) { c.stages[0].overlapped = 1500; }));

    ModelCosts model;
    model.parts.assign(16, costs.stages[0]);
    request.costs = model;
    check_runs(generate(request));
    model.parts[3].forward = 9000;
    request.costs = model;
    check_runs(generate(request));
  }
}

// ZBV at F = I = W: as 1F1B's activations on every rank, and idle by makespan alone.
BOOST_DATA_TEST_CASE(zbv_figures, data::xrange(2, 33), ranks) {
  Costs costs = uniform(1, 1, 1);
  costs.stages[0].activation = costs.stages[0].weight_stash = 1;
  for (const std::int64_t micro_batches : {2 * ranks - 1, 2 * ranks + 3, 4 * ranks}) {
    const Evaluation evaluation = evaluate({.family = "zbv-auto", .shape = {ranks, micro_batches}, .costs = costs});
    BOOST_TEST(evaluation.bubble_by_makespan() == ranks - 1);
    BOOST_TEST(evaluation.bubble_by_span() == 0);
    for (const RankMemory& rank : evaluation.memory) BOOST_TEST(rank.peak == 2 * ranks);
  }
}

// ZB-1p idles as ZB-H1 at F = I = W; with twice the memory it does not idle by span.
BOOST_DATA_TEST_CASE(zb_figures, data::xrange(2, 33), ranks) {
  for (const std::int64_t micro_batches : {2 * ranks, 2 * ranks + 3, 4 * ranks}) {
    const auto run = [&](std::int64_t limit) {
      return evaluate({.family = "zb-auto",
                       .shape = {ranks, micro_batches},
                       .costs = uniform(1, 1, 1),
                       .memory_limit = MemoryLimit::micro_batches(limit)});
    };
    BOOST_TEST(run(ranks).bubble_by_span() == ranks - 1);
    BOOST_TEST(run(2 * ranks).bubble_by_span() == 0);
    BOOST_TEST(run(2 * ranks).bubble_by_makespan() == ranks - 1);
  }
}

// Rates by span of one model on 8 ranks, whose stages in a V are half as long.
BOOST_AUTO_TEST_CASE(rates) {
  const auto rate = [](const char* name, const Costs& costs, std::int64_t limit) {
    const Evaluation evaluation =
        evaluate({.family = name, .shape = {8, 24}, .costs = costs, .memory_limit = MemoryLimit::micro_batches(limit)});
    return std::llround(evaluation.timeline.bubble_rate_span() * 1e4);
  };
  Costs half = uniform(18'522, 18'086, 9'337, 601);
  Costs whole = uniform(2 * 18'522, 2 * 18'086, 2 * 9'337, 601);
  half.stages[0].activation = whole.stages[0].activation = 201'216;
  half.stages[0].weight_stash = whole.stages[0].weight_stash = 73'728;
  BOOST_TEST(rate("zb-auto", whole, 8) == 1531);
  BOOST_TEST(rate("zb-auto", whole, 16) == 398);
  BOOST_TEST(rate("zbv-auto", half, 8) == 603);
  BOOST_TEST(rate("zb-auto", uniform(1, 1, 1), 8) == 886);
  BOOST_TEST(rate("zbv-auto", uniform(1, 1, 1), 8) == 0);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
