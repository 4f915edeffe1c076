// What breaks each rule, and no other; and what breaks none.
#include "dualpipe/sim/schedule/validate.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "dualpipe/sim/schedule/lower.h"
#include "tests/schedule/violations.h"
#include "tests/support.h"

namespace dualpipe::test {

BOOST_AUTO_TEST_SUITE(schedule_validate)

BOOST_AUTO_TEST_CASE(no_such_stage) {
  check_violation(on_one_rank("0F0 1F0 0B0"), violation(Rule::no_such_stage, 0, 1, "1F0"),
                  "rank 0, op 1, 1F0: there is no stage 1, the placement has 1");
  Schedule schedule = on_one_rank("0F0 0B0 0F1");
  schedule.micro_batches = 1;
  check_violation(schedule, violation(Rule::no_such_stage, 0, 2, "0F1"),
                  "rank 0, op 2, 0F1: there is no micro-batch 1");
}

BOOST_AUTO_TEST_CASE(wrong_rank) {
  check_violation(schedule_of(straight(2, 1), {"0F0 0B0 1F0", "1F0 1B0"}), violation(Rule::wrong_rank, 0, 2, "1F0"),
                  "rank 0, op 2, 1F0: stage 1 is held by rank 1");
}

BOOST_AUTO_TEST_CASE(doubled) {
  check_violation(on_one_rank("0F0 0F0 0B0"), violation(Rule::doubled, 0, 1, "0F0"),
                  "rank 0, op 1, 0F0: runs a second time");
  check_violations(on_one_rank("0F0 0B0 0B0"), {violation(Rule::doubled, 0, 2, "0B0")});
  check_violations(on_one_rank("0F0 0I0 0I0 0W0"), {violation(Rule::doubled, 0, 2, "0I0")});
  check_violations(on_one_rank("0F0 0I0 0W0 0F0 0W0"),
                   {violation(Rule::doubled, 0, 3, "0F0"), violation(Rule::doubled, 0, 4, "0W0")});
}

BOOST_AUTO_TEST_CASE(missing) {
  check_violation(on_one_rank("0F0 0F1 0B1"), violation(Rule::missing, 0, 3, "0B0"),
                  "rank 0, 0B0: runs nowhere on its rank");
  check_violations(on_one_rank("0F0 0I0"), {violation(Rule::missing, 0, 2, "0W0")});
  check_violations(schedule_of(straight(2, 1), {"0F0 0F1 0B0 0B1", "1F0 1B0"}),
                   {violation(Rule::missing, 1, 2, "1F1"), violation(Rule::missing, 1, 2, "1B1")});
  // Without any backward there is none to miss.
  check_violations(schedule_of(straight(2, 1), {"0F0 0F1", "1F0"}), {violation(Rule::missing, 1, 1, "1F1")});
}

BOOST_AUTO_TEST_CASE(backward_before_forward) {
  check_violation(on_one_rank("0B0 0F0"), violation(Rule::backward_before_forward, 0, 0, "0B0", "0F0"),
                  "rank 0, op 0, 0B0: runs before 0F0");
  check_violations(on_one_rank("0I0 0F0 0W0"), {violation(Rule::backward_before_forward, 0, 0, "0I0", "0F0")});
  check_violations(on_one_rank("0F0 0W0 0I0"), {violation(Rule::backward_before_forward, 0, 1, "0W0", "0I0")});
}

BOOST_AUTO_TEST_CASE(split_and_full) {
  check_violation(on_one_rank("0F0 0I0 0B0"), violation(Rule::split_and_full, 0, 2, "0B0", "0I0"),
                  "rank 0, op 2, 0B0: clashes with 0I0: a backward is either B, or I and W");
  check_violations(on_one_rank("0F0 0B0 0W0"), {violation(Rule::split_and_full, 0, 2, "0W0", "0B0")});
  check_violations(on_one_rank("0F0 0B0 0I0 0W0"), {violation(Rule::split_and_full, 0, 2, "0I0", "0B0"),
                                                    violation(Rule::split_and_full, 0, 3, "0W0", "0B0")});
}

BOOST_AUTO_TEST_CASE(chain_order) {
  check_violation(on_one_rank("1F0 0F0 1B0 0B0", 2), violation(Rule::chain_order, 0, 0, "1F0", "0F0"),
                  "rank 0, op 0, 1F0: runs before 0F0, its neighbour in the chain on the same rank");
  check_violations(on_one_rank("0F0 1F0 0B0 1B0", 2), {violation(Rule::chain_order, 0, 2, "0B0", "1B0")});
  check_violations(on_one_rank("0F0 1F0 0I0 1I0 1W0 0W0", 2), {violation(Rule::chain_order, 0, 2, "0I0", "1I0")});
  // Either kind of backward will do, and the W's may come in any order.
  check_violations(on_one_rank("0F0 1F0 1B0 0I0 0W0", 2), {});
  check_violations(on_one_rank("0F0 1F0 1I0 0I0 0W0 1W0", 2), {});
  // Two chains have nothing to do with each other.
  check_violations(schedule_of(two_way(1), {"1F0 0F0 0B0 1B0"}), {});
}

// An op that is missing is, for what comes after it, nothing to run before.
BOOST_AUTO_TEST_CASE(what_follows_from_a_missing_op_is_not_told) {
  check_violations(on_one_rank("0B0 0F1 0B1"), {violation(Rule::missing, 0, 3, "0F0")});
  check_violations(on_one_rank("0F0 0W0"), {violation(Rule::missing, 0, 2, "0I0")});
  check_violations(on_one_rank("0F0 1F0 0F1 1F1 0B0 1B1 0B1", 2), {violation(Rule::missing, 0, 7, "1B0")});
}

BOOST_AUTO_TEST_CASE(a_micro_batch_too_many) {
  const Placement placement = straight(3, 1);
  check_violation(schedule_of(placement, {"0F0 0F1 0F2 0B0 0B1", "1F0 1F1 1B0 1B1", "2F0 2B0 2F1 2B1"}),
                  {Rule::stray_micro_batch, 0, 1, op("0F2"), op("0F2")},
                  "micro-batch 2 occurs only as 0F2 on rank 0; it must run through all stages, or not at all");
  // The numbers before it are missing because of it, and because of nothing else.
  check_violation(
      schedule_of(placement, {"0F0 0F1 0B0 0B1", "1F0 1F1 1F90 1B90 1B0 1B1", "2F0 2B0 2F1 2B1"}),
      {Rule::stray_micro_batch, 1, 2, op("1F90"), op("1B90")},
      "micro-batch 90 occurs only 2 times, first as 1F90 on rank 1 and last as 1B90; it must run through all "
      "stages, or not at all");
  check_violation(
      schedule_of(two_way(2), {"0F0 3F0 3B0 3F1 0B0", "1F0 2F0 1B0 2B0"}),
      {Rule::stray_micro_batch, 0, 1, op("3F1"), op("3F1")},
      "micro-batch 1 of chain 1 occurs only as 3F1 on rank 0; it must run through all stages, or not at all");
  // Forwards alone.
  check_violations(schedule_of(placement, {"0F0 0F1", "1F0", "2F0"}),
                   {{Rule::stray_micro_batch, 0, 1, op("0F1"), op("0F1")}});
}

BOOST_AUTO_TEST_CASE(micro_batches_that_occur_nowhere) {
  check_violation(on_one_rank("0F0 0B0 0F2 0B2"), violation(Rule::absent_micro_batches, 0, 1, "0F1"),
                  "micro-batch 1 occurs nowhere; they are numbered from 0, without gaps");
  check_violation(on_one_rank("0F2 0B2"), violation(Rule::absent_micro_batches, 0, 2, "0F0", "0F1"),
                  "micro-batches 0 to 1 occur nowhere; they are numbered from 0, without gaps");
  Schedule schedule = on_one_rank("0F0 0B0");
  schedule.micro_batches = 4;  // as a JSON file may say
  check_violations(schedule, {violation(Rule::absent_micro_batches, 0, 3, "0F1", "0F3")});
}

BOOST_AUTO_TEST_CASE(a_stage_too_many) {
  // On the rank of its neighbour, where each B would have to wait for its.
  check_violation(schedule_of(one_chain(std::vector<int>{0, 1, 1}), {"0F0 0F1 0B0 0B1", "1F0 1F1 2F0 1B0 1B1"}),
                  {Rule::stray_stage, 1, 1, op("2F0"), op("2F0")},
                  "stage 2 occurs only as 2F0 on rank 1; every micro-batch must run through it, or none");
  check_violation(schedule_of(straight(3, 1), {"0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1", ""}),
                  violation(Rule::absent_stage, 2, 0, "2F0"), "stage 2 runs nowhere, and rank 2 holds it");
}

BOOST_AUTO_TEST_CASE(a_backward_too_many) {
  check_violation(on_one_rank("0F0 0F1 0F2 0B1"), violation(Rule::backward_alone, 0, 3, "0B1"),
                  "rank 0, op 3, 0B1: is a backward, and most forwards have none");
}

BOOST_AUTO_TEST_CASE(a_message_too_many) {
  check_violation(program_of(straight(2, 1), {"0F0 0SEND_F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"}),
                  violation(Rule::message_alone, 0, 1, "0SEND_F0"),
                  "rank 0, slot 1, 0SEND_F0: is a message, and most of the others that this schedule needs are not "
                  "there; there must be all or none");
}

// One op put into a valid schedule, or taken out of it, whichever it is: what is said names it, and little else.
BOOST_AUTO_TEST_CASE(one_wrong_op_is_told_in_a_line_or_two) {
  for (const Case& a_case : {Case{"1f1b", {4, 8, 1}}, Case{"dualpipe", {4, 8, 1}}, Case{"interleaved", {4, 8, 2}}}) {
    const Schedule whole = generate(a_case.family, a_case.shape);
    for (std::size_t i = 0; i < whole.ops.size(); ++i) {
      if (whole.ops[i].with_next || (i > 0 && whole.ops[i - 1].with_next)) continue;
      BOOST_TEST_CONTEXT(a_case << ", op " << i) {
        Schedule less = whole;
        less.ops.erase(less.ops.begin() + static_cast<std::ptrdiff_t>(i));
        for (auto& begin : less.rank_begin) begin -= begin > i ? 1 : 0;
        BOOST_TEST(validate(less).size() == 1U);
        for (Op wrong : {whole.ops[i], {whole.ops[i].micro_batch + 50, whole.ops[i].stage, whole.ops[i].kind, false}}) {
          Schedule more = whole;
          more.ops.insert(more.ops.begin() + static_cast<std::ptrdiff_t>(i), wrong);
          for (auto& begin : more.rank_begin) begin += begin > i ? 1 : 0;
          more.micro_batches = std::max(more.micro_batches, wrong.micro_batch + 1);
          const std::size_t told = validate(more).size();
          BOOST_TEST(told >= 1U);
          BOOST_TEST(told <= 2U);
        }
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(pair) {
  check_violation(on_one_rank("(0F0;0B0)OVERLAP_F_B"), violation(Rule::pair, 0, 0, "0F0+", "0B0"),
                  "rank 0, op 0, 0F0: cannot overlap with 0B0: an F&B pair is a forward, then a full backward, of two "
                  "different micro-batches");
  // The same micro-batch in two stages of a chain, even where the order of the chain allows it.
  check_violations(on_one_rank("0F0 1F0 (0F1;1B0)OVERLAP_F_B 0B0 1F1 1B1 0B1", 2), {});
  check_violations(on_one_rank("0F0 (1F0;1B0)OVERLAP_F_B 0B0", 2), {violation(Rule::pair, 0, 1, "1F0+", "1B0")});
  // The same number in two chains is another micro-batch.
  check_violations(schedule_of(two_way(1), {"0F0 (1F0;0B0)OVERLAP_F_B 1B0"}), {});

  Schedule schedule = on_one_rank("0F0 0F1 0B0 0B1");
  for (const auto& [position, first, second] :
       {std::tuple{std::size_t{0}, "0F0+", "0F1"}, std::tuple{std::size_t{2}, "0B0+", "0B1"}}) {
    schedule.ops[position].with_next = true;
    check_violations(schedule, {violation(Rule::pair, 0, position, first, second)});
    schedule.ops[position].with_next = false;
  }
  schedule = on_one_rank("0F0 0F1 0I0 0W0 0B1");
  schedule.ops[1].with_next = true;
  check_violations(schedule, {violation(Rule::pair, 0, 1, "0F1+", "0I0")});
}

BOOST_AUTO_TEST_CASE(half_a_pair) {
  Schedule schedule = on_one_rank("0F0 0B0 0F1 0B1");
  schedule.ops.back().with_next = true;
  check_violation(schedule, violation(Rule::pair, 0, 3, "0B1+"),
                  "rank 0, op 3, 0B1: is the first half of an F&B pair without a second");
  // The next rank's first op is no partner.
  schedule = schedule_of(straight(2, 1), {"0F0 0F1", "1F0 1F1"});
  schedule.ops[1].with_next = true;
  check_violations(schedule, {violation(Rule::pair, 0, 1, "0F1+")});
  // Nor can there be a third.
  schedule = on_one_rank("0F0 (0F1;0B0)OVERLAP_F_B 0B1");
  schedule.ops[2].with_next = true;
  check_violations(schedule, {violation(Rule::pair, 0, 1, "0F1+", "0B0+"), violation(Rule::pair, 0, 2, "0B0+", "0B1")});
}

BOOST_AUTO_TEST_CASE(not_compute) {
  Schedule schedule = on_one_rank("0F0 0B0");
  schedule.ops.push_back(op("0SEND_F0"));
  schedule.rank_begin.back() = 3;
  check_violation(schedule, violation(Rule::not_compute, 0, 2, "0SEND_F0"),
                  "rank 0, op 2, 0SEND_F0: is communication, and a schedule holds only F, B, I and W");
}

BOOST_AUTO_TEST_CASE(all_are_reported_and_none_twice) {
  const Schedule schedule =
      schedule_of(v_shape(2), {"3F0 0B0 0F0 0F0 7F0 3B0", "1F0 (2F0;2B0)OVERLAP_F_B 0F1 1B0 2F1 2I1 2B1"});
  const auto violations = validate(schedule);
  check_violations(schedule, {
                                 violation(Rule::backward_before_forward, 0, 1, "0B0", "0F0"),
                                 violation(Rule::doubled, 0, 3, "0F0"),
                                 violation(Rule::no_such_stage, 0, 4, "7F0"),
                                 violation(Rule::missing, 0, 6, "0F1"),
                                 violation(Rule::missing, 0, 6, "0B1"),
                                 violation(Rule::missing, 0, 6, "3F1"),
                                 violation(Rule::missing, 0, 6, "3B1"),
                                 violation(Rule::pair, 1, 1, "2F0+", "2B0"),
                                 violation(Rule::wrong_rank, 1, 3, "0F1"),
                                 violation(Rule::split_and_full, 1, 7, "2B1", "2I1"),
                                 violation(Rule::missing, 1, 8, "1F1"),
                                 violation(Rule::missing, 1, 8, "1B1"),
                             });
  check_none_twice(violations);
}

// Any two ops of a rank exchanged: whatever it breaks is said once.
BOOST_AUTO_TEST_CASE(no_exchange_of_ops_is_reported_twice) {
  std::size_t broken = 0;
  for (const Case& a_case : {Case{"dualpipe", {4, 8, 1}}, Case{"zb1p", {3, 4, 1}}, Case{"interleaved", {2, 4, 2}}}) {
    BOOST_TEST_CONTEXT(a_case) {
      Schedule schedule = generate(a_case.family, a_case.shape);
      const auto size = schedule.rank(0).size();
      for (std::size_t i = 0; i < size; ++i) {
        for (std::size_t j = 0; j < i; ++j) {
          std::swap(schedule.ops[i], schedule.ops[j]);
          const auto violations = validate(schedule);
          if (!violations.empty()) ++broken;
          check_none_twice(violations);
          std::swap(schedule.ops[i], schedule.ops[j]);
        }
      }
    }
  }
  BOOST_TEST(broken > 100U);
}

BOOST_AUTO_TEST_CASE(valid_schedules_and_their_programs_have_none) {
  for (const Case& a_case : small_cases(6, 10)) {
    BOOST_TEST_CONTEXT(a_case) {
      Schedule schedule = generate(a_case.family, a_case.shape);
      check_violations(schedule, {});
      check_violations(lower(schedule), {});
    }
  }
}

BOOST_AUTO_TEST_CASE(forward_only_schedules_have_none) {
  for (const Placement& placement : {straight(3, 1), straight(2, 2), v_shape(2), two_way(2)}) {
    std::vector<std::string> ranks(static_cast<std::size_t>(placement.ranks));
    for (int micro_batch = 0; micro_batch < 3; ++micro_batch) {
      for (int stage = 0; stage < placement.stages(); ++stage) {
        const std::size_t rank = placement.rank_of[static_cast<std::size_t>(stage)];
        ranks[rank] += " " + std::to_string(stage) + "F" + std::to_string(micro_batch);
      }
    }
    const Schedule schedule = schedule_of(placement, ranks);
    check_violations(schedule, {});
    check_violations(lower(schedule), {});
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
