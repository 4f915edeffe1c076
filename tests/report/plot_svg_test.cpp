#include "dualpipe/sim/report/plot_svg.h"

#include <fmt/format.h>

#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <regex>
#include <string>

namespace dualpipe::test {

BOOST_AUTO_TEST_SUITE(report_plot_svg)

// Where the text stands, in pixels from the left.
double x_of_text(const std::string& svg, const std::string& text) {
  std::smatch match;
  BOOST_TEST_REQUIRE(std::regex_search(svg, match, std::regex("<text x=\"([0-9.]+)\"[^>]*>" + text + "</text>")), text);
  return std::stod(match[1].str());
}

// Names take the whole width, whatever their number: the first stands at the left end, the last at the right one.
BOOST_AUTO_TEST_CASE(names_take_the_whole_width) {
  for (std::size_t count = 2; count <= 12; ++count) {
    Plot plot;
    plot.series = {{"line", {}}};
    for (std::size_t i = 0; i < count; ++i) {
      plot.x_names.push_back(fmt::format("name {}", i));
      plot.series[0].points.push_back({static_cast<double>(i), 1.0 + static_cast<double>(i)});
    }
    const std::string svg = plot_svg(plot, {.width = 700, .height = 300});
    BOOST_TEST_CONTEXT(count << " names") {
      BOOST_TEST(x_of_text(svg, "name 0") == 76);
      BOOST_TEST(x_of_text(svg, fmt::format("name {}", count - 1)) == 700 - 24);
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
