// Numbers as people type them: what each text means to the last digit, and which texts mean nothing.
#include "dualpipe/sim/costs/quantity.h"

#include <boost/test/unit_test.hpp>
#include <limits>
#include <string>
#include <string_view>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

// What a parser says of a text that it does not take.
template <typename Parse>
std::string refusal(const Parse& parse, std::string_view text) {
  try {
    (void)parse(text);
  } catch (const InputError& error) {
    return error.what();
  }
  return "taken";
}

const std::string duration_help = "; a duration is a number and ns, us, ms or s, or a bare number of milliseconds";
const std::string byte_help =
    "; an amount is a number and B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, or a bare number of bytes";
const std::string time_help = "; a time is a number and ns, us, ms or s, as 5s";
const std::string bandwidth_help =
    "; a bandwidth is a number and a unit, as 50GB/s (bytes) or 400Gbps (bits); 0 is infinite";

BOOST_AUTO_TEST_SUITE(costs_quantity)

BOOST_AUTO_TEST_CASE(durations) {
  const struct {
    std::string_view text;
    Time nanoseconds;
  } cases[] = {
      {"0", 0},
      {"1", 1'000'000},
      {"18.522", 18'522'000},
      {"12ns", 12},
      {"850us", 850'000},
      {"850\u00b5s", 850'000},  // the micro sign
      {"850\u03bcs", 850'000},  // the Greek letter, as other keyboards have it
      {"1.5ms", 1'500'000},
      {"3s", 3'000'000'000},
      {"3 s", 3'000'000'000},
      {"  3  s  ", 3'000'000'000},
      {".5", 500'000},
      {"5.", 5'000'000},
      {"007us", 7'000},
      // To the nearest nanosecond, and up from the middle.
      {"0.4ns", 0},
      {"0.49999999999999999999999ns", 0},
      {"0.5ns", 1},
      {"1.5ns", 2},
      {"2.5ns", 3},
      {"0.0000005", 1},
      {"0.0000004999", 0},
      // Beyond the digits of a float.
      {"86399.999999999s", 86'399'999'999'999},
      {"86400s", time_max},
      {"86400000", time_max},
      {"86400.0000000004s", time_max},
  };
  for (const auto& [text, nanoseconds] : cases) {
    BOOST_TEST(parse_duration(text) == nanoseconds, text);
  }
}

BOOST_AUTO_TEST_CASE(what_is_no_duration) {
  for (const std::string_view text :
       {"",      " ",    ".",    "ns",   "1e3", "1e-3s", "nan",     "inf",     "infinity", "1 h",  "1min",
        "1MS",   "1Ms",  "1sec", "1n s", "1 2", "1,5",   "1.2.3",   "1..",     "+1",       "0x10", "1_000",
        "1'000", "1ms2", "\t1",  "1\n",  "ms1", "one",   "\u00b5s", "1\u00b5", "\uff11"}) {
    BOOST_TEST(refusal(parse_duration, text).find(" cannot be read" + duration_help) != std::string::npos, text);
  }
  BOOST_TEST(refusal(parse_duration, "1 h") == "'1 h' cannot be read" + duration_help);
  BOOST_TEST(refusal(parse_duration, std::string_view("1\0ms", 4)) == "'1\\x00ms' cannot be read" + duration_help);
  for (const std::string_view text : {"-1", "-0", "-1ms", " -5us", "-nan", "-"}) {
    BOOST_TEST(refusal(parse_duration, text).find(" is negative" + duration_help) != std::string::npos, text);
  }
  BOOST_TEST(refusal(parse_duration, "-1") == "'-1' is negative" + duration_help);
  for (const std::string_view text : {"86400.000000001s", "86400000.000001", "86400.0000000005s", "86401s", "1000000s",
                                      "999999999999999999999999s", "999999999999999999999999"}) {
    BOOST_TEST(refusal(parse_duration, text).find(" is too large" + duration_help) != std::string::npos, text);
  }
  BOOST_TEST(refusal(parse_duration, "86401s") == "'86401s' is too large" + duration_help);
  BOOST_TEST(refusal(parse_duration, "123456789012345678901234567890") ==
             "'123456789012345678901234567890' has more than 24 digits" + duration_help);
  BOOST_TEST(refusal(parse_duration, std::string(1'000'000, '9')) ==
             "'" + std::string(40, '9') + "…' has more than 24 digits" + duration_help);
}

BOOST_AUTO_TEST_CASE(times_with_a_unit) {
  BOOST_TEST(parse_time_with_unit("5s") == 5'000'000'000);
  BOOST_TEST(parse_time_with_unit(" 1.5 ms ") == 1'500'000);
  BOOST_TEST(parse_time_with_unit("0") == 0);
  for (const std::string_view text : {"5", "0.1", " 60 ", "5."}) {
    BOOST_TEST(refusal(parse_time_with_unit, text) == "'" + std::string(text) + "' has no unit" + time_help);
  }
  BOOST_TEST(refusal(parse_time_with_unit, "5m") == "'5m' cannot be read" + time_help);
  BOOST_TEST(refusal(parse_time_with_unit, "86401s") == "'86401s' is too large" + time_help);
}

BOOST_AUTO_TEST_CASE(amounts_of_bytes) {
  constexpr Bytes kibi = 1024;
  const struct {
    std::string_view text;
    Bytes bytes;
  } cases[] = {
      {"0", 0},
      {"4096", 4096},
      {"4096B", 4096},
      {"64KiB", 64 * kibi},
      {"64 KiB", 64 * kibi},
      {"64KB", 64'000},
      {"2MB", 2'000'000},
      {"2MiB", 2 * kibi * kibi},
      {"1.5GiB", 3 * kibi * kibi * kibi / 2},
      {"1.5GB", 1'500'000'000},
      {"3TB", 3'000'000'000'000},
      {"0.25TiB", kibi * kibi * kibi * kibi / 4},
      {"4096.0", 4096},
      {"0.0004KB", 0},
      {"0.0005KB", 1},
      {"1152921504606846976", bytes_max},
      {"1048576TiB", bytes_max},
  };
  for (const auto& [text, bytes] : cases) BOOST_TEST(parse_bytes(text) == bytes, text);

  for (const std::string_view text :
       {"", "B", "1K", "1M", "1kB", "1kib", "1Mb", "1Gbit", "1e9", "1GB/s", "nan", "1PiB"}) {
    BOOST_TEST(refusal(parse_bytes, text).find(" cannot be read" + byte_help) != std::string::npos, text);
  }
  for (const std::string_view text : {"0.5", "1.5", "1.5B", "4096.0001", "0.999 B"}) {
    BOOST_TEST(refusal(parse_bytes, text) == "'" + std::string(text) + "' is not a whole number of bytes" + byte_help);
  }
  BOOST_TEST(refusal(parse_bytes, "1K") == "'1K' cannot be read" + byte_help);
  BOOST_TEST(refusal(parse_bytes, "-1") == "'-1' is negative" + byte_help);
  BOOST_TEST(refusal(parse_bytes, "1152921504606846977") == "'1152921504606846977' is too large" + byte_help);
  BOOST_TEST(refusal(parse_bytes, "1048577TiB") == "'1048577TiB' is too large" + byte_help);
  BOOST_TEST(refusal(parse_bytes, "999999999999999999999999TiB") ==
             "'999999999999999999999999TiB' is too large" + byte_help);
}

BOOST_AUTO_TEST_CASE(bandwidths) {
  const struct {
    std::string_view text;
    double bytes_per_s;
  } cases[] = {
      {"0", 0},
      {"50GB/s", 50e9},
      {"50GB", 50e9},
      {"50GBps", 50e9},
      {"50 GB/s", 50e9},
      {"50 GB /s", 50e9},
      {"46GiB/s", 46.0 * 1024 * 1024 * 1024},
      {"0.5KB/s", 500},
      {"100B/s", 100},
      // In bits.
      {"400Gbps", 50e9},
      {"400 Gb/s", 50e9},
      {"400Gbit/s", 50e9},
      {"1.6Tbps", 200e9},
      {"100Mb/s", 12.5e6},
      {"8kbps", 1000},
      {"8Kbit/s", 1000},
      {"12bps", 1.5},
      {"1b/s", 0.125},
  };
  for (const auto& [text, bytes_per_s] : cases) BOOST_TEST(parse_bandwidth(text) == bytes_per_s, text);

  // Of bits there must be so many per second.
  for (const std::string_view text : {"", "/s", "nan", "inf", "1e400", "400Gb", "400gbps", "50GB/h", "50GB/s/s",
                                      "50e9GB/s", "50e9", "50e9/s", "1GiBit/s", "ps", "fast"}) {
    BOOST_TEST(refusal(parse_bandwidth, text).find(" cannot be read" + bandwidth_help) != std::string::npos, text);
  }
  BOOST_TEST(refusal(parse_bandwidth, "400Gb") == "'400Gb' cannot be read" + bandwidth_help);
  for (const std::string_view text : {"50", "50000000000", "400/s", " 5 "}) {
    BOOST_TEST(refusal(parse_bandwidth, text) == "'" + std::string(text) + "' has no unit" + bandwidth_help);
  }
  for (const std::string_view text : {"-1", "-0", "-50GB/s", "-1e9", "-400Gbps", "-inf", "-nan"}) {
    BOOST_TEST(refusal(parse_bandwidth, text).find(" is negative" + bandwidth_help) != std::string::npos, text);
  }
  BOOST_TEST(refusal(parse_bandwidth, "2000000TiB/s") == "'2000000TiB/s' is too large" + bandwidth_help);
  BOOST_TEST(refusal(parse_bandwidth, "9000000Tbps") == "'9000000Tbps' is too large" + bandwidth_help);
}

BOOST_AUTO_TEST_CASE(integers) {
  constexpr auto least = std::numeric_limits<std::int64_t>::min();
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  const auto parse = [](std::string_view text) { return parse_integer(text, 1, 8); };
  BOOST_TEST(parse("1") == 1);
  BOOST_TEST(parse(" 8 ") == 8);
  BOOST_TEST(parse("0008") == 8);
  BOOST_TEST(parse_integer("-9223372036854775808", least, most) == least);
  BOOST_TEST(parse_integer("9223372036854775807", least, most) == most);

  const std::string help = "; a whole number from 1 to 8 is expected";
  for (const std::string_view text : {"", " ", "-", "1.0", "1e1", "+1", "0x1", "1 2", "1,", "nan", "eight"}) {
    BOOST_TEST(refusal(parse, text).find(" cannot be read" + help) != std::string::npos, text);
  }
  BOOST_TEST(refusal(parse, "1.0") == "'1.0' cannot be read" + help);
  for (const std::string_view text : {"0", "9", "-1", "1000000000", "9223372036854775808", "-9223372036854775809",
                                      "99999999999999999999999999999999"}) {
    BOOST_TEST(refusal(parse, text) == "'" + std::string(text) + "' is out of range" + help);
  }
}

BOOST_AUTO_TEST_CASE(reals) {
  BOOST_TEST(parse_real("0.05") == 0.05);
  BOOST_TEST(parse_real("1e-3") == 0.001);
  BOOST_TEST(parse_real(" -2.5 ") == -2.5);
  BOOST_TEST(parse_real("1.7976931348623157e308") == std::numeric_limits<double>::max());

  const std::string help = "; a finite decimal number is expected";
  for (const std::string_view text : {"", ".", "e1", "1,5", "+1", "0x10", "1 2", "5%", "half"}) {
    BOOST_TEST(refusal(parse_real, text) == "'" + std::string(text) + "' cannot be read" + help);
  }
  for (const std::string_view text : {"nan", "inf", "-inf", "1e400", "-1e400", "1e-400"}) {
    BOOST_TEST(refusal(parse_real, text) == "'" + std::string(text) + "' is out of range" + help);
  }
}

BOOST_AUTO_TEST_CASE(memory_limits) {
  BOOST_TEST((parse_memory_limit("8000B") == MemoryLimit(Bytes{8000})));
  BOOST_TEST((parse_memory_limit("8000") == MemoryLimit(Bytes{8000})));
  BOOST_TEST((parse_memory_limit("1.5GiB") == MemoryLimit(Bytes{1'610'612'736})));
  BOOST_TEST((parse_memory_limit("0") == MemoryLimit(Bytes{0})));
  BOOST_TEST((parse_memory_limit("8microbatches") == MemoryLimit::micro_batches(8)));
  BOOST_TEST((parse_memory_limit(" 1 microbatch ") == MemoryLimit::micro_batches(1)));
  BOOST_TEST((parse_memory_limit("7.5 microbatches") == MemoryLimit(7'500'000, MemoryLimit::Unit::micro_batches)));
  const std::string help =
      "; a memory limit is a number and B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, a bare number of bytes, or a number "
      "of "
      "microbatches";
  BOOST_TEST(refusal(parse_memory_limit, "8 micro-batches") == "'8 micro-batches' cannot be read" + help);
  BOOST_TEST(refusal(parse_memory_limit, "8mb") == "'8mb' cannot be read" + help);
  BOOST_TEST(refusal(parse_memory_limit, "microbatches") == "'microbatches' cannot be read" + help);
  BOOST_TEST(refusal(parse_memory_limit, "") == "'' cannot be read" + help);
  BOOST_TEST(refusal(parse_memory_limit, "-1 microbatch") == "'-1 microbatch' is negative" + help);
  BOOST_TEST(refusal(parse_memory_limit, "1e7 microbatches") == "'1e7 microbatches' cannot be read" + help);
  BOOST_TEST(refusal(parse_memory_limit, "99999999 microbatches") == "'99999999 microbatches' is too large" + help);

  BOOST_TEST(to_text(Bytes{8000}) == "8000 bytes");
  BOOST_TEST(to_text(MemoryLimit::micro_batches(1)) == "1 micro-batch");
  BOOST_TEST(to_text(MemoryLimit::micro_batches(20)) == "20 micro-batches");
  BOOST_TEST(to_text({7'500'000, MemoryLimit::Unit::micro_batches}) == "7.5 micro-batches");
  BOOST_TEST(to_text({1, MemoryLimit::Unit::micro_batches}) == "0.000001 micro-batches");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
