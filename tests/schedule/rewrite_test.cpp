#include "dualpipe/sim/schedule/rewrite.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "tests/support.h"

namespace dualpipe::test {

BOOST_AUTO_TEST_SUITE(schedule_rewrite)

BOOST_AUTO_TEST_CASE(split_passes_keep_the_order) {
  const Schedule schedule = split_passes(generate("dualpipev", {2, 4}));
  BOOST_TEST(validate(schedule).empty());
  BOOST_TEST(text_of_rank(schedule, 1) ==
             "1F0 2F0 1F1 2F1 1F2 2I0 2W0 2F2 1I0 1W0 1F3 2I1 2W1 2F3 1I1 1W1 2I2 2W2 1I2 1W2 2I3 1I3 2W3 1W3");
}

BOOST_AUTO_TEST_CASE(forwards_keep_the_order) {
  const Schedule schedule = forwards_of(generate("dualpipev", {2, 4}));
  BOOST_TEST(validate(schedule).empty());
  BOOST_TEST(text_of_rank(schedule, 0) == "0F0 0F1 0F2 3F0 3F1 0F3 3F2 3F3");
  BOOST_TEST(text_of_rank(schedule, 1) == "1F0 2F0 1F1 2F1 1F2 2F2 1F3 2F3");
}

// Of every family: what is no longer there, and what stays.
BOOST_AUTO_TEST_CASE(of_every_family) {
  for (const Case& each : small_cases(4, 8)) {
    BOOST_TEST_CONTEXT(each) {
      const Schedule whole = generate(each.family, each.shape);
      for (const Schedule& schedule : {split_passes(whole), forwards_of(whole)}) {
        BOOST_TEST(schedule.name == whole.name);
        BOOST_TEST((schedule.placement == whole.placement));
        BOOST_TEST(schedule.micro_batches == whole.micro_batches);
        BOOST_TEST(std::ranges::none_of(schedule.ops, &Op::with_next));
        BOOST_TEST(std::ranges::none_of(schedule.ops, [](Op op) { return op.kind == Kind::backward; }));
        const Program program = lower(schedule);
        BOOST_TEST(validate(program).empty());
        BOOST_TEST(!find_deadlock(program, CommunicationModel::latency).has_value());
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
