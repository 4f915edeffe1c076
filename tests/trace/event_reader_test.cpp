// The Chrome trace as a format, whoever wrote it: both forms, every way to write a time, gzip, and hostile files.
#include "dualpipe/sim/trace/event_reader.h"

#include <zlib.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <fstream>
#include <functional>
#include <sstream>
#include <streambuf>
#include <string>
#include <vector>

#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

namespace data = boost::unit_test::data;

using Take = std::function<void(const TraceEvent&)>;

void read(const std::string& text, const Take& take) {
  std::istringstream in(text);
  read_trace_events(in, "t.json", take);
}

std::vector<std::string> names(const std::string& text) {
  std::vector<std::string> names;
  read(text, [&](const TraceEvent& event) { names.push_back(event.has("name") ? event.text("name") : "-"); });
  return names;
}

std::string error_of(
    const std::string& text, const Take& take = [](const TraceEvent&) {}) {
  return refusal([&] { read(text, take); });
}

// The span of the only event.
Span span_of(const std::string& start, const std::string& duration) {
  Span span;
  read(R"([{"ts":)" + start + R"(,"dur":)" + duration + "}]", [&](const TraceEvent& event) { span = event.span(); });
  return span;
}
std::string span_error(const std::string& start, const std::string& duration) {
  return error_of(R"([{"ts":)" + start + R"(,"dur":)" + duration + "}]",
                  [](const TraceEvent& event) { static_cast<void>(event.span()); });
}

std::string gzip(const std::string& text) {
  z_stream stream{};
  BOOST_TEST_REQUIRE(deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string result(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(result.data());
  stream.avail_out = static_cast<uInt>(result.size());
  BOOST_TEST_REQUIRE(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  result.resize(stream.total_out);
  deflateEnd(&stream);
  return result;
}

// A text that is never all there: each piece as often as it says.
class Pieces : public std::streambuf {
 public:
  explicit Pieces(std::vector<std::pair<std::string, std::size_t>> pieces) : pieces_(std::move(pieces)) {}

 protected:
  int_type underflow() override {
    while (at_ < pieces_.size() && pieces_[at_].second == 0) ++at_;
    if (at_ == pieces_.size()) return traits_type::eof();
    auto& [text, times] = pieces_[at_];
    --times;
    setg(text.data(), text.data(), text.data() + text.size());
    return traits_type::to_int_type(text[0]);
  }

 private:
  std::vector<std::pair<std::string, std::size_t>> pieces_;
  std::size_t at_ = 0;
};

// KiB of this process's memory: now, or at the peak since the last reset.
std::size_t memory_of_process(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key + ":")) return std::stoull(line.substr(key.size() + 1));
  }
  BOOST_FAIL("the system does not say " << key);
  return 0;
}
void reset_peak_memory() { std::ofstream("/proc/self/clear_refs") << 5; }

// What a profiler writes: nothing of it is ours.
const std::string foreign_event =
    R"({"ph":"X","cat":"cpu_op","name":"aten::add","pid":77,"tid":77,"ts":5043032597219.918,"dur":5.11,)"
    R"("args":{"External id":1,"Input Dims":[[2,3],[]],"Call stack":"a \"b\" \\","nan":NaN}})";

}  // namespace

BOOST_AUTO_TEST_SUITE(trace_event_reader)

BOOST_AUTO_TEST_CASE(both_forms) {
  const std::vector<std::string> ab{"a", "b"};
  const std::string events = R"({"name":"a"}, {"name":"b"})";
  for (const std::string& text :
       {"{\"traceEvents\":[" + events + "]}", "[" + events + "]", " [\n" + events + "\n]\n",
        "\xef\xbb\xbf[" + events + "]", "[" + events, "[" + events + ",\n", "[" + events + ", ",
        R"({"displayTimeUnit":"ns","x":{"traceEvents":[[]]},"traceEvents":[)" + events + R"(],"y":[1,{"z":null}]})"}) {
    BOOST_TEST_CONTEXT(text) { BOOST_TEST(names(text) == ab, boost::test_tools::per_element()); }
  }
  for (const std::string text : {"[]", "[", " [ ", R"({"traceEvents":[]})"}) BOOST_TEST(names(text).empty());
}

// The unit is for display: times stay microseconds.
BOOST_AUTO_TEST_CASE(times_are_exact_to_the_nanosecond) {
  const struct {
    std::string start, duration;
    Span span;
  } cases[] = {
      {"0", "0", {0, 0}},
      {"1", "2", {1'000, 3'000}},
      {"1.5", "0.25", {1'500, 1'750}},
      {"-1.001", "0.001", {-1'001, -1'000}},
      {"5043032597219.918", "5.11", {5'043'032'597'219'918, 5'043'032'597'225'028}},
      {"1e3", "1E0", {1'000'000, 1'001'000}},
      {"1.25e+2", "1e-3", {125'000, 125'001}},
      {"125000e-3", "0.0000e9", {125'000, 125'000}},
      {"2305843009213.6939521234567890123456789", "0", {2'305'843'009'213'694, 2'305'843'009'213'694}},
      {"1e-999999999999999999999", "1", {0, 1'000}},
      {"0.0004", "0.0001", {0, 1}},  // 0.4 ns, and 0.5 ns up
      {"0.0014", "0.0002", {1, 2}},  // an end is rounded by itself: 1.6 ns
      {"-0.0005", "0.001", {0, 1}},  // up from the middle, on either side of zero
      {"-0.0006", "0.0000001", {-1, -1}},
      {"0." + std::string(40, '0') + "1", "1", {0, 1'000}},
      {"2305843009213693.952", "0", {run_time_max, run_time_max}},
  };
  for (const auto& [start, duration, span] : cases) {
    BOOST_TEST_CONTEXT(start << " " << duration) {
      const Span found = span_of(start, duration);
      BOOST_TEST(found.start == span.start);
      BOOST_TEST(found.end == span.end);
    }
  }
  // Slices that touch in the file touch here.
  for (int i = 0; i < 1000; ++i) {
    const std::string start = "7." + std::to_string(10'000 + i);
    const std::string end = "7." + std::to_string(10'000 + 2 * i);
    const std::string duration = "0." + std::to_string(100'000 + i).substr(1);
    BOOST_TEST(span_of(start, duration).end == span_of(end, "1").start, start << " " << duration);
  }
}

BOOST_AUTO_TEST_CASE(what_is_no_time) {
  for (const std::string text : {"\"1\"", "null", "true", "NaN", "1.2.3", "1e", "1e+", "-", "1-2", "{}", "[1]"}) {
    const std::string error = span_error(text, "1");
    const bool named = error.find(": [0].ts: expected a number of microseconds, not ") != std::string::npos;
    BOOST_TEST((named || error.find("invalid literal") != std::string::npos), error);
  }
  BOOST_TEST(span_error("2305843009213693.952", "0.0005") == "t.json: [0].dur: ends after more than 73 years");
  BOOST_TEST(span_error("2305843009213694", "0") == "t.json: [0].ts: more than 73 years");
  BOOST_TEST(span_error("-1e30", "0") == "t.json: [0].ts: more than 73 years");
  BOOST_TEST(span_error("1", "1e999") == "t.json: [0].dur: more than 73 years");
  BOOST_TEST(span_error("1", "-1e-3") == "t.json: [0].dur: a slice cannot end before it starts");
}

BOOST_AUTO_TEST_CASE(values_are_looked_at_when_asked_for) {
  read(R"([{"n\u0061me":"\u00e9\ud83d\ude00\n\/","pid":"rank 0","args":{"a":-5,"b":{"c":[1]},"d":"x","e":"\q"}}])",
       [](const TraceEvent& event) {
         BOOST_TEST(event.text("name") == "\u00e9\U0001F600\n/");
         BOOST_TEST(event.is("name", "\u00e9\U0001F600\n/"));
         BOOST_TEST(!event.is("name", ""));
         BOOST_TEST(!event.is("args.a", "-5"));
         BOOST_TEST(event.integer("args.a", -5, -5) == -5);
         BOOST_TEST(event.json("args.b") == R"({"c":[1]})");
         BOOST_TEST(event.json("pid") == "\"rank 0\"");
         BOOST_TEST((event.has("args.d") && !event.has("d") && !event.has("args.name") && !event.has("args")));
         const auto refused = [&](const auto& ask) { return refusal([&] { static_cast<void>(ask()); }); };
         BOOST_TEST(refused([&] { return event.text("ph"); }) == "t.json: [0].ph: is missing");
         BOOST_TEST(refused([&] { return event.text("args.b"); }) ==
                    "t.json: [0].args.b: expected a string, not an object");
         BOOST_TEST(refused([&] { return event.text("args.e"); }) ==
                    "t.json: [0].args.e: '\"\\q\"' has a backslash that means nothing");
         BOOST_TEST(refused([&] { return event.integer("args.a", 0, 7); }) ==
                    "t.json: [0].args.a: expected a whole number from 0 to 7, not '-5'");
       });
  BOOST_TEST(error_of(R"([{"a":1,"a":2,"b":1}])", [](const TraceEvent& event) {
               BOOST_TEST(event.integer("b", 0, 1) == 1);  // what is not asked for may be there twice
               static_cast<void>(event.json("a"));
             }) == "t.json: [0].a: is there twice");
}

BOOST_AUTO_TEST_CASE(what_is_not_of_one_piece) {
  const struct {
    std::string text, error;
  } cases[] = {
      {"", "t.json:1:1: syntax error while parsing value - unexpected end of input"},
      {"7", "t.json: expected an object, or a list of events"},
      {"[1]", "t.json: [0]: expected an event"},
      {"[[]]", "t.json: [0]: expected an event, not a list"},
      {"[{}\n {}]", "t.json:2:2: syntax error while parsing array - unexpected '{}]'"},
      {"[{},]", "t.json: [1]: expected an event"},
      {"[{\"a\"", "t.json:1:6: syntax error while parsing object separator - unexpected end of input"},
      {"[{\"a\":1", "t.json:1:8: syntax error while parsing object - unexpected end of input"},
      {"[{\"a\":\"b", "t.json:1:9: syntax error while parsing value - unexpected end of input"},
      {"[{\"a\":\"b\\", "t.json:1:10: syntax error while parsing value - unexpected end of input"},
      {"[{\"a\":[1,2}]", "t.json:1:11: syntax error while parsing array - unexpected '}]'"},
      {"[{\"a\":wrong}]", "t.json:1:12: syntax error while parsing value - invalid literal, near 'wrong'"},
      {"[{\"a\":}]", "t.json:1:7: syntax error while parsing value - unexpected '}]'"},
      {"[{\"a\":\"b\nc\"}]", "t.json:1:9: syntax error while parsing value - unexpected '\\x0ac\"}]'"},
      {"[{}] x", "t.json:1:6: syntax error while parsing end of input - unexpected 'x'"},
      {R"({"traceEvents":[{}])", "t.json:1:20: syntax error while parsing object - unexpected end of input"},
      {R"({"traceEvents":[{},)", "t.json:1:20: syntax error while parsing value - unexpected end of input"},
      {"\x1f\x8c", "t.json: neither JSON nor a gzip file"},
      {"\x1f", "t.json: neither JSON nor a gzip file"},
      {"[{\"a\":" + std::string(65, '[') + std::string(65, ']') + "}]", "t.json: nested too deeply"},
  };
  for (const auto& [text, error] : cases) BOOST_TEST(error_of(text) == error);
}

// At any place of the blocks in which it is read: places, and an event that two blocks share.
BOOST_AUTO_TEST_CASE(blocks_do_not_show) {
  for (const std::size_t size :
       {std::size_t{262'100}, std::size_t{262'143}, std::size_t{262'144}, std::size_t{700'000}}) {
    const std::string padding(size, ' ');
    BOOST_TEST(names(R"([{"name":"a"},)" + padding + R"({"name":"b\u0062"},)" + foreign_event + "]")[1] == "bb");
    const std::string text(size, 'x');
    BOOST_TEST((names(R"([{"name":")" + text + R"("},{"name":"b"}])") == std::vector<std::string>{text, "b"}));
    BOOST_TEST(error_of("[\n\n" + padding + "{}\n\n  7]") ==
               "t.json:5:3: syntax error while parsing array - unexpected '7]'");
  }
}

// 200 MB, in events and in what is no event, of which the process keeps a few blocks.
BOOST_AUTO_TEST_CASE(what_is_stepped_over_takes_no_memory) {
  std::string block;
  while (block.size() < 100'000) block += foreign_event + ",\n";
  Pieces pieces({{R"({"traceEvents":[)", 1},
                 {block, 1000},
                 {R"({"ph":"M"}],"stacks":")", 1},
                 {std::string(100'000, 'x'), 1000},
                 {"\"}", 1}});
  std::istream in(&pieces);
  std::size_t events = 0;
  reset_peak_memory();
  const std::size_t before = memory_of_process("VmRSS");
  read_trace_events(in, "t.json", [&](const TraceEvent& event) { events += event.is("ph", "X") ? 1U : 0U; });
  BOOST_TEST(events > 400'000U);
  BOOST_TEST(memory_of_process("VmHWM") < before + 4'000U);
}

// Nor may one event take as much as it likes.
BOOST_AUTO_TEST_CASE(an_event_has_bounds) {
  const auto error_of_pieces = [](std::vector<std::pair<std::string, std::size_t>> pieces) {
    Pieces buffer(std::move(pieces));
    std::istream in(&buffer);
    return refusal([&] { read_trace_events(in, "t.json", [](const TraceEvent&) {}); });
  };
  BOOST_TEST(error_of_pieces({{"[{", 1}, {R"("a":1,)", 65'537}, {R"("a":1}])", 1}}) ==
             "t.json: an event of more than 65536 values");
  BOOST_TEST(error_of_pieces({{"[{\"a\":\"", 1}, {std::string(1U << 20U, 'x'), 65}, {"\"}]", 1}}) ==
             "t.json:1:67108866: an event of more than 64 MiB");
}

BOOST_AUTO_TEST_CASE(gzip_is_known_by_its_content) {
  const std::string text = R"([{"name":"a"},)" + foreign_event + R"(,{"name":"b"}])";
  const std::vector<std::string> expected{"a", "aten::add", "b"};
  BOOST_TEST(names(gzip(text)) == expected, boost::test_tools::per_element());
  // Members one after another are one text.
  BOOST_TEST(names(gzip(text.substr(0, 30)) + gzip("") + gzip(text.substr(30))) == expected,
             boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(a_gzip_file_that_is_damaged_is_an_error) {
  std::string text = "[";
  for (int i = 0; i < 1000; ++i) text += R"({"name":")" + std::to_string(i * 7919) + "\"},";
  text.back() = ']';
  const std::string whole = gzip(text);
  for (std::size_t size = 2; size < whole.size(); ++size) {
    const std::string error = error_of(whole.substr(0, size));
    if (error != "t.json: the compressed file ends in the middle; was it cut off?") BOOST_ERROR(size << ": " << error);
  }
  std::string flipped = whole;
  flipped[flipped.size() - 5] ^= 1;  // of the checksum, and of the length
  BOOST_TEST(error_of(flipped) == "t.json: the compressed file is damaged: incorrect data check");
  flipped = whole;
  flipped[flipped.size() - 1] ^= 1;
  BOOST_TEST(error_of(flipped) == "t.json: the compressed file is damaged: incorrect length check");
  BOOST_TEST(error_of(whole + "x").find("t.json: the compressed file ") == 0U);
  for (std::size_t i = 10; i < whole.size(); ++i) {  // behind the header
    flipped = whole;
    flipped[i] = static_cast<char>(flipped[i] ^ 0x10);
    // Bits between the data and the checksum mean nothing.
    const bool is_seen = error_of(flipped).find("t.json:") == 0U;
    if (!is_seen && names(flipped) != names(text)) BOOST_ERROR("byte " << i << " may be flipped");
  }
}

// A kilobyte for every megabyte.
BOOST_AUTO_TEST_CASE(a_gzip_bomb_is_refused) {
  std::string bomb = gzip("[");
  const std::string megabytes = gzip(std::string(std::size_t{1} << 24U, ' '));
  for (int i = 0; i < 1000; ++i) bomb += megabytes;  // 16 GB
  BOOST_TEST(error_of(bomb) ==
             "t.json: the compressed file expands to more than 200 times its size, which no trace does");
  // What is small may repeat itself as it likes.
  BOOST_TEST(names(gzip("[" + std::string(10'000'000, ' ') + "]")).empty());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
