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

// Long names stand in two lines, and none ends outside of the picture.
BOOST_AUTO_TEST_CASE(long_names_have_room) {
  Plot plot;
  plot.series = {{"line", {}}};
  for (int i = 0; i < 8; ++i) {
    plot.x_names.push_back(fmt::format("1-1-1-0.{}", i + 1));
    plot.series[0].points.push_back({static_cast<double>(i), 1.0});
  }
  const std::string svg = plot_svg(plot, {.width = 460, .height = 280});
  const auto line_of = [&](const std::string& text) {
    std::smatch match;
    BOOST_TEST_REQUIRE(std::regex_search(svg, match, std::regex("<text x=\"[0-9.]+\" y=\"([0-9]+)\"[^>]*>" + text)),
                       text);
    return std::stoi(match[1].str());
  };
  BOOST_TEST(line_of("1-1-1-0.1") == line_of("1-1-1-0.3"));
  BOOST_TEST(line_of("1-1-1-0.1") + 14 == line_of("1-1-1-0.2"));
  BOOST_TEST(svg.find("x=\"458\" y=\"360\" text-anchor=\"end\">1-1-1-0.8<") != std::string::npos);
}

// A band goes along a line, and a bar through a point that has none; the axis has room for both.
BOOST_AUTO_TEST_CASE(ranges_are_bands_and_bars) {
  Plot plot;
  plot.series = {{"line", {{0, 10, "", PlotRange{8, 40}}, {1, 12, "", PlotRange{11, 13}}}}};
  const auto has = [&](const std::string& text) { return plot_svg(plot).find(text) != std::string::npos; };
  BOOST_TEST(has("class=\"band\""));
  BOOST_TEST(!has("class=\"whisker\""));
  BOOST_TEST(has(">40</text>"));
  plot.series[0].has_band = false;
  BOOST_TEST(!has("class=\"band\""));
  BOOST_TEST(has("class=\"whisker\""));
  plot.series[0].has_band = true;
  plot.series[0].points[1].range.reset();
  BOOST_TEST(has("class=\"whisker\""));
  BOOST_TEST(!has("of 30 draws"));
  plot.note = "of 30 draws";
  BOOST_TEST(has("of 30 draws"));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
