#include "dualpipe/sim/report/printable.h"

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

namespace dualpipe::test {
namespace {

// One way to write a character in UTF-8, right or not: of so many bytes.
std::string in_bytes(unsigned character, int count) {
  if (count == 1) return {static_cast<char>(character)};
  std::string text;
  for (int i = count - 1; i > 0; --i) text += static_cast<char>(0x80U | (character >> (6 * (i - 1)) & 0x3fU));
  const auto lead = static_cast<unsigned char>(0xffU << (8 - count));
  return static_cast<char>(lead | (character >> (6 * (count - 1)))) + text;
}

int bytes_of(unsigned character) { return character < 0x80 ? 1 : character < 0x800 ? 2 : character < 0x10000 ? 3 : 4; }

// Whether XML 1.0 has the character (its rule 2), and a terminal does nothing at it.
bool is_harmless(unsigned character) {
  const bool in_xml = (character >= 0x20 && character <= 0xd7ff) || (character >= 0xe000 && character <= 0xfffd) ||
                      (character >= 0x10000 && character <= 0x10ffff);
  const bool is_control = character >= 0x7f && character <= 0x9f;
  return in_xml && !is_control;
}

// Changes the order in which others are shown, or the line.
bool is_formatting(unsigned character) {
  for (const unsigned each : {0x61cU, 0x200eU, 0x200fU, 0x2028U, 0x2029U}) {
    if (character == each) return true;
  }
  return (character >= 0x202a && character <= 0x202e) || (character >= 0x2066 && character <= 0x2069);
}

BOOST_AUTO_TEST_SUITE(report_printable)

BOOST_AUTO_TEST_CASE(every_character_there_could_be) {
  for (unsigned character = 0; character <= 0x1fffff; ++character) {
    const std::string text = in_bytes(character, bytes_of(character));
    if (is_harmless(character) && !is_formatting(character)) {
      BOOST_REQUIRE(printable(text) == text);
    } else {
      BOOST_REQUIRE(printable(text).find_first_not_of('?') == std::string::npos);
    }
  }
}

// Longer than need be, cut off, a continuation by itself, and bytes that UTF-8 does not have.
BOOST_AUTO_TEST_CASE(bytes_that_are_no_utf8) {
  for (const unsigned character : {0x00U, 0x2fU, 0x7fU, 0x7ffU, 0xffffU}) {
    for (int count = bytes_of(character) + 1; count <= 4; ++count) {
      BOOST_TEST(printable(in_bytes(character, count)) == std::string(static_cast<std::size_t>(count), '?'));
    }
  }
  BOOST_TEST(printable("\xe2\x82") == "??");
  BOOST_TEST(printable("\xe2\x82z\xac") == "??z?");
  BOOST_TEST(printable("\xf8\x88\x80\x80\x80") == "?????");
  BOOST_TEST(printable("a\xff\xfe"
                       "b\xc3") == "a??b?");
  BOOST_TEST(printable("\xed\xa0\x80\xed\xb0\x80") == "??????");  // surrogates, as CESU-8 has them
}

BOOST_AUTO_TEST_CASE(lines_stay_lines_where_they_are_to) {
  BOOST_TEST(printable("one\ntwo\x1b[31m\r\x7f") == "one?two?[31m??");
  BOOST_TEST(printable_lines("one\ntwo\x1b[31m\r\x7f") == "one\ntwo?[31m??");
  BOOST_TEST(printable("µs, 数, \U0001f600") == "µs, 数, \U0001f600");
  BOOST_TEST(printable("\xc2\x9b"
                       "31m") == "?31m");  // CSI, in the one character that some terminals heed, too
}

BOOST_AUTO_TEST_CASE(xml) {
  BOOST_TEST(xml_text("a<b>&\"c\"\x01\xef\xbf\xbf") == "a&lt;b&gt;&amp;&quot;c&quot;??");
  BOOST_TEST(xml_text("F&B\n数") == "F&amp;B?数");
}

// Of text that is UTF-8 JSON loses nothing, and it is visible ASCII; of other text it loses just what is not.
BOOST_AUTO_TEST_CASE(json) {
  for (unsigned character = 0; character <= 0x10ffff; ++character) {
    if (character >= 0xd800 && character <= 0xdfff) continue;
    if (character > 0x3000 && character % 17 != 0 && (character & 0xfff0U) != 0xfff0) continue;  // all would take long
    const std::string text = "a" + in_bytes(character, bytes_of(character));
    const std::string quoted = json_string(text);
    BOOST_REQUIRE(nlohmann::json::parse(quoted).get<std::string>() == text);
    BOOST_REQUIRE(
        quoted.find_first_not_of(
            " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~") ==
        std::string::npos);
  }
  BOOST_TEST(json_string("a\"b\\\n\x1b\xff") == R"("a\"b\\\u000a\u001b\ufffd")");
  BOOST_TEST(json_string("µ\U0001f600") == R"("\u00b5\ud83d\ude00")");
}

BOOST_AUTO_TEST_CASE(any_bytes) {
  std::mt19937 random(1);
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    for (auto length = random() % 12; length > 0; --length) {
      text += static_cast<char>(random() % 2 == 0 ? random() % 256 : 0x80 + random() % 128);
    }
    const std::string shown = printable(text);
    BOOST_REQUIRE(printable(shown) == shown);
    BOOST_REQUIRE(nlohmann::json::parse(json_string(shown)).get<std::string>() == shown);
    BOOST_REQUIRE(nlohmann::json::accept(json_string(text)));
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
