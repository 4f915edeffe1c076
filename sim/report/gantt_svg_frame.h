// Where everything stands in the SVG Gantt, and in how much detail. Private to sim/report.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dualpipe/sim/report/gantt_layout.h"
#include "dualpipe/sim/report/gantt_svg.h"

namespace dualpipe::detail::report {

enum class Detail : std::uint8_t { boxes, stripes, bands };

struct Frame {
  // All outlive it.
  Frame(const Program& drawn, const Costs& its_costs, const Timeline& run, const SvgOptions& asked);

  const Program& program;
  const Costs& costs;
  const Timeline& timeline;
  const SvgOptions& options;
  Chart chart;
  std::vector<int> shade_of;  // by stage
  int shades = 1;
  Detail detail = Detail::boxes;
  bool has_messages = false;  // that are drawn

  // Pixels.
  static constexpr int margin = 16;  // around all
  static constexpr int right = 32;   // of the plot: room for half a tick's label
  static constexpr int top = 60;     // of the first row: the title is above it
  int plot_width = 0;
  int left = 0;  // of the plot
  int row_height = 0;
  int strip_height = 0;  // of memory, below the row; 0 without
  int row_pitch = 0;     // from row to row

  [[nodiscard]] int ranks() const { return program.schedule.ranks(); }
  [[nodiscard]] const Placement& placement() const { return program.schedule.placement; }
  [[nodiscard]] int row_top(int rank) const { return top + rank * row_pitch; }
  [[nodiscard]] int strip_top(int rank) const { return row_top(rank) + row_height + 2; }
  [[nodiscard]] int row_bottom(int rank) const {
    return strip_height > 0 ? strip_top(rank) + strip_height : row_top(rank) + row_height;
  }
  [[nodiscard]] int plot_top() const { return row_top(0); }
  [[nodiscard]] int plot_bottom() const { return row_bottom(ranks() - 1); }
  // Hundredths of a pixel from the left edge of the picture.
  [[nodiscard]] std::int64_t x(Time time) const {
    return std::int64_t{left} * 100 + scaled(time - chart.window.start, std::int64_t{plot_width} * 100, length());
  }
  [[nodiscard]] Time length() const { return chart.length() == 0 ? 1 : chart.length(); }
  [[nodiscard]] bool is_explained() const { return options.explanation != nullptr; }

  // How many bytes bands and memory may take together: a quarter of it is for memory. Causes and the critical path have
  // their own.
  [[nodiscard]] int size_max() const;
  // "rank 3", "rank 3, speed 0.9".
  [[nodiscard]] std::string rank_text(int rank) const;
  [[nodiscard]] bool has_own_speed(int rank) const;  // others have another one, and it is not 1

 private:
  void choose_detail();
  void choose_shades();
  void choose_sizes();
  [[nodiscard]] int natural_plot_width() const;
};

// What paints an op of a class, and a shade: "F0", "B1"; "P" for pairs, which have one colour.
[[nodiscard]] std::string fill_class(std::size_t class_of_unit, int shade);
[[nodiscard]] std::string fill_class(const Frame& frame, const Unit& unit);

// The parts of the picture, each in a file of its own; all add to `svg`.
class SvgText;
void draw_row(SvgText& svg, const Frame& frame, int rank);  // boxes or stripes
void draw_bands(SvgText& svg, const Frame& frame);          // all rows
void draw_messages(SvgText& svg, const Frame& frame);
// Returns what the top of a strip stands for: "12.5 GiB", "8 activations".
std::string draw_memory(SvgText& svg, const Frame& frame);
// Idle time by its cause: below the ops. The critical path: above them. Both only where there is an explanation.
void draw_causes(SvgText& svg, const Frame& frame);
void draw_path(SvgText& svg, const Frame& frame);
// Their parts of the style sheet, in a light theme and in a dark one, and the patterns that fill idle time.
void add_cause_style(SvgText& svg, const Frame& frame);
void add_dark_cause_style(SvgText& svg, const Frame& frame);
void add_cause_patterns(SvgText& svg, const Frame& frame);
// What fills idle time of a cause: "C3".
[[nodiscard]] std::string fill_class(Cause cause);
// From `top` on; returns its height.
int draw_legend(SvgText& svg, const Frame& frame, int top, const std::string& memory_top);

}  // namespace dualpipe::detail::report
