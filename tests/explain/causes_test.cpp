// Every idle nanosecond has a cause, and the run a critical path: over random programs, costs and models.
#include <boost/test/unit_test.hpp>
#include <map>

#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"
#include "tests/thinned.h"

namespace dualpipe::test {
namespace {

constexpr CommunicationModel models[] = {CommunicationModel::latency, CommunicationModel::links,
                                         CommunicationModel::stream};

// A program under costs, as it ran.
struct Run {
  Program program;
  Costs costs;
  Timeline timeline;
};

Costs draw(Random& random, const Placement& placement, CommunicationModel model) {
  Costs costs = random_run_costs(random, placement, model);
  if (random.one_in(3)) {
    costs.jitter = 0.3;
    costs.seed = random.next();
  }
  return costs;
}

// 1,000 of them: shapes of all families, and goldens that have communication of their own.
template <typename Check>
void for_each_run(Check check) {
  Random random(17);
  const auto cases = small_cases(5, 9);
  std::vector<Program> lowered;
  for (const Golden& golden : goldens()) {
    if (golden.lowered) lowered.push_back(read_program(golden));
  }
  Thinned runs(7);
  for (int i = 0; i < 1000; ++i) {
    const auto any = [&](const auto& list) {
      return static_cast<std::size_t>(random.between(0, std::ssize(list) - 1));
    };
    const std::size_t number = any(cases);
    const bool is_golden = random.one_in(8);
    const Program program =
        is_golden ? lowered[any(lowered)] : lower(generate(cases[number].family, cases[number].shape));
    const CommunicationModel model = models[random.between(0, 2)];
    const Costs costs = draw(random, program.schedule.placement, model);
    if (!runs.next()) continue;
    BOOST_TEST_CONTEXT("run " << i << ", " << (is_golden ? program.schedule.name : std::string(cases[number].family))
                              << ", " << model) {
      check(Run{program, costs, simulate(program, costs)});
    }
  }
}

// The time of a rank that its ops leave, piece by piece. Ops of no duration leave two pieces one.
std::vector<Span> windows_of(const Run& run, int rank) {
  std::vector<Span> windows;
  const auto begin = run.program.schedule.rank_begin[static_cast<std::size_t>(rank)];
  Time first = run.timeline.ops.front().start;
  Time last = first;
  for (const Span& span : run.timeline.ops) {
    first = std::min(first, span.start);
    last = std::max(last, span.end);
  }
  const auto add = [&](Span window) {
    if (window.start >= window.end) return;
    const bool goes_on = !windows.empty() && windows.back().end == window.start;
    if (goes_on) windows.back().end = window.end;
    if (!goes_on) windows.push_back(window);
  };
  Time free = first;
  for (std::size_t i = 0; i < run.program.schedule.rank(rank).size(); ++i) {
    const Span span = run.timeline.ops[begin + i];
    add({free, span.start});
    free = std::max(free, span.end);
  }
  add({free, last});
  return windows;
}

// Segments that touch, joined.
std::vector<Span> joined(const std::vector<IdleSegment>& segments, int rank) {
  std::vector<Span> spans;
  for (const IdleSegment& each : segments) {
    if (each.rank != rank) continue;
    BOOST_TEST(each.span.start < each.span.end);
    if (!spans.empty() && spans.back().end == each.span.start) {
      spans.back().end = each.span.end;
    } else {
      spans.push_back(each.span);
    }
  }
  return spans;
}

// By hand, for the latency model: how long the run goes on at least from the start of each op.
std::vector<Time> tails_of(const Run& run) {
  const Schedule& schedule = run.program.schedule;
  std::map<std::uint64_t, std::size_t> place;
  std::map<std::size_t, std::size_t> next_on_rank;
  for (std::size_t i = 0; i < schedule.ops.size(); ++i) {
    if (schedule.ops[i].kind != Kind::weight_gradient) place[key_of(schedule.ops[i])] = i;
    const bool is_last = std::ranges::find(schedule.rank_begin, i + 1) != schedule.rank_begin.end();
    if (!is_last) next_on_rank[i] = i + 1;
  }
  std::vector<std::size_t> order(schedule.ops.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::stable_sort(order, std::ranges::greater{}, [&](std::size_t i) { return run.timeline.ops[i].start; });
  std::vector<Time> tails(order.size());
  for (const std::size_t i : order) {
    const Op op = schedule.ops[i];
    Time tail = 0;
    if (next_on_rank.contains(i)) tail = run.costs.launch + tails[next_on_rank[i]];
    const auto to = consumer_of(op, schedule.placement);
    if (to && to->is_remote) {
      const Op user = op_of(receive_for(Op{op.micro_batch, to->stage, op.kind, false}));
      const auto found = place.find(key_of(user));
      if (found != place.end()) tail = std::max(tail, run.costs.latency + tails[found->second]);
    }
    tails[i] = run.timeline.ops[i].end - run.timeline.ops[i].start + tail;
  }
  return tails;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(explain_causes)

BOOST_AUTO_TEST_CASE(segments_tile_the_windows) {
  for_each_run([](const Run& run) {
    const Explanation explanation = explain(run.program, run.costs, run.timeline);
    Time idle = 0;
    for (int rank = 0; rank < run.program.schedule.ranks(); ++rank) {
      idle += run.timeline.idle(rank);
      BOOST_TEST((joined(explanation.segments, rank) == windows_of(run, rank)));
    }
    Time explained = 0;
    for (const IdleSegment& each : explanation.segments) {
      explained += each.span.end - each.span.start;
      BOOST_TEST((each.cause != Cause::warm_up));
      BOOST_TEST((each.readiness != Readiness::over_limit));
      if (run.costs.model == CommunicationModel::latency) {
        BOOST_TEST((each.cause != Cause::link_busy && each.cause != Cause::head_of_line));
      }
      if (run.costs.launch == 0) BOOST_TEST((each.cause != Cause::launch));
    }
    BOOST_TEST(explained == idle);
  });
}

BOOST_AUTO_TEST_CASE(the_path_is_as_long_as_the_run) {
  for_each_run([](const Run& run) {
    const Explanation explanation = explain(run.program, run.costs, run.timeline);
    Time length = 0;
    for (std::size_t i = 0; i < explanation.path.size(); ++i) {
      const PathStep& step = explanation.path[i];
      if (i > 0) BOOST_TEST(step.span.start == explanation.path[i - 1].span.end);
      length += step.span.end - step.span.start;
      if (step.kind != PathStep::Kind::op) continue;
      const auto& ops = run.program.schedule.ops;
      const auto at = static_cast<std::size_t>(std::ranges::find_if(ops,
                                                                    [&](Op op) {
                                                                      return op.kind == step.op.kind &&
                                                                             op.stage == step.op.stage &&
                                                                             op.micro_batch == step.op.micro_batch;
                                                                    }) -
                                               ops.begin());
      BOOST_TEST(run.timeline.ops[at].start == step.span.start);
      if (!run.costs.release_early) BOOST_TEST(run.timeline.ops[at].end == step.span.end);
      BOOST_TEST(explanation.slack[at] == 0);
    }
    BOOST_TEST(length == run.timeline.makespan());
  });
}

BOOST_AUTO_TEST_CASE(slack_is_what_the_tail_leaves) {
  for_each_run([](const Run& run) {
    const Explanation explanation = explain(run.program, run.costs, run.timeline);
    for (const Time slack : explanation.slack) BOOST_TEST(slack >= 0);
    // Ops of no duration may start together, and have no order by time.
    const bool takes_time = std::ranges::all_of(run.timeline.ops, [](Span span) { return span.start < span.end; });
    if (run.costs.model != CommunicationModel::latency || has_pairs(run.program.schedule) || !takes_time) return;
    const auto tails = tails_of(run);
    bool all_equal = true;
    for (std::size_t i = 0; i < tails.size(); ++i) {
      all_equal &= explanation.slack[i] == run.timeline.makespan() - run.timeline.ops[i].start - tails[i];
    }
    BOOST_TEST(all_equal);
  });
}

// Where the run is as short as its rank's ops and the ways to and from it allow, that rank never idles between its ops,
// and so the path crosses no time in which one of them was ready and stood later in the order.
BOOST_AUTO_TEST_CASE(no_run_is_shorter_than_the_ideal) {
  int ideal = 0;
  for_each_run([&](const Run& run) {
    const Explanation explanation = explain(run.program, run.costs, run.timeline);
    const Time makespan = run.timeline.makespan();
    BOOST_TEST(explanation.ideal <= makespan);
    for (const RankTimes& rank : run.timeline.ranks) BOOST_TEST(rank.busy <= explanation.ideal);
    if (explanation.ideal < makespan) return;
    ++ideal;
    for (const PathStep& step : explanation.path) {
      if (step.kind == PathStep::Kind::op) continue;
      for (const IdleSegment& idle : explanation.segments) {
        const int receiver = run.program.schedule.placement.rank_of[step.op.stage];
        const bool is_beside = idle.rank == receiver && idle.span.start < step.span.end &&
                               idle.span.end > step.span.start && idle.span.start > run.timeline.ranks[0].first_start;
        if (is_beside && idle.span.end == step.span.end) BOOST_TEST((idle.readiness != Readiness::later));
      }
    }
  });
  BOOST_TEST(ideal > 0);
}

// ZB-1p of the zero-bubble authors' scheduler, at the durations of their 6.2B model.
BOOST_AUTO_TEST_CASE(zb1p_waits_for_input_gradients) {
  Costs costs = uniform(18522, 18086, 9337, 601);
  costs.stages[0].activation = 1000;
  costs.stages[0].weight_stash = 366;
  const Program program = lower(
      generate({.family = "zb-auto", .shape = {8, 24}, .costs = costs, .memory_limit = MemoryLimit::micro_batches(8)}));
  const Explanation explanation = explain(program, costs, simulate(program, costs));
  Causes causes;
  for (const IdleSegment& each : explanation.segments) {
    causes.time[static_cast<std::size_t>(each.cause)] += each.span.end - each.span.start;
  }
  const auto percent = [&](Cause cause) { return (causes.of(cause) * 100 + causes.total() / 2) / causes.total(); };
  BOOST_TEST(percent(Cause::input_gradient) == 51);
  BOOST_TEST(percent(Cause::forward) == 32);
  BOOST_TEST(percent(Cause::order) == 8);
  BOOST_TEST(percent(Cause::transfer) == 5);
  BOOST_TEST(percent(Cause::drain) == 4);
}

// 1F1B, F = 2, B = 3, a message takes 1; by hand, of each rank's windows what passes in them.
//
//   rank 0:  F0 F0 F1 F1 .  .  .  .  .  B0 B0 B0 .  .  B1 B1 B1     5: F0 until 5, B0 until 8, message; B1, message
//   rank 1:  .  .  .  F0 F0 B0 B0 B0 F1 F1 B1 B1 B1 .  .  .  .      0: F0, message; after the end message, B1 of rank 0
BOOST_AUTO_TEST_CASE(by_hand) {
  const Program program = lower(schedule_of(straight(2, 1), {"0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"}));
  const Costs costs = uniform(2, 2, 1, 1);
  const Explanation explanation = explain(program, costs, simulate(program, costs));
  std::string text;
  for (const IdleSegment& each : explanation.segments) {
    text += std::to_string(each.rank) + " " + std::to_string(each.span.start) + "-" + std::to_string(each.span.end) +
            " " + std::string(name(each.cause)) + " " + to_text(each.op) + " of " + std::to_string(each.from) + "\n";
  }
  BOOST_TEST(text ==
             "0 4-5 order 1F0 of 1\n"
             "0 5-8 B elsewhere 1B0 of 1\n"
             "0 8-9 transfer 0RECV_B0 of 1\n"
             "0 12-13 B elsewhere 1B1 of 1\n"
             "0 13-14 transfer 0RECV_B1 of 1\n"
             "1 0-2 F elsewhere 0F0 of 0\n"
             "1 2-3 transfer 1RECV_F0 of 0\n"
             "1 13-14 transfer 0RECV_B1 of 1\n"
             "1 14-17 drain 0B1 of 0\n");
  BOOST_TEST(explanation.path.size() == 8);
}

// A link that carries one message at a time: rank 1 waits for its third message while the second is on the link.
BOOST_AUTO_TEST_CASE(a_busy_link_is_named) {
  const Program program = lower(schedule_of(straight(2, 1), {"0F0 0F1 0F2", "1F0 1F1 1F2"}));
  Costs costs = uniform(1, 1, 1, 5);
  costs.model = CommunicationModel::links;
  const Explanation explanation = explain(program, costs, simulate(program, costs));
  Causes causes;
  for (const IdleSegment& each : explanation.segments) {
    causes.time[static_cast<std::size_t>(each.cause)] += each.span.end - each.span.start;
  }
  // Rank 1 runs at 6, 11 and 16: in each window its message is on the link. Rank 0 ends at 3.
  BOOST_TEST(causes.of(Cause::forward) == 1);
  BOOST_TEST(causes.of(Cause::transfer) == 5 + 4 + 4 + 5);
  BOOST_TEST(causes.of(Cause::link_busy) == 8);
  BOOST_TEST(causes.of(Cause::drain) == 1);
  BOOST_TEST(causes.total() == 14 + 14);
}

BOOST_AUTO_TEST_CASE(a_late_op_is_a_straggler) {
  const Program program = lower(generate("1f1b", {2, 4}));
  Costs costs = uniform(2, 2, 1);
  Timeline timeline = simulate(program, costs);
  // Rank 1 takes 7 for 1B1 instead of 3; all behind it is 4 later.
  const Time late = 4;
  const std::size_t slow = program.schedule.rank_begin[1] + 3;
  const Time cut = timeline.ops[slow].end;
  for (std::size_t i = 0; i < timeline.ops.size(); ++i) {
    if (i != slow && timeline.ops[i].start < cut) continue;
    if (i != slow) timeline.ops[i].start += late;
    timeline.ops[i].end += late;
  }
  const Explanation explanation = explain_measured(program, timeline);
  Time excess = 0;
  for (const IdleSegment& each : explanation.segments) {
    if (each.cause != Cause::straggler) continue;
    excess += each.span.end - each.span.start;
    BOOST_TEST(to_text(each.op) == "1B1");
    BOOST_TEST(each.from == 1);
  }
  BOOST_TEST(excess == late);
}

// A rank that may hold two micro-batches cannot run the third forward while it waits; with room for three it could.
BOOST_AUTO_TEST_CASE(a_memory_limit_tells_ready_from_allowed) {
  const Program program = lower(generate("1f1b", {2, 4}));
  const Costs costs = uniform(2, 2, 1);
  const Timeline timeline = simulate(program, costs);
  const auto idle_of_rank_0 = [&](const std::optional<MemoryLimit>& limit, Readiness readiness) {
    Time time = 0;
    for (const IdleSegment& each : explain(program, costs, timeline, limit).segments) {
      if (each.rank == 0 && each.readiness == readiness) time += each.span.end - each.span.start;
    }
    return time;
  };
  const Time all = timeline.idle(0);
  BOOST_TEST(idle_of_rank_0(std::nullopt, Readiness::later) > 0);
  BOOST_TEST(idle_of_rank_0(std::nullopt, Readiness::over_limit) == 0);
  BOOST_TEST(idle_of_rank_0(MemoryLimit::micro_batches(2), Readiness::later) == 0);
  BOOST_TEST(idle_of_rank_0(MemoryLimit::micro_batches(2), Readiness::over_limit) ==
             idle_of_rank_0(std::nullopt, Readiness::later));
  BOOST_TEST(idle_of_rank_0(MemoryLimit::micro_batches(3), Readiness::over_limit) == 0);
  BOOST_TEST(idle_of_rank_0(MemoryLimit::micro_batches(3), Readiness::nothing) <= all);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
