#include "dualpipe/sim/report/text_table.h"

#include <boost/test/unit_test.hpp>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace dualpipe::test {

BOOST_AUTO_TEST_SUITE(report_text_table)

BOOST_AUTO_TEST_CASE(four_forms) {
  TextTable table({{"name", Align::left}, {"µs"}, {"note", Align::left}});
  table.add_row({"a|b", "7", "says \"no\""});
  table.add_row({"µµµµµ", "1250", "x, y"});
  BOOST_TEST(table.to_text() ==
             "name     µs  note\n"
             "a|b       7  says \"no\"\n"
             "µµµµµ  1250  x, y\n");
  BOOST_TEST(table.to_markdown() ==
             "| name  |   µs | note      |\n"
             "| :---- | ---: | :-------- |\n"
             "| a\\|b  |    7 | says \"no\" |\n"
             "| µµµµµ | 1250 | x, y      |\n");
  BOOST_TEST(table.to_html() ==
             "<table>\n<thead>"
             "<tr><th style=\"text-align: left\">name</th><th style=\"text-align: right\">µs</th>"
             "<th style=\"text-align: left\">note</th></tr>\n</thead>\n<tbody>\n"
             "<tr><td style=\"text-align: left\">a|b</td><td style=\"text-align: right\">7</td>"
             "<td style=\"text-align: left\">says &quot;no&quot;</td></tr>\n"
             "<tr><td style=\"text-align: left\">µµµµµ</td><td style=\"text-align: right\">1250</td>"
             "<td style=\"text-align: left\">x, y</td></tr>\n</tbody>\n</table>\n");
  BOOST_TEST(table.to_csv() ==
             "name,µs,note\n"
             "a|b,7,\"says \"\"no\"\"\"\n"
             "µµµµµ,1250,\"x, y\"\n");
}

BOOST_AUTO_TEST_CASE(times) {
  BOOST_TEST(format_time(0) == "0 ns");
  BOOST_TEST(format_time(12) == "12 ns");
  BOOST_TEST(format_time(999) == "999 ns");
  BOOST_TEST(format_time(850'000) == "850 µs");
  BOOST_TEST(format_time(1'250'000) == "1.25 ms");
  BOOST_TEST(format_time(1'234'499) == "1.234 ms");
  BOOST_TEST(format_time(1'234'500) == "1.235 ms");
  BOOST_TEST(format_time(9'999'500) == "10 ms");
  BOOST_TEST(format_time(999'949'999) == "999.9 ms");
  BOOST_TEST(format_time(999'950'000) == "1 s");
  BOOST_TEST(format_time(-1'500) == "-1.5 µs");
  BOOST_TEST(format_time(12'345'500'000'000) == "12346 s");
  BOOST_TEST(format_time(std::numeric_limits<Time>::min()) == "-9223372037 s");
  BOOST_TEST(format_time_exact(1'234'567) == "1.234567 ms");
  BOOST_TEST(format_time_exact(12'345'678'901'234) == "12345.678901234 s");
  BOOST_TEST(format_time_exact(3'000'000) == "3 ms");
}

BOOST_AUTO_TEST_CASE(bytes_and_rates) {
  BOOST_TEST(format_bytes(0) == "0 B");
  BOOST_TEST(format_bytes(1023) == "1023 B");
  BOOST_TEST(format_bytes(1536) == "1.5 KiB");
  BOOST_TEST(format_bytes((1 << 20) - 1) == "1 MiB");
  BOOST_TEST(format_bytes(Bytes{5} << 30) == "5 GiB");
  BOOST_TEST(format_bytes(std::numeric_limits<Bytes>::max()) == "8192 PiB");
  BOOST_TEST(format_bytes(Bytes{40'000'000'000}, ByteUnits::decimal) == "40 GB");
  BOOST_TEST(format_bytes(999'950, ByteUnits::decimal) == "1 MB");
  BOOST_TEST(format_bytes(1500, ByteUnits::binary) == "1.465 KiB");
  BOOST_TEST(format_rate(0.045454) == "4.55%");
  BOOST_TEST(format_rate(-1e-17) == "0.00%");
  BOOST_TEST(format_rate(-0.25) == "-25.00%");
}

BOOST_AUTO_TEST_CASE(times_of_a_column_have_one_unit) {
  using Times = std::vector<std::optional<Time>>;
  using Texts = std::vector<std::string>;
  const auto of = [](const Times& times) { return format_times(times); };
  BOOST_TEST((of({}) == Texts{}));
  BOOST_TEST((of({std::nullopt, 0}) == Texts{"", "0 ns"}));
  BOOST_TEST((of({81'000'000, 126'000'000}) == Texts{"81 ms", "126 ms"}));
  BOOST_TEST((of({70'500'000, 0, -4'000'000, std::nullopt}) == Texts{"70.5 ms", "0.0 ms", "-4.0 ms", ""}));
  BOOST_TEST((of({385'394'567, 1'236'886'000}) == Texts{"385.39 ms", "1236.89 ms"}));
  BOOST_TEST((of({999, 2'000'000'000}) == Texts{"0.00 ms", "2000.00 ms"}));
  BOOST_TEST((of({999'999'999, 1'000'000'000}) == Texts{"1000.00 ms", "1000.00 ms"}));
  BOOST_TEST((of({5, 4'000'000'000'000}) == Texts{"0.00 s", "4000.00 s"}));
  BOOST_TEST((of({std::numeric_limits<Time>::min()}) == Texts{"-9223372037 s"}));
}

BOOST_AUTO_TEST_CASE(what_matters_least_goes_first) {
  TextTable table({{"name", Align::left}, {"a", Align::right, 1}, {"b", Align::right, 1}, {"c", Align::right, 2}});
  table.add_row({"x", "1", "2", "3"});
  table.add_column({"last", Align::left, 3}, {"4"});
  BOOST_TEST(table.has("last"));
  const std::string whole = table.to_text();
  BOOST_TEST(table.narrow_to(19).empty());
  BOOST_TEST(table.to_text() == whole);
  // Those of one rank go together.
  BOOST_TEST((table.narrow_to(10) == std::vector<std::string>{"c", "last"}));
  BOOST_TEST(table.to_text() == "name  a  b\nx     1  2\n");
  BOOST_TEST(!table.has("last"));
  BOOST_TEST((table.narrow_to(1) == std::vector<std::string>{"a", "b"}));
  BOOST_TEST(table.to_text() == "name\nx\n");
  BOOST_TEST(table.narrow_to(1).empty());
}

BOOST_AUTO_TEST_CASE(lists_are_broken_between_items) {
  const std::vector<std::string> items(12, "12345678");
  const std::string text = wrapped_list("all:", items);
  BOOST_TEST(text ==
             "all: 12345678, 12345678, 12345678, 12345678, 12345678, 12345678, 12345678,\n"
             "  12345678, 12345678, 12345678, 12345678, 12345678\n");
  BOOST_TEST(wrapped_list("none:", {}) == "none:\n");

  const std::string seventy(70, 'x');
  BOOST_TEST(wrapped(seventy + " 123456789 12345 " + seventy + " " + seventy) ==
             seventy + " 123456789\n  12345 " + seventy + "\n  " + seventy + "\n");
  BOOST_TEST(wrapped("") == "\n");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
