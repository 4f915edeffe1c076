// Idle time by its cause, and the critical path.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <string_view>
#include <vector>

#include "dualpipe/sim/explain/cells.h"
#include "dualpipe/sim/report/gantt_svg_frame.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/svg_text.h"
#include "dualpipe/sim/report/text_table.h"

namespace dualpipe::detail::report {
namespace {

constexpr int causes_size_max = 90'000;  // of all pieces that have no tooltips
constexpr int piece_size = 26;           // of one

// A colour, and stripes: where another pass is waited for, its colour, from the lower left; what is wrong with an order
// or an op, from the upper left; communication, upright. What is as it must be, thinner.
struct CauseLook {
  std::string_view color;
  int angle;
  double stroke;
};
constexpr std::array<CauseLook, cause_names.size()> looks{{{"#56b4e9", 45, 2.5},
                                                           {"#e69f00", 45, 2.5},
                                                           {"#cc79a7", 45, 2.5},
                                                           {"#009e73", 45, 2.5},
                                                           {"#d9cc22", 45, 2.5},
                                                           {"#d55e00", -45, 4},
                                                           {"#8c959f", -45, 3},
                                                           {"#0072b2", 0, 2},
                                                           {"#0072b2", 0, 4},
                                                           {"#8250df", 0, 4},
                                                           {"#9a6700", 90, 2},
                                                           {"#c4ccd4", 45, 1},
                                                           {"#8c959f", 90, 1}}};

template <typename Visit>
void for_each_cause(const Frame& frame, Visit visit) {
  for (std::size_t each = idle_class + 1; each < frame.chart.has.size(); ++each) {
    if (frame.chart.has[each]) visit(cause_of(each));
  }
}

const CauseLook& look_of(Cause cause) { return looks[static_cast<std::size_t>(cause)]; }

// --- idle time

std::string tooltip(const Frame& frame, const IdleSegment& segment, const explain::Cells& cells) {
  const Time origin = frame.chart.origin;
  const bool is_message = is_receive(segment.op.kind);
  const std::string place =
      is_message ? fmt::format("from rank {} to {}", segment.from, frame.placement().rank_of[segment.op.stage])
                 : fmt::format("on rank {}", segment.from);
  return fmt::format("rank {} idle: {}, {} {}\n{} to {} ({})\n{}", segment.rank, name(segment.cause),
                     cells.text(segment.op), place, format_time_exact(segment.span.start - origin),
                     format_time_exact(segment.span.end - origin),
                     format_time_exact(segment.span.end - segment.span.start), name(segment.readiness));
}

void draw_segments(SvgText& svg, const Frame& frame, int rank, const explain::Cells& cells) {
  for (const IdleSegment& segment : frame.chart.idle[static_cast<std::size_t>(rank)]) {
    const Span shown = frame.chart.shown(segment.span);
    const std::int64_t begin = frame.x(shown.start);
    svg.add("<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>{}</title></rect>\n",
            fill_class(segment.cause), pixels(begin), frame.row_top(rank), pixels(frame.x(shown.end) - begin),
            frame.row_height, xml_text(tooltip(frame, segment, cells)));
  }
}

// Neighbouring columns in which most of the idle time has one cause.
struct CausePiece {
  int begin = 0;
  int end = 0;
  Cause cause = Cause::forward;
};

std::vector<CausePiece> pieces_of(const Frame& frame, int rank, int width) {
  const int columns = (frame.plot_width + width - 1) / width;
  std::vector<std::array<Time, cause_names.size()>> idle(static_cast<std::size_t>(columns));
  for (const IdleSegment& segment : frame.chart.idle[static_cast<std::size_t>(rank)]) {
    const Span shown = frame.chart.shown(segment.span);
    const auto column_at = [&](Time time) { return scaled(time - frame.chart.window.start, columns, frame.length()); };
    const auto last = column_at(shown.end - 1);
    for (auto column = column_at(shown.start); column <= last; ++column) {
      const auto bound = [&](std::int64_t at) {
        return frame.chart.window.start + scaled(frame.length(), at, columns);
      };
      const Time inside = std::min(shown.end, bound(column + 1)) - std::max(shown.start, bound(column));
      idle[static_cast<std::size_t>(column)][static_cast<std::size_t>(segment.cause)] += std::max<Time>(inside, 1);
    }
  }
  std::vector<CausePiece> pieces;
  for (int column = 0; column < columns; ++column) {
    const auto& here = idle[static_cast<std::size_t>(column)];
    const auto most = std::ranges::max_element(here);
    if (*most == 0) continue;
    const auto cause = static_cast<Cause>(most - here.begin());
    if (pieces.empty() || pieces.back().end != column || pieces.back().cause != cause) {
      pieces.push_back({column, column, cause});
    }
    pieces.back().end = column + 1;
  }
  return pieces;
}

// Where ops are too many to be told apart, so is idle time: of each piece of some pixels one cause is shown.
void draw_pieces(SvgText& svg, const Frame& frame) {
  std::vector<std::vector<CausePiece>> rows;
  int width = 2;
  for (;; width = width * 3 / 2) {
    std::size_t count = 0;
    rows.clear();
    for (int rank = 0; rank < frame.ranks(); ++rank) {
      rows.push_back(pieces_of(frame, rank, width));
      count += rows.back().size();
    }
    if (count * piece_size <= causes_size_max || width > frame.plot_width) break;
  }
  for (int rank = 0; rank < frame.ranks(); ++rank) {
    std::map<Cause, std::string> paths;
    for (const CausePiece& piece : rows[static_cast<std::size_t>(rank)]) {
      const int begin = piece.begin * width;
      const int size = std::min(piece.end * width, frame.plot_width) - begin;
      paths[piece.cause] +=
          fmt::format("M{} {}h{}v{}h-{}z", frame.left + begin, frame.row_top(rank), size, frame.row_height, size);
    }
    for (const auto& [cause, path] : paths) svg.add("<path class=\"{}\" d=\"{}\"/>\n", fill_class(cause), path);
  }
}

// --- the critical path

// Ops of it that one rank runs without a gap.
struct PathRun {
  int rank = 0;
  Span span;
};

std::vector<PathRun> runs_of(const Frame& frame) {
  const bool each_op = frame.detail == Detail::boxes;
  std::vector<PathRun> runs;
  for (const PathStep& step : frame.chart.path) {
    const Span shown = frame.chart.shown(step.span);
    if (shown.start == shown.end) continue;
    if (!each_op && !runs.empty() && runs.back().rank == step.rank && runs.back().span.end == shown.start) {
      runs.back().span.end = shown.end;
    } else {
      runs.push_back({step.rank, shown});
    }
  }
  return runs;
}

}  // namespace

std::string fill_class(Cause cause) { return fmt::format("C{}", static_cast<int>(cause)); }

void add_cause_style(SvgText& svg, const Frame& frame) {
  if (!frame.is_explained()) return;
  for_each_cause(frame, [&](Cause cause) {
    svg.add(".{0}{{fill:url(#{0})}}.{0}s{{stroke:{1};stroke-width:{2}}}\n", fill_class(cause), look_of(cause).color,
            look_of(cause).stroke);
  });
  svg.raw(".path{fill:none;stroke:#000;stroke-width:2.5;stroke-linejoin:round}\n");
}

void add_dark_cause_style(SvgText& svg, const Frame& frame) {
  if (frame.is_explained()) svg.raw(".path{stroke:#fff}\n");
}

void add_cause_patterns(SvgText& svg, const Frame& frame) {
  for_each_cause(frame, [&](Cause cause) {
    svg.add(
        "\n<pattern id=\"{0}\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
        "patternTransform=\"rotate({1})\"><rect class=\"empty\" width=\"6\" height=\"6\"/>"
        "<path class=\"{0}s\" d=\"M3 0V6\"/></pattern>",
        fill_class(cause), look_of(cause).angle);
  });
}

void draw_causes(SvgText& svg, const Frame& frame) {
  if (!frame.is_explained()) return;
  if (frame.detail != Detail::boxes) return draw_pieces(svg, frame);
  const explain::Cells cells(frame.program);
  for (int rank = 0; rank < frame.ranks(); ++rank) draw_segments(svg, frame, rank, cells);
}

// Each run in an outline, and a line from the end of one to the start of the next, where that is on another rank. What
// advances by less than a pixel is left out.
void draw_path(SvgText& svg, const Frame& frame) {
  if (!frame.is_explained()) return;
  std::string path;
  std::optional<PathRun> before;
  for (const PathRun& run : runs_of(frame)) {
    const std::int64_t begin = frame.x(run.span.start);
    const std::int64_t end = frame.x(run.span.end);
    if (before && end - frame.x(before->span.end) < 100) continue;
    const int top = frame.row_top(run.rank);
    if (before && before->rank != run.rank) {
      const bool down = run.rank > before->rank;
      const int before_top = frame.row_top(before->rank);
      fmt::format_to(std::back_inserter(path), "M{} {}L{} {}", pixels(frame.x(before->span.end)),
                     down ? before_top + frame.row_height : before_top, pixels(begin),
                     down ? top : top + frame.row_height);
    }
    const std::int64_t size = std::max<std::int64_t>(end - begin - 200, 10);
    fmt::format_to(std::back_inserter(path), "M{} {}h{}v{}h-{}z", pixels(begin + 100), top + 1, pixels(size),
                   frame.row_height - 2, pixels(size));
    before = run;
  }
  if (!path.empty()) svg.add("<path class=\"path\" d=\"{}\"><title>critical path</title></path>\n", path);
}

}  // namespace dualpipe::detail::report
