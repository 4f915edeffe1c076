#include "dualpipe/sim/report/plot_svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>

#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/svg_text.h"
#include "dualpipe/sim/report/text_table.h"

namespace dualpipe {

using detail::report::pixels;
using detail::report::SvgText;

namespace {

constexpr std::array<std::string_view, 7> plot_colors{"#0072b2", "#e69f00", "#009e73", "#d55e00",
                                                      "#cc79a7", "#56b4e9", "#999999"};
constexpr int plot_top = 48;
constexpr int plot_left = 76;
constexpr int plot_right = 24;
constexpr int below_plot = 64;  // ticks, and the title of the axis
constexpr int legend_line = 20;

// Of the values, and a step of 1, 2 or 5 times a power of ten that makes about so many ticks.
struct Scale {
  double least = 0;
  double most = 1;
  double step = 1;

  // Of names, side by side: whole numbers from 0 on.
  explicit Scale(std::size_t names) : most(std::max<double>(1, static_cast<double>(names) - 1)) {}

  Scale(double from, double to, int ticks) : least(from), most(to) {
    if (!(most > least)) {
      const double room = least == 0 ? 1 : std::abs(least) * 0.1;
      least -= room;
      most += room;
    }
    const double rough = (most - least) / ticks;
    const double power = std::pow(10, std::floor(std::log10(rough)));
    step = power * (rough / power <= 1 ? 1 : rough / power <= 2 ? 2 : rough / power <= 5 ? 5 : 10);
    least = std::floor(least / step + 1e-9) * step;
    most = std::ceil(most / step - 1e-9) * step;
  }

  [[nodiscard]] int count() const { return static_cast<int>(std::lround((most - least) / step)); }
  [[nodiscard]] double tick(int number) const { return least + number * step; }
  // As many decimals as the step has.
  [[nodiscard]] std::string text(double value) const {
    const int decimals = std::max(0, static_cast<int>(-std::floor(std::log10(step) + 1e-9)));
    if (std::abs(value) < step / 2) value = 0;
    if (most < 1e4) return fmt::format("{:.{}f}", value, decimals);
    constexpr std::array<std::pair<double, const char*>, 3> units{{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}}};
    for (const auto& [size, letter] : units) {
      if (most >= size) return fmt::format("{:g}{}", value / size, value == 0 ? "" : letter);
    }
    return fmt::format("{:g}", value);
  }
};

Scale scale_of(const Plot& plot, double PlotPoint::*member, bool from_zero, int ticks) {
  double least = std::numeric_limits<double>::infinity();
  double most = -least;
  for (const PlotSeries& series : plot.series) {
    for (const PlotPoint& point : series.points) {
      least = std::min(least, point.*member);
      most = std::max(most, point.*member);
      if (!point.range || member != &PlotPoint::y) continue;
      least = std::min(least, point.range->low);
      most = std::max(most, point.range->high);
    }
  }
  if (least > most) least = most = 0;
  if (from_zero) least = std::min(least, 0.0);
  return {least, most, ticks};
}

class PlotDrawing {
 public:
  PlotDrawing(const Plot& plot, const PlotLayout& layout)
      : plot_(plot),
        layout_(layout),
        x_(plot.x_names.empty() ? scale_of(plot, &PlotPoint::x, false, std::max(2, layout.width / 110))
                                : Scale(plot.x_names.size())),
        y_(scale_of(plot, &PlotPoint::y, plot.from_zero, 6)) {}

  [[nodiscard]] std::string draw() && {
    const int height =
        plot_top + layout_.height + below_plot + legend_height() + (plot_.note.empty() ? 0 : legend_line);
    svg_.add(
        "<svg class=\"plot\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
        "role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n<title>{2}</title>\n",
        layout_.width, height, xml_text(plot_.title));
    svg_.raw(
        "<style>.plot{max-width:100%;height:auto;--ink:#1b1f24;--faint:#d0d7de;--paper:#fff;background:var(--paper)}"
        ".plot text{fill:var(--ink)}.plot .grid{stroke:var(--faint)}.plot .mark{stroke:var(--paper);stroke-width:1}"
        "@media(prefers-color-scheme:dark){.plot{--ink:#e6edf3;--faint:#3d444d;--paper:#0d1117}}</style>\n");
    svg_.add("<text x=\"{}\" y=\"28\" font-size=\"16\" font-weight=\"600\">{}</text>\n", plot_left,
             xml_text(plot_.title));
    draw_y_axis();
    draw_x_axis();
    for (std::size_t i = 0; i < plot_.series.size(); ++i) {
      if (has_band(plot_.series[i])) draw_band(i);
    }
    for (std::size_t i = 0; i < plot_.series.size(); ++i) draw_series(i);
    draw_legend_of_plot();
    if (!plot_.note.empty()) {
      svg_.add("<text x=\"{}\" y=\"{}\" font-size=\"12\">{}</text>\n", plot_left, height - 10, xml_text(plot_.note));
    }
    svg_.raw("</svg>\n");
    return std::move(svg_).take();
  }

 private:
  [[nodiscard]] int width() const { return layout_.width - plot_left - plot_right; }
  [[nodiscard]] std::string x(double value) const {
    return place(plot_left, width(), (value - x_.least), x_.most - x_.least);
  }
  [[nodiscard]] std::string y(double value) const {
    return place(plot_top + layout_.height, -layout_.height, value - y_.least, y_.most - y_.least);
  }
  [[nodiscard]] static std::string place(int origin, int length, double part, double whole) {
    return pixels(origin * 100 + std::llround(100.0 * length * part / whole));
  }

  void draw_y_axis() {
    for (int i = 0; i <= y_.count(); ++i) {
      const double value = y_.tick(i);
      svg_.add("<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{}\" y2=\"{}\"/>\n", plot_left,
               layout_.width - plot_right, y(value), y(value));
      svg_.add("<text x=\"{}\" y=\"{}\" text-anchor=\"end\" dy=\"4\">{}</text>\n", plot_left - 8, y(value),
               y_.text(value));
    }
    svg_.add("<text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
             plot_top + layout_.height / 2, xml_text(plot_.y_title));
  }

  // About as wide as it is drawn, in pixels.
  [[nodiscard]] static double text_width(std::string_view text) {
    return 6.8 * static_cast<double>(display_width(text));
  }

  // Whether some would run into each other, and stand in two lines instead.
  [[nodiscard]] bool names_are_close() const {
    const double room = width() / std::max(1.0, static_cast<double>(plot_.x_names.size()) - 1);
    return std::ranges::any_of(plot_.x_names, [&](const std::string& name) { return text_width(name) + 8 > room; });
  }

  void draw_x_axis() {
    const int bottom = plot_top + layout_.height;
    const auto tick = [&](double value, int top, const std::string& text) {
      svg_.add("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", x(value), top, xml_text(text));
    };
    if (plot_.x_names.empty()) {
      for (int i = 0; i <= x_.count(); ++i) tick(x_.tick(i), bottom + 20, x_.text(x_.tick(i)));
    } else {
      for (std::size_t i = 0; i < plot_.x_names.size(); ++i) {
        const int top = bottom + (names_are_close() && i % 2 == 1 ? 32 : 18);
        if (i > 0 && i + 1 == plot_.x_names.size() && text_width(plot_.x_names[i]) > 2 * plot_right) {
          svg_.add("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n", layout_.width - 2, top,
                   xml_text(plot_.x_names[i]));
        } else {
          tick(static_cast<double>(i), top, plot_.x_names[i]);
        }
      }
    }
    svg_.add("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", plot_left + width() / 2, bottom + 48,
             xml_text(plot_.x_title));
  }

  [[nodiscard]] std::string_view color(std::size_t series) const {
    return plot_.series[series].is_faint ? plot_colors.back() : plot_colors[series % plot_colors.size()];
  }
  [[nodiscard]] static std::string dashes(std::size_t series) {
    const std::size_t round = series / plot_colors.size();
    return round == 0 ? "" : fmt::format(" stroke-dasharray=\"{} 4\"", 10 - 3 * std::min<std::size_t>(round, 2));
  }

  void draw_mark(std::size_t series, const std::string& at_x, const std::string& at_y, const std::string& text) {
    constexpr std::array<std::string_view, 3> shapes{"M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z", "M-4 -4h8v8h-8z",
                                                     "M0 -5l5 9h-10z"};
    svg_.add("<path class=\"mark\" fill=\"{}\" transform=\"translate({} {})\" d=\"{}\">{}</path>\n", color(series),
             at_x, at_y, shapes[series % shapes.size()],
             text.empty() ? "" : fmt::format("<title>{}</title>", xml_text(text)));
  }

  // Above the point, on the side on which there is more room.
  void draw_label(const PlotPoint& point) {
    if (point.label.empty()) return;
    const bool is_left = point.x - x_.least > 0.6 * (x_.most - x_.least);
    svg_.add("<text x=\"{}\" y=\"{}\" dx=\"{}\" dy=\"-8\" text-anchor=\"{}\">{}</text>\n", x(point.x), y(point.y),
             is_left ? -6 : 6, is_left ? "end" : "start", xml_text(point.label));
  }

  [[nodiscard]] static bool has_band(const PlotSeries& series) {
    return series.has_line && series.has_band && series.points.size() > 1 &&
           std::ranges::all_of(series.points, [](const PlotPoint& point) { return point.range.has_value(); });
  }

  // Along the upper ends, and back along the lower ones.
  void draw_band(std::size_t number) {
    const PlotSeries& series = plot_.series[number];
    std::string path;
    for (const PlotPoint& point : series.points) {
      path += fmt::format("{}{} {}", path.empty() ? "M" : "L", x(point.x), y(point.range->high));
    }
    for (auto point = series.points.rbegin(); point != series.points.rend(); ++point) {
      path += fmt::format("L{} {}", x(point->x), y(point->range->low));
    }
    svg_.add("<path class=\"band\" fill=\"{}\" fill-opacity=\"0.25\" d=\"{}z\"/>\n", color(number), path);
  }

  void draw_bars(std::size_t number) {
    for (const PlotPoint& point : plot_.series[number].points) {
      if (!point.range) continue;
      svg_.add("<path class=\"whisker\" stroke-width=\"2\" stroke=\"{}\" d=\"M{} {}V{}\"/>\n", color(number),
               x(point.x), y(point.range->low), y(point.range->high));
    }
  }

  void draw_series(std::size_t number) {
    const PlotSeries& series = plot_.series[number];
    if (!has_band(series)) draw_bars(number);
    if (series.has_line && series.points.size() > 1) {
      std::string path;
      for (const PlotPoint& point : series.points) {
        path += fmt::format("{}{} {}", path.empty() ? "M" : "L", x(point.x), y(point.y));
      }
      svg_.add("<path fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{} d=\"{}\"/>\n", color(number), dashes(number),
               path);
    }
    for (const PlotPoint& point : series.points) draw_mark(number, x(point.x), y(point.y), point.text);
    for (const PlotPoint& point : series.points) draw_label(point);
  }

  // Entries in rows, as wide as the longest needs.
  [[nodiscard]] int entry_width() const {
    std::size_t longest = 0;
    for (const PlotSeries& each : plot_.series) longest = std::max(longest, display_width(each.name));
    return 44 + 8 * static_cast<int>(longest);
  }
  [[nodiscard]] int entries_in_row() const { return std::max(1, (layout_.width - plot_left) / entry_width()); }
  [[nodiscard]] int legend_height() const {
    const int rows = (static_cast<int>(plot_.series.size()) + entries_in_row() - 1) / entries_in_row();
    return rows * legend_line + 8;
  }

  void draw_legend_of_plot() {
    for (std::size_t i = 0; i < plot_.series.size(); ++i) {
      const int at = static_cast<int>(i);
      const int left = plot_left + at % entries_in_row() * entry_width();
      const int top = plot_top + layout_.height + below_plot + at / entries_in_row() * legend_line;
      if (plot_.series[i].has_line) {
        svg_.add("<line stroke=\"{}\" stroke-width=\"2\"{} x1=\"{}\" x2=\"{}\" y1=\"{}\" y2=\"{}\"/>\n", color(i),
                 dashes(i), left, left + 24, top, top);
      }
      draw_mark(i, fmt::format("{}", left + 12), fmt::format("{}", top), "");
      svg_.add("<text x=\"{}\" y=\"{}\" dy=\"4\">{}</text>\n", left + 32, top, xml_text(plot_.series[i].name));
    }
  }

  const Plot& plot_;
  const PlotLayout& layout_;
  Scale x_;
  Scale y_;
  SvgText svg_;
};

}  // namespace

std::string plot_svg(const Plot& plot, const PlotLayout& layout) { return PlotDrawing(plot, layout).draw(); }

}  // namespace dualpipe
