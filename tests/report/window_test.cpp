#include "dualpipe/sim/report/window.h"

#include <boost/test/unit_test.hpp>

#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

// One op, which starts late: the times of a window count from there.
Timeline late() {
  Timeline timeline;
  timeline.ops = {{1'000'000, 34'000'000}};
  return timeline;
}

std::string error_of(Span asked) {
  return refusal([&] { static_cast<void>(window_of(late(), asked)); });
}

}  // namespace

BOOST_AUTO_TEST_SUITE(report_window)

BOOST_AUTO_TEST_CASE(counts_from_the_first_op) {
  BOOST_TEST((window_of(late(), {0, 5}) == Span{1'000'000, 1'000'005}));
  BOOST_TEST((window_of(late(), {32'999'999, 40'000'000}) == Span{33'999'999, 41'000'000}));
}

BOOST_AUTO_TEST_CASE(what_the_run_does_not_reach_is_refused) {
  BOOST_TEST(error_of({33'000'000, 40'000'000}) == "it begins at 33 ms, and the run ends at 33 ms");
  BOOST_TEST(error_of({5, 5}) == "the end must be after the begin");
  BOOST_TEST(error_of({6, 5}) == "the end must be after the begin");
  BOOST_TEST(error_of({-1, 5}) == "the begin must not be before the run");
  BOOST_TEST(refusal([] {
               static_cast<void>(window_of({}, {0, 1}));
             }) == "it begins at 0 ns, and the run ends at 0 ns");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
