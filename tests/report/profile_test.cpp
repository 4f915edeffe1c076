#include "dualpipe/sim/report/profile.h"

#include <boost/test/unit_test.hpp>
#include <numeric>

#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

constexpr Time ms = 1'000'000;
constexpr Time us = 1'000;

Time sum(const auto& times) { return std::accumulate(times.begin(), times.end(), Time{0}); }

}  // namespace

BOOST_AUTO_TEST_SUITE(report_profile)

// 1F1B, P = 2, M = 2, F = 1 ms, B = 2 ms, a message takes 0.1 ms, launch 0.02 ms:
//   rank 0: F0 0-1   F1 1.02-2.02   B0 4.2-6.2    B1 7.32-9.32
//   rank 1:          F0 1.1-2.1     B0 2.12-4.12 → 4.22   F1 4.14-5.14   B1 5.16-7.16
// Rank 0's B0: rank 1 ends its B0 at 4.12, and it is there at 4.22; B1 in the same way at 7.26. So rank 0 waits for
// rank 1 from 2.02 to 4.12 and from 6.22 to 7.16, for transfers 0.1 ms each, and has launched one op by itself.
BOOST_AUTO_TEST_CASE(where_the_time_of_a_small_run_went) {
  const Program program = lower(generate("1f1b", {2, 2}));
  Costs costs = uniform(1 * ms, 1 * ms, 1 * ms, 100 * us);
  costs.launch = 20 * us;
  const Profile found = profile(program, simulate(program, costs));
  BOOST_TEST(found.ranks.size() == 2U);

  const RankProfile& rank0 = found.ranks[0];
  BOOST_TEST((rank0.busy == std::array<Time, 5>{2 * ms, 4 * ms, 0, 0, 0}));
  BOOST_TEST(rank0.before == 0);
  BOOST_TEST(rank0.after == 0);
  BOOST_TEST(rank0.waiting_for == (std::vector<Time>{0, 2100 * us + 940 * us}), boost::test_tools::per_element());
  BOOST_TEST(rank0.transfer == 200 * us);
  BOOST_TEST(rank0.launch == 20 * us);

  const RankProfile& rank1 = found.ranks[1];
  BOOST_TEST(rank1.before == 1100 * us);
  BOOST_TEST(rank1.after == 2100 * us);  // rank 0's last B, and the message to it
  BOOST_TEST(sum(rank1.waiting_for) == 0);
  BOOST_TEST(rank1.transfer == 0);
  BOOST_TEST(rank1.launch == 60 * us);
}

// All parts of a rank's time together are the makespan, whatever the schedule and the costs; and an op that is free to
// start but for its inputs is held up by them alone.
BOOST_AUTO_TEST_CASE(the_parts_make_up_the_makespan) {
  Random random(3);
  for (const Case& each : small_cases(4, 8)) {
    const Program program = lower(generate(each.family, each.shape));
    Costs costs = random_costs(random, program.schedule.placement, CommunicationModel::links);
    costs.launch = 0;
    const Timeline timeline = simulate(program, costs);
    const Profile found = profile(program, timeline);
    BOOST_TEST_CONTEXT(each) {
      for (std::size_t rank = 0; rank < found.ranks.size(); ++rank) {
        const RankProfile& parts = found.ranks[rank];
        BOOST_TEST(parts.launch == 0);
        BOOST_TEST(sum(parts.busy) == timeline.ranks[rank].busy);
        BOOST_TEST(sum(parts.busy) + parts.before + parts.after + sum(parts.waiting_for) + parts.transfer +
                       parts.launch ==
                   timeline.makespan());
        BOOST_TEST(parts.waiting_for[rank] == 0);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(overlap_is_by_the_ops_one_by_one) {
  const Program program = lower(generate("dualpipe", {4, 16}));
  const Costs costs = uniform(1 * ms, 1 * ms, 1 * ms, 0, 2400 * us);
  const Profile found = profile(program, simulate(program, costs));
  BOOST_TEST(found.apart > 0);
  BOOST_TEST(found.overlapped * 30 == found.apart * 24);  // 2.4 ms for 3 ms
  BOOST_TEST(to_text(found).find("F&B pairs take 80.00% of the time of F and B one by one") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
