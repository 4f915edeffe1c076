// Lines and points over two axes, as an SVG element: for a file of its own, or a part of a page.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace dualpipe {

// Where y may be.
struct PlotRange {
  double low = 0;
  double high = 0;
};

struct PlotPoint {
  double x = 0;
  double y = 0;
  std::string text = {};  // shown where the pointer is
  std::optional<PlotRange> range = {};
  std::string label = {};  // stands beside it
};

struct PlotSeries {
  std::string name;
  std::vector<PlotPoint> points;
  bool has_line = true;   // else points alone
  bool has_band = true;   // along the line, where all points have ranges; else each has a bar
  bool is_faint = false;  // grey: what is there to compare the others with
};

struct Plot {
  std::string title;
  std::string x_title;
  std::string y_title;                    // with its unit
  std::vector<std::string> x_names = {};  // of 0, 1, 2, …: then x is one of these, and no number
  std::vector<PlotSeries> series = {};
  bool from_zero = false;  // the y axis begins at 0
  std::string note = {};   // below the legend; empty: none
};

struct PlotLayout {
  int width = 720;   // pixels
  int height = 400;  // of the plot itself; the legend is below it
};

// It follows the reader's light or dark theme; a series has a colour (Okabe and Ito's), a shape of its points, and from
// the eighth on dashes. Same plot, same bytes on any machine.
[[nodiscard]] std::string plot_svg(const Plot& plot, const PlotLayout& layout = {});

}  // namespace dualpipe
