// Rows of ops too narrow to be told apart: the row is cut into pieces, and each is filled by shares of time.
//
// Pieces end where ops begin, and where the class comes up again with which the piece began: a piece of 1F1B's steady
// state is F B or F B F B, never F B F. So ranks that do the same look the same, wherever their ops stand between two
// pixels.
#include <algorithm>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include "dualpipe/sim/report/gantt_svg_frame.h"
#include "dualpipe/sim/report/svg_text.h"

namespace dualpipe::detail::report {
namespace {

constexpr int piece_width_min = 3;  // pixels
constexpr int filling_size = 36;    // bytes

// A class and a shade of it, by number: in the order in which they lie in a piece.
using Filling = std::size_t;

struct Piece {
  Span span;
  std::vector<Time> busy;  // by filling; empty where all is idle
};

// The pieces of one row.
class Pieces {
 public:
  Pieces(const Frame& frame, int rank, Time length_min) : frame_(frame), length_min_(length_min) {
    const Span window = frame.chart.window;
    open_.span = {window.start, window.start};
    for (const Unit& unit : frame.chart.units[static_cast<std::size_t>(rank)]) {
      const Span shown = frame.chart.shown(unit);
      if (shown.start == shown.end) continue;
      add_idle(shown.start);
      add_unit(unit, shown);
    }
    add_idle(window.end);
    close();
  }

  [[nodiscard]] std::vector<Piece> take() && { return std::move(pieces_); }

 private:
  [[nodiscard]] Time length() const { return open_.span.end - open_.span.start; }

  void close() {
    if (!open_.busy.empty()) pieces_.push_back(open_);
    open_.span.start = open_.span.end;
    open_.busy.clear();
    first_.reset();
  }

  // Long idle time stands by itself, as nothing is drawn there.
  void add_idle(Time until) {
    if (until - open_.span.end >= length_min_) {
      close();
      open_.span.start = until;
    }
    open_.span.end = until;
  }

  void add_unit(const Unit& unit, Span shown) {
    const auto shades = static_cast<std::size_t>(frame_.shades);
    const Filling filling = class_of(unit) * shades + static_cast<std::size_t>(frame_.shade_of[unit.ops[0].stage]);
    const bool is_long = shown.end - shown.start >= length_min_;
    const bool comes_up_again = !first_ || *first_ == filling;
    if (is_long || (length() >= length_min_ && comes_up_again) || length() >= 4 * length_min_) close();
    if (!first_) first_ = filling;
    open_.busy.resize(class_names.size() * shades);
    open_.busy[filling] += shown.end - shown.start;
    open_.span.end = shown.end;
    if (is_long) close();
  }

  const Frame& frame_;
  Time length_min_;
  Piece open_;
  std::optional<Filling> first_;  // of the open piece
  std::vector<Piece> pieces_;
};

// A piece as it is drawn: hundredths of a pixel along the row, and up to where each class reaches across it.
struct Drawn {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::vector<std::pair<Filling, std::int64_t>> tops;
};

// Neighbours that look alike are one.
std::vector<Drawn> drawn_row(const Frame& frame, int rank, Time length_min) {
  std::vector<Drawn> row;
  for (const Piece& piece : Pieces(frame, rank, length_min).take()) {
    Drawn drawn{frame.x(piece.span.start), frame.x(piece.span.end), {}};
    Time busy = 0;
    for (Filling filling = 0; filling < piece.busy.size(); ++filling) {
      if (piece.busy[filling] == 0) continue;
      busy += piece.busy[filling];
      drawn.tops.emplace_back(filling,
                              scaled(busy, std::int64_t{frame.row_height} * 100, piece.span.end - piece.span.start));
    }
    if (!row.empty() && row.back().end == drawn.begin && row.back().tops == drawn.tops) {
      row.back().end = drawn.end;
    } else {
      row.push_back(std::move(drawn));
    }
  }
  return row;
}

void draw_row_of_bands(SvgText& svg, const Frame& frame, int rank, const std::vector<Drawn>& row) {
  const std::int64_t bottom = std::int64_t{frame.row_top(rank) + frame.row_height} * 100;
  const auto shades = static_cast<std::size_t>(frame.shades);
  std::map<std::string, std::string> paths;  // by class of the style sheet
  for (const Drawn& piece : row) {
    std::int64_t below = 0;
    for (const auto& [filling, top] : piece.tops) {
      const std::int64_t width = piece.end - piece.begin;
      fmt::format_to(std::back_inserter(paths[fill_class(filling / shades, static_cast<int>(filling % shades))]),
                     "M{} {}h{}v{}h-{}z", pixels(piece.begin), pixels(bottom - top), pixels(width), pixels(top - below),
                     pixels(width));
      below = top;
    }
  }
  for (const auto& [name, path] : paths) svg.add("<path class=\"{}\" d=\"{}\"/>\n", name, path);
}

}  // namespace

void draw_bands(SvgText& svg, const Frame& frame) {
  std::vector<std::vector<Drawn>> rows;
  const auto fillings_max = static_cast<std::size_t>(frame.size_max() / 4 * 3 / filling_size);
  for (Time width = piece_width_min;; width = width * 3 / 2) {
    const Time length_min = std::max<Time>(1, scaled(width, frame.length(), frame.plot_width));
    const bool is_coarsest = width > frame.plot_width;
    std::size_t fillings = 0;
    rows.clear();
    for (int rank = 0; rank < frame.ranks() && (fillings <= fillings_max || is_coarsest); ++rank) {
      rows.push_back(drawn_row(frame, rank, length_min));
      for (const Drawn& piece : rows.back()) fillings += piece.tops.size();
    }
    if (fillings <= fillings_max || is_coarsest) break;
  }
  for (int rank = 0; rank < frame.ranks(); ++rank) {
    draw_row_of_bands(svg, frame, rank, rows[static_cast<std::size_t>(rank)]);
  }
}

}  // namespace dualpipe::detail::report
