// What the colours of the SVG Gantt stand for: only what occurs in it.
#include <fmt/format.h>

#include <array>
#include <string_view>

#include "dualpipe/sim/report/gantt_svg_frame.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/svg_text.h"
#include "dualpipe/sim/report/text_table.h"

namespace dualpipe::detail::report {
namespace {

constexpr int line_height = 22;
constexpr std::array<std::string_view, class_names.size()> titles{"F forward", "B backward (full)", "I input gradient",
                                                                  "W weight gradient", "F&B pair"};

enum class Swatch : std::uint8_t { boxes, halves, line, outline };

struct Item {
  std::vector<std::string> fills;  // a box each; of halves, the upper and the lower
  Swatch swatch = Swatch::boxes;
  std::string text;

  [[nodiscard]] int swatches() const { return swatch == Swatch::boxes ? static_cast<int>(fills.size()) : 1; }
  [[nodiscard]] int width() const {
    const int gap = 20;
    return swatches() * 16 + static_cast<int>(display_width(text)) * 7 + gap;
  }
};

// "0–7, 16–23": at most four runs of neighbours.
std::string ranges_text(const std::vector<int>& stages) {
  std::vector<std::string> runs;
  for (std::size_t i = 0; i < stages.size();) {
    std::size_t end = i + 1;
    while (end < stages.size() && stages[end] == stages[end - 1] + 1) ++end;
    runs.push_back(end - i == 1 ? std::to_string(stages[i]) : fmt::format("{}–{}", stages[i], stages[end - 1]));
    i = end;
  }
  constexpr std::size_t runs_max = 4;
  if (runs.size() > runs_max) {
    runs.erase(runs.begin() + runs_max - 1, runs.end() - 1);
    runs.back().insert(0, "…, ");
  }
  return fmt::format("{}", fmt::join(runs, ", "));
}

// The stages that a shade is of, and their chain where there are several.
Item shade_item(const Frame& frame, int shade) {
  Item item;
  std::vector<int> stages;
  bool one_chain = frame.placement().chains() > 1;
  for (int stage = 0; stage < frame.placement().stages(); ++stage) {
    if (frame.shade_of[static_cast<std::size_t>(stage)] != shade) continue;
    stages.push_back(stage);
    one_chain = one_chain && frame.placement().chain_of(stage) == frame.placement().chain_of(stages.front());
  }
  item.text = fmt::format("stage{} {}", stages.size() == 1 ? "" : "s", ranges_text(stages));
  if (one_chain && !stages.empty()) item.text += fmt::format(" (chain {})", frame.placement().chain_of(stages.front()));
  for (std::size_t pass = 0; pass + 1 < class_names.size(); ++pass) {
    if (frame.chart.has[pass]) item.fills.push_back(fill_class(pass, shade));
  }
  return item;
}

std::vector<Item> items_of(const Frame& frame, const std::string& memory_top) {
  std::vector<Item> items;
  for (std::size_t each = 0; each < titles.size(); ++each) {
    if (!frame.chart.has[each]) continue;
    if (each + 1 == titles.size() && frame.detail == Detail::boxes) {
      items.push_back({{fill_class(0, 0), fill_class(1, 0)}, Swatch::halves, std::string(titles[each])});
    } else {
      items.push_back({{fill_class(each, 0)}, Swatch::boxes, std::string(titles[each])});
    }
  }
  if (!frame.is_explained()) items.push_back({{"idle"}, Swatch::boxes, "idle"});
  for (std::size_t each = idle_class + 1; each < frame.chart.has.size(); ++each) {
    if (!frame.chart.has[each]) continue;
    const Cause cause = cause_of(each);
    items.push_back({{fill_class(cause)}, Swatch::boxes, "idle: " + std::string(name(cause))});
  }
  if (!frame.chart.path.empty()) items.push_back({{"path"}, Swatch::outline, "critical path"});
  if (frame.has_messages) items.push_back({{"message"}, Swatch::line, "message"});
  if (frame.strip_height > 0) items.push_back({{"mem"}, Swatch::boxes, "memory, full height: " + memory_top});
  for (int shade = 0; shade < frame.shades && frame.shades > 1; ++shade) items.push_back(shade_item(frame, shade));
  if (frame.detail == Detail::bands) items.push_back({{}, Swatch::boxes, "heights are shares of the time there"});
  return items;
}

void draw(SvgText& svg, const Item& item, int x, int y) {
  switch (item.swatch) {
    case Swatch::boxes:
      for (std::size_t i = 0; i < item.fills.size(); ++i) {
        svg.add("<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"14\" height=\"14\"/>", item.fills[i],
                x + static_cast<int>(i) * 16, y);
      }
      break;
    case Swatch::halves:
      svg.add("<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"14\" height=\"7\"/>", item.fills[0], x, y);
      svg.add("<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"14\" height=\"7\"/>", item.fills[1], x, y + 7);
      svg.add("<rect class=\"pair\" x=\"{}\" y=\"{}\" width=\"14\" height=\"14\"/>", x, y);
      break;
    case Swatch::outline:
      svg.add("<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"12\" height=\"12\"/>", item.fills[0], x + 1, y + 1);
      break;
    case Swatch::line:
      svg.add("<path class=\"{}\" d=\"M{} {}l14 -8\"/>", item.fills[0], x, y + 11);
      break;
  }
  svg.add("<text x=\"{}\" y=\"{}\">{}</text>\n", x + item.swatches() * 16 + 2, y + 11, xml_text(item.text));
}

}  // namespace

int draw_legend(SvgText& svg, const Frame& frame, int top, const std::string& memory_top) {
  int x = frame.left;
  int y = top;
  for (const Item& item : items_of(frame, memory_top)) {
    if (x > frame.left && x + item.width() > frame.left + frame.plot_width) {
      y += line_height;
      x = frame.left;
    }
    draw(svg, item, x, y);
    x += item.width();
  }
  return y + line_height - top;
}

}  // namespace dualpipe::detail::report
