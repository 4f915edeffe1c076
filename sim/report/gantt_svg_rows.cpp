// Rows of single ops: boxes and stripes.
#include <algorithm>
#include <array>
#include <map>
#include <string_view>

#include "dualpipe/sim/report/gantt_svg_frame.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/svg_text.h"
#include "dualpipe/sim/report/text_table.h"

namespace dualpipe::detail::report {
namespace {

constexpr int font_max = 11;
constexpr int font_max_in_pair = 10;
constexpr int font_min = 6;

// Where a box stands; hundredths of a pixel along the row, pixels across.
struct Place {
  std::int64_t begin = 0;
  std::int64_t size = 0;
  int y = 0;
  int height = 0;
};

class BoxRow {
 public:
  BoxRow(SvgText& svg, const Frame& frame, int rank)
      : svg_(svg), frame_(frame), rank_(rank), units_(frame.chart.units[static_cast<std::size_t>(rank)]) {}

  void draw() {
    choose_fonts();
    for (const Unit& unit : units_) box(unit);
  }

 private:
  // For each class the size in which the longest of its numbers fits into the narrowest of its boxes; 0 where that is
  // too small to be read. An op that the window cuts does not count.
  void choose_fonts() {
    std::array<std::int64_t, class_names.size()> narrowest{};
    std::array<std::size_t, class_names.size()> digits{};
    for (const Unit& unit : units_) {
      const Span shown = frame_.chart.shown(unit);
      if (shown != unit.span || unit.duration() == 0) continue;
      const std::size_t each = class_of(unit);
      const std::int64_t size = frame_.x(shown.end) - frame_.x(shown.start);
      narrowest[each] = digits[each] == 0 ? size : std::min(narrowest[each], size);
      for (const Op op : unit.ops) digits[each] = std::max(digits[each], std::to_string(op.micro_batch).size());
    }
    for (std::size_t each = 0; each < fonts_.size(); ++each) {
      if (digits[each] == 0) continue;
      const bool is_pair = each + 1 == class_names.size();
      const int height = is_pair ? frame_.row_height / 2 : frame_.row_height;
      // A digit is about 0.62 of the font's size wide, and a pixel is left on both sides.
      const auto fits = static_cast<int>((narrowest[each] - 200) / (62 * static_cast<std::int64_t>(digits[each])));
      const int font = std::min({fits, height - 3, is_pair ? font_max_in_pair : font_max});
      fonts_[each] = font < font_min ? 0 : font;
    }
  }

  void box(const Unit& unit) {
    if (unit.duration() == 0) return;
    const Span shown = frame_.chart.shown(unit);
    const Time origin = frame_.chart.origin;
    const std::int64_t begin = frame_.x(shown.start);
    const std::int64_t size = frame_.x(shown.end) - begin;
    svg_.add("<g><title>{}, rank {}\n{} to {} ({})</title>", xml_text(cell_text(unit.ops)), rank_,
             format_time_exact(unit.span.start - origin), format_time_exact(unit.span.end - origin),
             format_time_exact(unit.duration()));
    const int y = frame_.row_top(rank_);
    const int font = fonts_[class_of(unit)];
    if (!unit.is_pair()) {
      part(unit.ops[0], {begin, size, y, frame_.row_height}, font);
    } else {
      const int half = frame_.row_height / 2;
      part(unit.ops[0], {begin, size, y, half}, font);
      part(unit.ops[1], {begin, size, y + half, frame_.row_height - half}, font);
      svg_.add("<rect class=\"pair\" x=\"{}\" y=\"{}.5\" width=\"{}\" height=\"{}\"/>", pixels(begin + 50), y,
               pixels(std::max<std::int64_t>(size - 100, 10)), frame_.row_height - 1);
    }
    svg_.raw("</g>\n");
  }

  void part(Op op, const Place& place, int font) {
    const std::string_view border = place.size >= 400 ? "op " : "";
    const auto pass = static_cast<std::size_t>(op.kind);
    svg_.add("<rect class=\"{}{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>", border,
             fill_class(pass, frame_.shade_of[op.stage]), pixels(place.begin), place.y, pixels(place.size),
             place.height);
    const std::string number = std::to_string(op.micro_batch);
    if (font == 0 || place.size < 62 * font * static_cast<std::int64_t>(number.size())) return;
    svg_.add("<text class=\"n{}\" x=\"{}\" y=\"{}\">{}</text>", font, pixels(place.begin + place.size / 2),
             place.y + place.height / 2 + (font * 36 + 50) / 100, number);
  }

  SvgText& svg_;
  const Frame& frame_;
  int rank_;
  const std::vector<Unit>& units_;
  std::array<int, class_names.size()> fonts_{};
};

// A path per class and shade, a thick line for each op: its middle, and how far to the next one.
void draw_stripes(SvgText& svg, const Frame& frame, int rank) {
  struct Path {
    std::string text;
    std::int64_t end = 0;
  };
  std::map<std::string, Path> paths;
  for (const Unit& unit : frame.chart.units[static_cast<std::size_t>(rank)]) {
    const Span shown = frame.chart.shown(unit);
    const std::int64_t begin = frame.x(shown.start);
    const std::int64_t end = frame.x(shown.end);
    if (begin == end) continue;
    Path& path = paths[fill_class(frame, unit)];
    if (path.text.empty()) {
      path.text =
          fmt::format("M{} {}h{}", pixels(begin), frame.row_top(rank) + frame.row_height / 2, pixels(end - begin));
    } else if (begin == path.end) {
      path.text += fmt::format("h{}", pixels(end - begin));
    } else {
      path.text += fmt::format("m{} 0h{}", pixels(begin - path.end), pixels(end - begin));
    }
    path.end = end;
  }
  for (const auto& [name, path] : paths) svg.add("<path class=\"line {}\" d=\"{}\"/>\n", name, path.text);
}

}  // namespace

void draw_row(SvgText& svg, const Frame& frame, int rank) {
  if (frame.detail == Detail::boxes) {
    BoxRow(svg, frame, rank).draw();
  } else {
    draw_stripes(svg, frame, rank);
  }
}

}  // namespace dualpipe::detail::report
