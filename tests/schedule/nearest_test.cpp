// What is suggested for a mistyped name, and what is not.
#include "dualpipe/sim/schedule/nearest.h"

#include <boost/test/unit_test.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace dualpipe {
namespace {

BOOST_AUTO_TEST_SUITE(schedule_nearest)

const std::vector<std::string> schedules{"gpipe", "1f1b",  "interleaved", "looped-bfs",
                                         "zb1p",  "zb-h2", "dualpipe",    "dualpipev"};
const std::vector<std::string> options{"--forward", "--backward", "--weight", "--weight-stash-bytes", "--bytes"};

BOOST_AUTO_TEST_CASE(slips) {
  const struct {
    std::string_view typed, meant;
  } cases[] = {
      {"1f1bb", "1f1b"},  // one letter too many
      {"11fb", "1f1b"},   // two swapped
      {"gipe", "gpipe"},  // one left out
      {"interleeved", "interleaved"},
      {"intreleved", "interleaved"},  // one swap, one left out
      {"DualPipe", "dualpipe"},       // case
      {"DUALPIPEV", "dualpipev"},
      {"ZB_H2", "zb-h2"},
      {"zbh2", "zb-h2"},
      {"dualpip", "dualpipe"},  // the nearer of two
      {"inter", "interleaved"},
      {"loo", "looped-bfs"},
  };
  for (const auto& [typed, meant] : cases) BOOST_TEST(nearest_name(typed, schedules) == meant, typed);
  BOOST_TEST(nearest_name("--foward", options) == "--forward");
  BOOST_TEST(nearest_name("--weigth", options) == "--weight");
  BOOST_TEST(nearest_name("--byte", options) == "--bytes");
}

BOOST_AUTO_TEST_CASE(what_is_not_close) {
  for (const std::string_view typed :
       {"", "-", "z", "zb", "1f", "zb-h1", "zb2p", "2f2b", "pipedream", "no-such-schedule"}) {
    BOOST_TEST(nearest_name(typed, schedules) == "", typed);
  }
  BOOST_TEST(nearest_name("dual", schedules) == "");  // two begin with it
  BOOST_TEST(nearest_name(std::string(1'000'000, '1'), schedules) == "");
  BOOST_TEST(nearest_name("1f1b", {}) == "");
}

BOOST_AUTO_TEST_CASE(as_a_question) {
  BOOST_TEST(did_you_mean("1f1bb", schedules) == "; did you mean 1f1b?");
  BOOST_TEST(did_you_mean("pipedream", schedules) == "");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
