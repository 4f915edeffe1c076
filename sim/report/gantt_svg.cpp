#include "dualpipe/sim/report/gantt_svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <ostream>
#include <string_view>

#include "dualpipe/sim/report/gantt_svg_frame.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/svg_text.h"
#include "dualpipe/sim/report/text_table.h"

namespace dualpipe {

using detail::report::add_cause_patterns;
using detail::report::add_cause_style;
using detail::report::add_dark_cause_style;
using detail::report::class_names;
using detail::report::class_of;
using detail::report::Detail;
using detail::report::draw_bands;
using detail::report::draw_causes;
using detail::report::draw_legend;
using detail::report::draw_memory;
using detail::report::draw_messages;
using detail::report::draw_path;
using detail::report::draw_row;
using detail::report::fill_class;
using detail::report::Frame;
using detail::report::pixels;
using detail::report::round_up_to_tick;
using detail::report::SvgText;
using detail::report::Unit;

namespace {

constexpr int axis_height = 36;  // below the last row, the legend below it

struct Rgb {
  int red;
  int green;
  int blue;
};

// Okabe and Ito: sky blue, orange, reddish purple, bluish green, yellow. By class: F, B, I, W, F&B.
constexpr std::array<Rgb, class_names.size()> colors{
    {{86, 180, 233}, {230, 159, 0}, {204, 121, 167}, {0, 158, 115}, {240, 228, 66}}};

std::string hex(Rgb color) { return fmt::format("#{:02x}{:02x}{:02x}", color.red, color.green, color.blue); }

// From the full colour to 60% white.
Rgb shade_of(Rgb color, int shade, int shades) {
  const int white = shades == 1 ? 0 : 60 * shade / (shades - 1);  // percent
  const auto mix = [&](int part) { return part + (255 - part) * white / 100; };
  return {mix(color.red), mix(color.green), mix(color.blue)};
}

void add_style(SvgText& svg, const Frame& frame) {
  svg.raw(
      "<style>\n"
      "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#24292f}\n"
      ".name{font-size:17px;font-weight:600}.note,.tick{fill:#57606a}.speed{font-weight:600}\n"
      ".tick,.n6,.n7,.n8,.n9,.n10,.n11{text-anchor:middle}.rank{text-anchor:end}\n"
      ".n6,.n7,.n8,.n9,.n10,.n11{fill:#000}.n6{font-size:6px}.n7{font-size:7px}.n8{font-size:8px}.n9{font-size:9px}"
      ".n10{font-size:10px}.n11{font-size:11px}\n"
      ".page{fill:#fff}.idle{fill:url(#idle)}.grid{stroke:#d0d7de}.hatch{stroke:#c4ccd4;stroke-width:1}"
      ".empty{fill:#f6f8fa}\n"
      ".op{stroke:#000;stroke-opacity:.35;stroke-width:.75}.pair{fill:none;stroke:#24292f;stroke-width:1.25}"
      ".message{fill:none;stroke:#57606a;stroke-width:.75}.mem{fill:#8c959f}\n");
  for (std::size_t each = 0; each < colors.size(); ++each) {
    for (int shade = 0; shade < (each + 1 == colors.size() ? 1 : frame.shades); ++shade) {
      const std::string color = hex(shade_of(colors[each], shade, frame.shades));
      const std::string name = fill_class(each, shade);
      svg.add(".{}{{fill:{}}}", name, color);
      if (frame.detail == Detail::stripes) svg.add(".line.{}{{stroke:{};fill:none}}", name, color);
    }
    svg.raw("\n");
  }
  if (frame.detail == Detail::stripes) svg.add(".line{{stroke-width:{}}}\n", frame.row_height);
  add_cause_style(svg, frame);
  svg.raw(
      "@media (prefers-color-scheme:dark){\n"
      "text{fill:#e6edf3}.note,.tick{fill:#9198a1}.n6,.n7,.n8,.n9,.n10,.n11{fill:#000}\n"
      ".page{fill:#0d1117}.grid{stroke:#30363d}.hatch{stroke:#3d444d}.empty{fill:#161b22}\n"
      ".pair{stroke:#f0f6fc}.message{stroke:#9198a1}.mem{fill:#6e7681}\n");
  add_dark_cause_style(svg, frame);
  svg.raw(
      "}\n"
      "</style>\n"
      "<defs><pattern id=\"idle\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
      "patternTransform=\"rotate(45)\"><rect class=\"empty\" width=\"6\" height=\"6\"/>"
      "<path class=\"hatch\" d=\"M1 0V6\"/></pattern>");
  add_cause_patterns(svg, frame);
  svg.raw("</defs>\n");
}

void add_head(SvgText& svg, const Frame& frame, int height) {
  const int width = frame.left + frame.plot_width + Frame::right;
  svg.add(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" role=\"img\">\n",
      width, height);
  const Schedule& schedule = frame.program.schedule;
  const std::string& given = frame.options.title.empty() ? schedule.name : frame.options.title;
  const std::string title = xml_text(given.empty() ? "schedule" : given);
  svg.add("<title>{}, {}</title>\n", title, format_count(static_cast<std::uint64_t>(frame.ranks()), "rank"));
  add_style(svg, frame);
  svg.add("<rect class=\"page\" width=\"{}\" height=\"{}\"/>\n", width, height);
  svg.add("<text class=\"name\" x=\"{}\" y=\"30\">{}</text>\n", Frame::margin, title);
  svg.add("<text class=\"note\" x=\"{}\" y=\"48\">{} · {} · makespan {} · idle {} of it, on average", Frame::margin,
          format_count(static_cast<std::uint64_t>(frame.ranks()), "rank"),
          format_count(schedule.total_micro_batches(), "micro-batch", "es"), format_time(frame.timeline.makespan()),
          format_rate(frame.timeline.bubble_rate_makespan()));
  if (frame.options.window) {
    svg.add(" · from {} to {}", format_time_exact(frame.chart.window.start - frame.chart.origin),
            format_time_exact(frame.chart.window.end - frame.chart.origin));
  }
  svg.raw("</text>\n");
}

// The ticks within the window, as times since the start of the run.
std::vector<Time> ticks_of(const Frame& frame) {
  constexpr int distance_min = 80;
  const Time step = round_up_to_tick(std::max<Time>(1, frame.length() / std::max(1, frame.plot_width / distance_min)));
  std::vector<Time> ticks;
  const Time begin = frame.chart.window.start - frame.chart.origin;
  for (Time time = (begin + step - 1) / step * step; time <= begin + frame.length(); time += step)
    ticks.push_back(time);
  return ticks;
}

void add_grid(SvgText& svg, const Frame& frame) {
  svg.raw("<path class=\"grid\" d=\"");
  for (const Time time : ticks_of(frame)) {
    svg.add("M{} {}V{}", pixels(frame.x(frame.chart.origin + time)), frame.plot_top() - 4, frame.plot_bottom() + 4);
  }
  svg.raw("\"/>\n");
}

void add_axis(SvgText& svg, const Frame& frame) {
  for (const Time time : ticks_of(frame)) {
    svg.add("<text class=\"tick\" x=\"{}\" y=\"{}\">{}</text>\n", pixels(frame.x(frame.chart.origin + time)),
            frame.plot_bottom() + 19, time == 0 ? "0" : format_time_exact(time));
  }
}

// The ranks whose label is written: as many as there is room for, and those that say that they are slow or fast.
std::vector<int> labelled_ranks(const Frame& frame) {
  constexpr int label_height = 12;
  const int every = (label_height + frame.row_pitch - 1) / frame.row_pitch;
  std::vector<bool> taken(static_cast<std::size_t>(frame.ranks()));
  const auto is_free = [&](int rank) {
    for (int near = std::max(0, rank - every + 1); near < std::min(frame.ranks(), rank + every); ++near) {
      if (taken[static_cast<std::size_t>(near)]) return false;
    }
    return true;
  };
  for (const bool own_speed : {true, false}) {
    for (int rank = 0; rank < frame.ranks(); ++rank) {
      if ((own_speed ? frame.has_own_speed(rank) : rank % every == 0) && is_free(rank)) {
        taken[static_cast<std::size_t>(rank)] = true;
      }
    }
  }
  std::vector<int> labelled;
  for (int rank = 0; rank < frame.ranks(); ++rank) {
    if (taken[static_cast<std::size_t>(rank)]) labelled.push_back(rank);
  }
  return labelled;
}

// What a rank does in the window, in numbers: "rank 3: F 22.01%, B 44.02%, idle 33.97%".
std::string shares_text(const Frame& frame, int rank) {
  std::array<Time, class_names.size()> busy{};
  Time idle = frame.chart.length();
  for (const Unit& unit : frame.chart.units[static_cast<std::size_t>(rank)]) {
    const Span shown = frame.chart.shown(unit);
    busy[class_of(unit)] += shown.end - shown.start;
    idle -= shown.end - shown.start;
  }
  const auto rate = [&](Time part) {
    return format_rate(static_cast<double>(part) / static_cast<double>(frame.length()));
  };
  std::string text = fmt::format("{}:", frame.rank_text(rank));
  for (std::size_t each = 0; each < busy.size(); ++each) {
    if (busy[each] > 0) text += fmt::format(" {} {},", class_names[each], rate(busy[each]));
  }
  return text + " idle " + rate(idle);
}

void add_rows(SvgText& svg, const Frame& frame) {
  for (const int rank : labelled_ranks(frame)) {
    svg.add("<text class=\"rank{}\" x=\"{}\" y=\"{}\">{}</text>\n", frame.has_own_speed(rank) ? " speed" : "",
            frame.left - 8, frame.row_top(rank) + frame.row_height / 2 + 4, frame.rank_text(rank));
  }
  for (int rank = 0; rank < frame.ranks(); ++rank) {
    svg.add("<rect class=\"idle\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>{}</title></rect>\n", frame.left,
            frame.row_top(rank), frame.plot_width, frame.row_height, xml_text(shares_text(frame, rank)));
  }
  draw_causes(svg, frame);
  if (frame.has_messages) draw_messages(svg, frame);  // below the ops: those to distant ranks cross the rows between
  if (frame.detail == Detail::bands) {
    draw_bands(svg, frame);
  } else {
    for (int rank = 0; rank < frame.ranks(); ++rank) draw_row(svg, frame, rank);
  }
  draw_path(svg, frame);
}

}  // namespace

void write_gantt_svg(std::ostream& out, const Program& program, const Costs& costs, const Timeline& timeline,
                     const SvgOptions& options) {
  const Frame frame(program, costs, timeline, options);
  SvgText body;
  add_grid(body, frame);
  add_rows(body, frame);
  const std::string memory_top = frame.strip_height > 0 ? draw_memory(body, frame) : "";
  add_axis(body, frame);
  const int legend_top = frame.plot_bottom() + axis_height;
  const int legend_height = draw_legend(body, frame, legend_top, memory_top);

  SvgText head;
  add_head(head, frame, legend_top + legend_height + Frame::margin);
  for (const std::string& text : {std::move(head).take(), std::move(body).take(), std::string("</svg>\n")}) {
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
  }
}

}  // namespace dualpipe
