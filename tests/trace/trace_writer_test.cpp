#include "dualpipe/sim/trace/trace_writer.h"

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>
#include <sstream>

namespace dualpipe::test {
namespace {

using Json = nlohmann::json;

BOOST_AUTO_TEST_SUITE(trace_trace_writer)

BOOST_AUTO_TEST_CASE(text_is_escaped) {
  std::ostringstream out;
  TraceWriter writer(out);
  writer.process(1000, "a \"b\"\\\n");
  writer.thread({1000, 1}, "\x01");
  writer.slice({1000, 1}, "c", "F 0", {-1'500, 0}, TraceArgs().add("k\"", "v\"").add("n", -7));
  writer.finish();
  const Json document = Json::parse(out.str());
  const Json& events = document.at("traceEvents");
  BOOST_TEST(events[0]["args"]["name"] == "a \"b\"\\\n");
  BOOST_TEST(events[1]["args"]["name"] == "\x01");
  BOOST_TEST(events[3]["args"]["k\""] == "v\"");
  BOOST_TEST(events[3]["args"]["n"] == -7);
  BOOST_TEST(out.str().find("\"ts\":-1.500,\"dur\":1.500") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
