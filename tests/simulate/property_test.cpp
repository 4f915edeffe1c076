// What must hold for every schedule: of every family, and of every schedule that one mistake makes out of them.
#include <boost/test/unit_test.hpp>
#include <map>

#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/oracle.h"
#include "tests/support.h"
#include "tests/thinned.h"
#include "tests/verdict.h"

namespace dualpipe::test {
namespace {

constexpr CommunicationModel models[] = {CommunicationModel::latency, CommunicationModel::links,
                                         CommunicationModel::stream};

Costs with_model(Costs costs, CommunicationModel model) {
  costs.model = model;
  return costs;
}

// What a rank's ops take, from the costs alone.
Time work_of(const Schedule& schedule, const Costs& costs, int rank) {
  Time work = 0;
  const auto ops = schedule.rank(rank);
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const StageCosts& stage = costs.of(ops[i].stage);
    if (ops[i].with_next && stage.overlapped) {
      work += *stage.overlapped;
      ++i;
      continue;
    }
    switch (ops[i].kind) {
      case Kind::forward:
        work += stage.forward;
        break;
      case Kind::backward:
        work += stage.backward + stage.recompute;
        break;
      case Kind::input_gradient:
        work += stage.input_gradient + stage.recompute;
        break;
      default:
        work += stage.weight_gradient;
        break;
    }
  }
  return work;
}

// The schedule without the op at `from`, which comes back on `rank` before its op `to`. None: it does not come back.
struct Move {
  std::size_t from;
  struct Place {
    int rank;
    std::size_t position;
  };
  std::optional<Place> to;
  bool keep = false;  // the op stays where it was, too: it is doubled
};

Schedule moved(const Schedule& schedule, const Move& move) {
  Schedule result = schedule;
  result.ops.clear();
  result.rank_begin = {0};
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    std::vector<Op> ops;
    for (std::size_t i = schedule.rank_begin[static_cast<std::size_t>(rank)];
         i < schedule.rank_begin[static_cast<std::size_t>(rank) + 1]; ++i) {
      if (i != move.from || move.keep) ops.push_back(schedule.ops[i]);
    }
    if (move.to && move.to->rank == rank) {
      const auto at = std::min(move.to->position, ops.size());
      ops.insert(ops.begin() + static_cast<std::ptrdiff_t>(at), schedule.ops[move.from]);
    }
    result.ops.insert(result.ops.end(), ops.begin(), ops.end());
    result.rank_begin.push_back(result.ops.size());
  }
  return result;
}

// The messages of a program, slot by slot: a form that is easy to change.
using Slots = std::vector<std::vector<Op>>;  // of all ranks

Slots slots_of(const Program& program) {
  Slots slots;
  for (std::size_t i = 0; i + 1 < program.slot_begin.size(); ++i) {
    slots.emplace_back(program.communication.begin() + program.slot_begin[i],
                       program.communication.begin() + program.slot_begin[i + 1]);
  }
  return slots;
}

Program with_slots(const Program& program, const Slots& slots) {
  Program result = program;
  result.communication.clear();
  result.slot_begin.clear();
  for (const auto& slot : slots) {
    result.slot_begin.push_back(static_cast<std::uint32_t>(result.communication.size()));
    result.communication.insert(result.communication.end(), slot.begin(), slot.end());
    if (!slot.empty()) result.communication.back().with_next = false;
  }
  result.slot_begin.push_back(static_cast<std::uint32_t>(result.communication.size()));
  return result;
}

// Calls visit(mutant) with every program that one change to one message makes: it is dropped; it comes in every other
// slot of its rank, as a batch of its own, in front or at the end; the same, and it stays where it was; it changes
// places with the message behind it; its batch is split there, or joined.
template <typename Visit>
void for_each_message_changed(const Program& program, Visit visit) {
  const Slots slots = slots_of(program);
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const std::size_t first = program.slot_index(rank, 0);
    const std::size_t last = program.slot_index(rank, program.schedule.rank(rank).size());
    for (std::size_t from = first; from <= last; ++from) {
      for (std::size_t i = 0; i < slots[from].size(); ++i) {
        Slots without = slots;
        without[from].erase(without[from].begin() + static_cast<std::ptrdiff_t>(i));
        if (i > 0 && !slots[from][i].with_next) without[from][i - 1].with_next = false;
        visit(with_slots(program, without));

        Op alone = slots[from][i];
        alone.with_next = false;
        for (std::size_t to = first; to <= last; ++to) {
          for (Slots changed : {without, slots}) {
            changed[to].insert(changed[to].begin(), alone);
            visit(with_slots(program, changed));
          }
          without[to].push_back(alone);
          if (without[to].size() > 1 && to != from) without[to][without[to].size() - 2].with_next = false;
          visit(with_slots(program, without));
          without[to].pop_back();
        }

        if (i + 1 == slots[from].size()) continue;
        Slots changed = slots;
        std::swap(changed[from][i], changed[from][i + 1]);
        std::swap(changed[from][i].with_next, changed[from][i + 1].with_next);
        visit(with_slots(program, changed));
        changed = slots;
        changed[from][i].with_next = !changed[from][i].with_next;
        visit(with_slots(program, changed));
      }
    }
  }
}

std::string text_of_messages(const Program& program) {
  std::string text;
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const auto ops = program.schedule.rank(rank);
    for (std::size_t i = 0; i <= ops.size(); ++i) {
      for (const Op op : program.slot(rank, i)) text += to_text(op) + (op.with_next ? "+" : " ");
      if (i < ops.size()) text += to_text(ops[i]) + (ops[i].with_next ? "+" : " ");
    }
    text += "\n";
  }
  return text;
}

struct Verdicts {
  int rejected = 0, hanging = 0, completed = 0;
};

// Rejected by validate(), or a hang that find_deadlock() explains, or completed with the oracle's figures.
void judge(const Schedule& schedule, const Costs& costs, Verdicts& verdicts) {
  if (!validate(schedule).empty()) {
    ++verdicts.rejected;
    return;
  }
  const Program program = lower(schedule);
  BOOST_TEST(validate(program).empty());
  for (const CommunicationModel model : models) {
    const std::string difference = difference_from_oracle(program, with_model(costs, model));
    BOOST_TEST(difference == "", model << ": " << difference);
    const auto deadlock = find_deadlock(program, model);
    ++(deadlock ? verdicts.hanging : verdicts.completed);
    if (deadlock) BOOST_TEST(flaw_of(*deadlock, program) == "");
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(simulate_property)

BOOST_AUTO_TEST_CASE(every_family_has_small_shapes) {
  std::map<std::string_view, int> shapes;
  for (const Case& each : small_cases(6, 12)) ++shapes[each.family];
  // DualPipe has the fewest: an even number of ranks, and of micro-batches, at least twice as many.
  for (const Family& family : catalog()) BOOST_TEST(shapes[family.name] >= (slow ? 2 : 9), family.name);
}

BOOST_AUTO_TEST_CASE(generated_schedules_are_valid_and_complete) {
  for (const Case& each : small_cases(6, 13)) {
    BOOST_TEST_CONTEXT(each) {
      const Schedule schedule = generate(each.family, each.shape);
      const Program program = lower(schedule);
      BOOST_TEST(validate(schedule).empty());
      BOOST_TEST(validate(program).empty());
      BOOST_TEST((lower(schedule) == program));
      BOOST_TEST((generate(each.family, each.shape) == schedule));
      for (const CommunicationModel model : models) BOOST_TEST(!find_deadlock(program, model).has_value(), model);
    }
  }
}

BOOST_AUTO_TEST_CASE(busy_time_is_the_sum_of_durations) {
  Random random(1);
  for (const Case& each : small_cases(4, 8)) {
    const Program program = lower(generate(each.family, each.shape));
    for (const CommunicationModel model : models) {
      const Costs costs = random_costs(random, program.schedule.placement, model);
      const Timeline timeline = simulate(program, costs, Record::ranks);
      for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
        const RankTimes& times = timeline.ranks[static_cast<std::size_t>(rank)];
        BOOST_TEST_CONTEXT(each << ", " << model << ", rank " << rank) {
          BOOST_TEST(times.busy == work_of(program.schedule, costs, rank));
          BOOST_TEST(times.busy <= times.span());
          BOOST_TEST(times.span() <= timeline.span());
          BOOST_TEST(timeline.span() <= timeline.makespan());
          BOOST_TEST(timeline.idle(rank) == timeline.makespan() - times.busy);
        }
      }
    }
  }
}

// Latency, bytes, a launch overhead, a slower rank: no op ever ends sooner for them. Nor does it for less bandwidth.
BOOST_AUTO_TEST_CASE(more_of_any_cost_never_makes_it_faster) {
  Random random(2);
  for (const Case& each : small_cases(4, 8)) {
    const Program program = lower(generate(each.family, each.shape));
    for (const CommunicationModel model : models) {
      Costs costs = random_costs(random, program.schedule.placement, model);
      if (model != CommunicationModel::latency) costs.bandwidth = 1e9;
      Timeline before = simulate(program, costs);
      const auto slower = [&](const char* what) {
        const Timeline after = simulate(program, costs);
        BOOST_TEST_CONTEXT(each << ", " << model << ": " << what) {
          bool any_sooner = false;
          for (std::size_t i = 0; i < after.ops.size(); ++i) any_sooner |= after.ops[i].end < before.ops[i].end;
          BOOST_TEST(!any_sooner);
          BOOST_TEST(after.makespan() >= before.makespan());
        }
        before = after;
      };
      costs.latency += random.between(1, 9);
      slower("latency");
      costs.stages[0].message += random.between(1, 99);
      slower("bytes");
      costs.bandwidth /= 2;
      slower("bandwidth");
      costs.stages[0].recompute += random.between(1, 9);
      slower("recompute");
      costs.launch += random.between(1, 9);
      slower("launch");
      costs.speed.assign(static_cast<std::size_t>(program.schedule.ranks()), 1);
      costs.speed.back() = 0.5;
      slower("speed");
    }
  }
}

// What latency does to one message, the other models do too, and more.
BOOST_AUTO_TEST_CASE(contention_never_makes_it_faster) {
  Random random(3);
  for (const Case& each : small_cases(4, 8)) {
    const Program program = lower(generate(each.family, each.shape));
    Costs costs = random_costs(random, program.schedule.placement, CommunicationModel::latency);
    const Timeline free = simulate(program, costs);
    for (const CommunicationModel model : {CommunicationModel::links, CommunicationModel::stream}) {
      const Timeline contended = simulate(program, with_model(costs, model));
      bool any_sooner = false;
      for (std::size_t i = 0; i < free.ops.size(); ++i) any_sooner |= contended.ops[i].start < free.ops[i].start;
      BOOST_TEST(!any_sooner, each << ", " << model);
    }
  }
}

BOOST_AUTO_TEST_CASE(same_input_same_output) {
  Random random(4);
  for (const Case& each : small_cases(4, 8)) {
    const Program program = lower(generate(each.family, each.shape));
    for (const CommunicationModel model : models) {
      Costs costs = random_costs(random, program.schedule.placement, model);
      for (const double jitter : {0.0, 0.3}) {
        costs.jitter = jitter;
        costs.seed = random.next();
        const Timeline once = simulate(program, costs);
        BOOST_TEST((simulate(program, costs) == once), each << ", " << model);
        BOOST_TEST((simulate(program, costs, Record::ranks).ranks == once.ranks), each << ", " << model);
        BOOST_TEST(simulate(program, costs, Record::ranks).ops.empty());
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(jitter_stays_within_its_bounds_and_follows_the_seed) {
  const Program program = lower(generate("dualpipe", {4, 24}));
  Costs costs = uniform(1'000'000, 1'000'000, 1'000'000);
  costs.jitter = 0.2;
  const auto durations = [&](std::uint64_t seed) {
    costs.seed = seed;
    std::vector<Time> found;
    for (const Span& span : simulate(program, costs).ops) found.push_back(span.end - span.start);
    return found;
  };
  const auto one = durations(1);
  BOOST_TEST(one == durations(1), boost::test_tools::per_element());
  BOOST_TEST((one != durations(2)));
  double factors = 0;
  for (std::size_t i = 0; i < one.size(); ++i) {
    const Op op = program.schedule.ops[i];
    const bool pair = op.with_next || (i > 0 && program.schedule.ops[i - 1].with_next);
    const double factor = static_cast<double>(one[i]) / (pair ? 3e6 : op.kind == Kind::backward ? 2e6 : 1e6);
    BOOST_TEST((factor >= 0.8 && factor <= 1.2));
    factors += factor / static_cast<double>(one.size());
  }
  // 0.2 / sqrt(3) is one draw's deviation; the mean of hundreds of them is far closer to 1.
  BOOST_TEST((factors > 0.97 && factors < 1.03));
}

// Every op to every other place on its rank, and, in the smallest shapes, on the other ranks; dropped; doubled.
BOOST_AUTO_TEST_CASE(one_mistake_gets_a_verdict) {
  Random random(5);
  std::map<std::string_view, Verdicts> verdicts;
  Thinned moves(31);
  const auto judge_all = [&](const Case& each, bool other_ranks) {
    const Schedule schedule = generate(each.family, each.shape);
    const Costs costs = random_costs(random, schedule.placement, CommunicationModel::latency);
    for (std::size_t i = 0; i < schedule.ops.size(); ++i) {
      const int home = schedule.placement.rank_of[schedule.ops[i].stage];
      BOOST_TEST_CONTEXT(each << ": " << to_text(schedule.ops[i])) {
        const Schedule dropped = moved(schedule, {i, std::nullopt});
        judge(dropped, costs, verdicts[each.family]);
        // Without its only backward it is a schedule again, of forwards alone.
        const bool trains = std::ranges::any_of(dropped.ops, [](Op op) { return op.kind != Kind::forward; });
        BOOST_TEST(validate(dropped).empty() == !trains);
        for (int rank = 0; rank < schedule.ranks(); ++rank) {
          if (rank != home && !other_ranks) continue;
          for (std::size_t to = 0; to <= schedule.rank(rank).size(); ++to) {
            if (!moves.next()) continue;
            BOOST_TEST_CONTEXT("to rank " << rank << ", before op " << to) {
              const Schedule mutant = moved(schedule, {i, Move::Place{rank, to}});
              if (mutant != schedule) judge(mutant, costs, verdicts[each.family]);
              const Schedule doubled = moved(schedule, {i, Move::Place{rank, to}, true});
              BOOST_TEST(!validate(doubled).empty());
              if (rank != home) BOOST_TEST(!validate(mutant).empty());
            }
          }
        }
      }
    }
  };
  for (const Case& each : small_cases(3, 4)) judge_all(each, each.shape.ranks * each.shape.micro_batches <= 4);
  judge_all({"dualpipe", {4, 8}}, false);
  judge_all({"dualpipev", {3, 6}}, false);
  Verdicts all;
  for (const Family& family : catalog()) {
    const Verdicts& each = verdicts[family.name];
    all.hanging += each.hanging;
    all.completed += each.completed;
    BOOST_TEST_CONTEXT(family.name) {
      BOOST_TEST(each.rejected > 0);
      if (slow) continue;  // few of a family's mistakes are tried, and they may all be of one sort
      BOOST_TEST(each.hanging > 0);
      BOOST_TEST(each.completed > 0);
    }
  }
  BOOST_TEST(all.hanging > 0);
  BOOST_TEST(all.completed > 0);
}

BOOST_AUTO_TEST_CASE(one_changed_message_gets_a_verdict) {
  Random random(6);
  Verdicts verdicts;
  Thinned mutants(31);
  auto cases = small_cases(3, 3);
  cases.push_back({"dualpipe", {2, 4}});
  cases.push_back({"dualpipev", {2, 4}});
  for (const Case& each : cases) {
    const Program program = lower(generate(each.family, each.shape));
    const Costs costs = random_costs(random, program.schedule.placement, CommunicationModel::latency);
    BOOST_TEST_CONTEXT(each) {
      for_each_message_changed(program, [&](const Program& mutant) {
        if (!mutants.next()) return;
        if (!validate(mutant).empty()) {
          ++verdicts.rejected;
          return;
        }
        for (const CommunicationModel model : models) {
          const std::string difference = difference_from_oracle(mutant, with_model(costs, model));
          if (!difference.empty()) BOOST_ERROR(model << ": " << difference << "\n" << text_of_messages(mutant));
          const auto deadlock = find_deadlock(mutant, model);
          ++(deadlock ? verdicts.hanging : verdicts.completed);
          if (deadlock) BOOST_TEST(flaw_of(*deadlock, mutant) == "");
        }
      });
    }
  }
  BOOST_TEST(verdicts.rejected > 0);
  BOOST_TEST(verdicts.hanging > 0);
  BOOST_TEST(verdicts.completed > 0);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
