#include "dualpipe/sim/schedule/program.h"

#include <boost/test/unit_test.hpp>
#include <functional>
#include <string>

#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/validate.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

BOOST_AUTO_TEST_SUITE(schedule_program)

// What only a caller can make, no file: it must not be read out of bounds.
BOOST_AUTO_TEST_CASE(parts_that_do_not_fit_together) {
  const Program good = lower(generate("1f1b", {2, 2}));
  BOOST_TEST(validate(good).empty());
  const auto refused = [&](const std::function<void(Program&)>& change) {
    Program program = good;
    change(program);
    return refusal([&] { (void)validate(program); });
  };
  BOOST_TEST(refused([](Program& p) { p.schedule.placement.rank_of[1] = 7; }).find("rank 7") != std::string::npos);
  const std::string ops = "the 8 ops are not divided into 2 parts, one after the other";
  BOOST_TEST(refused([](Program& p) { p.schedule.rank_begin.pop_back(); }) == ops);
  BOOST_TEST(refused([](Program& p) { p.schedule.rank_begin[1] = 99; }) == ops);
  BOOST_TEST(refused([](Program& p) { ++p.schedule.rank_begin.back(); }) == ops);
  const std::string messages = "the 8 messages are not divided into 10 parts, one after the other";
  BOOST_TEST(refused([](Program& p) { p.slot_begin.clear(); }) == messages);
  BOOST_TEST(refused([](Program& p) { p.slot_begin[1] = 99; }) == messages);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
