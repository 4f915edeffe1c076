// What the SVG Gantt shows beside ops: memory over time, and messages from rank to rank.
#include <algorithm>
#include <string_view>

#include "dualpipe/sim/report/gantt_svg_frame.h"
#include "dualpipe/sim/report/svg_text.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/flow.h"
#include "dualpipe/sim/simulate/memory.h"

namespace dualpipe::detail::report {
namespace {

constexpr int level_size = 11;  // bytes

// The most that a rank holds within each of `count` columns of the window.
std::vector<std::int64_t> levels_of(const Frame& frame, std::span<const MemoryPoint> points, int count, bool bytes) {
  const Span window = frame.chart.window;
  std::vector<std::int64_t> levels(static_cast<std::size_t>(count));
  const auto raise = [&](Time begin, Time end, std::int64_t level) {
    begin = std::max(begin, window.start);
    end = std::min(end, window.end);
    if (begin >= end) return;
    const auto first = scaled(begin - window.start, count, frame.length());
    const auto last = scaled(end - window.start - 1, count, frame.length());
    for (auto i = first; i <= last; ++i) {
      auto& most = levels[static_cast<std::size_t>(i)];
      most = std::max(most, level);
    }
  };
  for (std::size_t i = 0; i < points.size(); ++i) {
    const Time end = i + 1 < points.size() ? points[i + 1].time : window.end;
    raise(points[i].time, end, bytes ? points[i].bytes : points[i].activations);
  }
  return levels;
}

void draw_strip(SvgText& svg, const Frame& frame, int rank, const std::vector<std::int64_t>& levels, std::int64_t top,
                std::string_view most) {
  const std::int64_t height = std::int64_t{frame.strip_height} * 100;
  const auto count = static_cast<std::int64_t>(levels.size());
  const auto height_of = [&](std::size_t i) { return scaled(levels[i], height, top); };
  svg.add(
      "<g><title>rank {} holds {} at most</title><rect class=\"empty\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
      rank, most, frame.left, frame.strip_top(rank), frame.plot_width, frame.strip_height);
  svg.add("<path class=\"mem\" d=\"M{} {}", frame.left, frame.strip_top(rank) + frame.strip_height);
  std::int64_t drawn = 0;  // the height
  for (std::size_t i = 0; i < levels.size(); ++i) {
    const std::int64_t next = height_of(i);
    if (next == drawn) continue;
    const std::int64_t x =
        std::int64_t{frame.left} * 100 + static_cast<std::int64_t>(i) * frame.plot_width * 100 / count;
    svg.add("H{}v{}", pixels(x), pixels(drawn - next));
    drawn = next;
  }
  svg.add("H{}v{}z\"/></g>\n", frame.left + frame.plot_width, pixels(drawn));
}

}  // namespace

std::string draw_memory(SvgText& svg, const Frame& frame) {
  const RankMemories memories(frame.program, frame.costs);
  std::vector<std::vector<MemoryPoint>> points;
  bool bytes = false;
  for (int rank = 0; rank < frame.ranks(); ++rank) {
    points.push_back(memories.over_time(frame.timeline, rank));
    bytes = bytes || std::ranges::any_of(points.back(), [](const MemoryPoint& point) { return point.bytes != 0; });
  }
  const int count = std::clamp(frame.size_max() / 4 / level_size / frame.ranks(), 10, frame.plot_width);
  std::vector<std::vector<std::int64_t>> levels;
  std::int64_t top = 1;
  for (const auto& each : points) {
    levels.push_back(levels_of(frame, each, count, bytes));
    top = std::max(top, *std::ranges::max_element(levels.back()));
  }
  const auto text = [&](std::int64_t level) {
    return bytes ? format_bytes(level) : format_count(static_cast<std::uint64_t>(level), "activation");
  };
  for (int rank = 0; rank < frame.ranks(); ++rank) {
    const auto& row = levels[static_cast<std::size_t>(rank)];
    draw_strip(svg, frame, rank, row, top, text(*std::ranges::max_element(row)));
  }
  return text(top);
}

// From the edge of the sender's row to that of the receiver's, for messages that the window has whole.
void draw_messages(SvgText& svg, const Frame& frame) {
  const Program& program = frame.program;
  svg.raw("<path class=\"message\" d=\"");
  for (std::size_t i = 0; i < program.communication.size(); ++i) {
    const Op op = program.communication[i];
    const Span span = frame.timeline.communication[i];
    if (!is_send(op.kind) || span.end <= span.start) continue;
    if (span.start < frame.chart.window.start || span.end > frame.chart.window.end) continue;
    const int from = frame.placement().rank_of[op.stage];
    const int to = other_end_of(op, frame.placement()).value().rank;
    const bool down = to > from;
    svg.add("M{} {}L{} {}", pixels(frame.x(span.start)), down ? frame.row_bottom(from) : frame.row_top(from),
            pixels(frame.x(span.end)), down ? frame.row_top(to) : frame.row_bottom(to));
  }
  svg.raw("\"/>\n");
}

}  // namespace dualpipe::detail::report
