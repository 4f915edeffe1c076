// A run that was made slow on purpose is explained by what made it slow.
#include "dualpipe/exec/train/faults.h"

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <string>
#include <vector>

#include "dualpipe/exec/train/train.h"
#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/report/explain_report.h"
#include "dualpipe/sim/schedule/error.h"
#include "tests/exec/training.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe::test {

namespace data = boost::unit_test::data;

namespace {

constexpr Time ms = 1'000'000;

// The cause that most of the idle time has.
CauseReport largest_cause(const Program& program, const std::string& fault) {
  TrainOptions options = two_steps(program, "timed");
  options.shape.costs = uniform(4 * ms, 4 * ms, 4 * ms);
  add_fault(fault, options.faults, options.transport);
  const TrainResult result = train(program, options);
  const Timeline timeline = merge(program, result.measured.back());
  return explain_report(program, std::nullopt, timeline, explain_measured(program, timeline)).causes.at(0);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_faults)

BOOST_DATA_TEST_CASE(a_slow_rank_is_found, data::make({"1f1b", "zb1p"}), name) {
  const CauseReport cause = largest_cause(program_of(name, 4), "rank:2:4");
  BOOST_TEST((cause.cause != Cause::transfer));
  BOOST_TEST(cause.sources.at(0).rank == 2);
}

BOOST_DATA_TEST_CASE(a_slow_link_is_found, data::make({"1f1b", "zb1p"}), name) {
  const CauseReport cause = largest_cause(program_of(name, 4), "link:1-2:40ms");
  BOOST_TEST((cause.cause == Cause::transfer));
  BOOST_TEST(cause.sources.at(0).rank == 1);
  BOOST_TEST(cause.sources.at(0).to.value() == 2);
}

BOOST_DATA_TEST_CASE(a_late_op_is_found, data::make({"1f1b", "zb1p"}), name) {
  const Program program = program_of(name, 4);
  const std::string op = std::string(name) == "1f1b" ? "2B3" : "2I3";
  const CauseReport cause = largest_cause(program, "op:" + op + ":300ms");
  BOOST_TEST((cause.cause == Cause::straggler));
  BOOST_TEST(cause.sources.at(0).rank == 2);
  BOOST_TEST(cause.sources.at(0).op == op);
}

BOOST_AUTO_TEST_CASE(what_is_no_fault) {
  for (const char* const bad : {"", "rank", "rank:2", "rank:a:2", "rank:2:0", "rank:2:nan", "op:3B7", "op:3SEND_F7:1ms",
                                "op:(0F1;1B0)OVERLAP_F_B:1ms", "link:1:1ms", "link:1-1:1ms", "disk:1:1ms"}) {
    Faults faults;
    TransportOptions transport;
    BOOST_TEST(
        refusal([&] { add_fault(bad, faults, transport); }).find("is no fault, as rank:2:1.5") != std::string::npos,
        bad);
  }
  const Placement placement = program_of("1f1b", 2).schedule.placement;
  for (const char* const elsewhere : {"rank:2:2", "link:0-2:1ms", "link:2-0:1ms", "op:2F0:1ms"}) {
    Faults faults;
    TransportOptions transport;
    add_fault(elsewhere, faults, transport);
    BOOST_CHECK_THROW(check(faults, transport, placement), InputError);
  }
  Faults faults;
  TransportOptions transport;
  for (const char* const good : {"rank:1:2", "link:0-1:1ms", "op:1F0:1ms"}) add_fault(good, faults, transport);
  check(faults, transport, placement);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
