#include "dualpipe/sim/report/gantt_svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <limits>
#include <map>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/report/gantt_layout.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/text_table.h"

namespace dualpipe {

using detail::report::bounds_of;
using detail::report::chunk_of_stages;
using detail::report::Columns;
using detail::report::columns_over;
using detail::report::fill;
using detail::report::round_up_to_tick;
using detail::report::scaled;
using detail::report::Unit;
using detail::report::units_of;

namespace {

constexpr std::size_t units_drawn_max = 10'000;  // more are merged into columns
constexpr int merged_boxes_max = 100'000;        // columns of all ranks together

// Pixels.
constexpr int margin = 16;
constexpr int right = 32;               // room for half a tick's label
constexpr int top = 60;                 // the title above the first row
constexpr int axis_height = 24;         // below the last row
constexpr int legend_line_height = 22;  // below the axis
constexpr int plot_width_min = 640;
constexpr int plot_width_max = 2400;
constexpr int unit_width = 20;  // of the shortest op, where there is room: two digits

struct Rgb {
  int red;
  int green;
  int blue;
};

// Okabe and Ito: sky blue, orange, reddish purple, bluish green. By Kind: F, B, I, W.
constexpr std::array<Rgb, 4> pass_colors{{{86, 180, 233}, {230, 159, 0}, {204, 121, 167}, {0, 158, 115}}};
constexpr std::array<std::string_view, 4> pass_titles{"forward", "backward (full)", "input gradient",
                                                      "weight gradient"};

// Stages of one rank: at most so many shades, from the full colour to 60% white.
constexpr int shades_max = 6;

std::string hex(Rgb color) { return fmt::format("#{:02x}{:02x}{:02x}", color.red, color.green, color.blue); }

Rgb shade_of(Rgb color, int shade, int shades) {
  const int white = shades == 1 ? 0 : 60 * shade / (shades - 1);  // percent
  const auto mix = [&](int part) { return part + (255 - part) * white / 100; };
  return {mix(color.red), mix(color.green), mix(color.blue)};
}

// Hundredths of a pixel: integers, so that every machine writes the same digits.
std::string pixels(std::int64_t hundredths) {
  if (hundredths % 100 == 0) return fmt::format("{}", hundredths / 100);
  if (hundredths % 10 == 0) return fmt::format("{}.{}", hundredths / 100, hundredths / 10 % 10);
  return fmt::format("{}.{:02}", hundredths / 100, hundredths % 100);
}

class GanttSvg {
 public:
  GanttSvg(const Program& program, const Timeline& timeline)
      : program_(program), timeline_(timeline), bounds_(bounds_of(timeline)), chunks_(chunk_of_stages(placement())) {
    for (int rank = 0; rank < ranks(); ++rank) units_.push_back(units_of(program, timeline, rank));
    const int most = chunks_.empty() ? 1 : *std::max_element(chunks_.begin(), chunks_.end()) + 1;
    shades_ = std::min(most, shades_max);
    for (int& chunk : chunks_) chunk = most == 1 ? 0 : chunk * (shades_ - 1) / (most - 1);
    choose_sizes();
  }

  [[nodiscard]] std::string draw() {
    head();
    grid();
    for (int rank = 0; rank < ranks(); ++rank) row(rank);
    axis();
    legend();
    svg_ += "</svg>\n";
    return std::move(svg_);
  }

 private:
  [[nodiscard]] const Placement& placement() const { return program_.schedule.placement; }
  [[nodiscard]] int ranks() const { return placement().ranks; }
  [[nodiscard]] Time length() const { return std::max<Time>(1, bounds_.end - bounds_.start); }

  template <typename... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(svg_), format, std::forward<Args>(args)...);
  }

  // --- sizes

  void choose_sizes() {
    Time shortest = length();
    std::size_t units = 0;
    for (const auto& row : units_) {
      units += row.size();
      for (const Unit& unit : row) {
        if (unit.duration() > 0) shortest = std::min(shortest, unit.duration());
      }
    }
    const Time wanted = std::min<Time>(length() / shortest, plot_width_max) * unit_width;
    plot_width_ = static_cast<int>(std::clamp<Time>(wanted, plot_width_min, plot_width_max));
    merged_ = units > units_drawn_max;
    row_height_ = ranks() <= 32 ? 28 : ranks() <= 128 ? 14 : 6;
    row_gap_ = ranks() <= 32 ? 4 : ranks() <= 128 ? 2 : 1;
    label_width_ = 44 + 7 * static_cast<int>(std::to_string(std::max(ranks() - 1, 0)).size());
    legend_lines_ = lay_out_legend([](const LegendItem&, int, int) {});
  }

  [[nodiscard]] int left() const { return margin + label_width_; }
  [[nodiscard]] int row_top(int rank) const { return top + rank * (row_height_ + row_gap_); }
  [[nodiscard]] int plot_bottom() const { return row_top(ranks()) - row_gap_; }
  [[nodiscard]] int width() const { return left() + plot_width_ + right; }
  [[nodiscard]] int height() const {
    return plot_bottom() + axis_height + 10 + legend_lines_ * legend_line_height + margin;
  }

  // Hundredths of a pixel from the left edge.
  [[nodiscard]] std::int64_t x(Time time) const {
    return std::int64_t{left()} * 100 + scaled(time - bounds_.start, std::int64_t{plot_width_} * 100, length());
  }

  // --- parts of the file

  void head() {
    add("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
        "role=\"img\">\n",
        width(), height());
    const Schedule& schedule = program_.schedule;
    const std::string name = xml_text(schedule.name.empty() ? "schedule" : schedule.name);
    add("<title>{}, {} ranks</title>\n", name, ranks());
    style();
    add("<rect class=\"page\" width=\"{}\" height=\"{}\"/>\n", width(), height());
    add("<text class=\"name\" x=\"{}\" y=\"30\">{}</text>\n", margin, name);
    add("<text class=\"note\" x=\"{}\" y=\"48\">{} {} · {} micro-batch{} · makespan {} · idle {} of it, on average"
        "</text>\n",
        margin, ranks(), ranks() == 1 ? "rank" : "ranks", schedule.total_micro_batches(),
        schedule.total_micro_batches() == 1 ? "" : "es", format_time(timeline_.makespan()),
        format_rate(timeline_.bubble_rate_makespan()));
  }

  void style() {
    svg_ +=
        "<style>\n"
        "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#24292f}\n"
        ".name{font-size:17px;font-weight:600}.note,.tick{fill:#57606a}\n"
        ".tick,.b,.h{text-anchor:middle}.rank{text-anchor:end}\n"
        ".b{font-size:11px;fill:#000}.h{font-size:10px;fill:#000}\n"
        ".page{fill:#fff}.idle{fill:url(#idle)}.grid{stroke:#d0d7de}.hatch{stroke:#c4ccd4;stroke-width:1}.empty{fill:#"
        "f6f8fa}\n"
        ".op{stroke:#fff;stroke-width:.75}.pair{fill:none;stroke:#24292f;stroke-width:1.25}\n";
    for (std::size_t pass = 0; pass < pass_colors.size(); ++pass) {
      for (int shade = 0; shade < shades_; ++shade) {
        add(".{}{{fill:{}}}", fill_class(static_cast<Kind>(pass), shade),
            hex(shade_of(pass_colors[pass], shade, shades_)));
      }
      svg_ += '\n';
    }
    svg_ +=
        "@media (prefers-color-scheme:dark){\n"
        "text{fill:#e6edf3}.note,.tick{fill:#9198a1}.b,.h{fill:#000}\n"
        ".page{fill:#0d1117}.grid{stroke:#30363d}.hatch{stroke:#3d444d}.empty{fill:#161b22}\n"
        ".op{stroke:#0d1117}.pair{stroke:#f0f6fc}\n"
        "}\n"
        "</style>\n"
        "<defs><pattern id=\"idle\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
        "patternTransform=\"rotate(45)\"><rect class=\"empty\" width=\"6\" height=\"6\"/>"
        "<path class=\"hatch\" d=\"M1 0V6\"/></pattern></defs>\n";
  }

  [[nodiscard]] static std::string fill_class(Kind kind, int shade) { return fmt::format("{}{}", name(kind), shade); }
  [[nodiscard]] std::string fill_class(Op op) const { return fill_class(op.kind, chunks_[op.stage]); }

  [[nodiscard]] Time tick_step() const {
    constexpr int tick_distance_min = 80;
    return round_up_to_tick(std::max<Time>(1, length() / std::max(1, plot_width_ / tick_distance_min)));
  }

  void grid() {
    svg_ += "<path class=\"grid\" d=\"";
    for (Time time = 0; time <= length(); time += tick_step()) {
      add("M{} {}V{}", pixels(x(bounds_.start + time)), top - 4, plot_bottom() + 4);
    }
    svg_ += "\"/>\n";
  }

  void axis() {
    for (Time time = 0; time <= length(); time += tick_step()) {
      add("<text class=\"tick\" x=\"{}\" y=\"{}\">{}</text>\n", pixels(x(bounds_.start + time)), plot_bottom() + 19,
          time == 0 ? "0" : format_time(time));
    }
  }

  void row(int rank) {
    const int labelled_every = (12 + row_height_ + row_gap_ - 1) / (row_height_ + row_gap_);
    if (rank % labelled_every == 0) {
      add("<text class=\"rank\" x=\"{}\" y=\"{}\">rank {}</text>\n", left() - 8, row_top(rank) + row_height_ / 2 + 4,
          rank);
    }
    add("<rect class=\"idle\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>\n", left(), row_top(rank), plot_width_,
        row_height_);
    if (merged_) {
      merged_row(rank);
    } else {
      for (const Unit& unit : units_[static_cast<std::size_t>(rank)]) box(rank, unit);
    }
  }

  // --- boxes of single ops

  void box(int rank, const Unit& unit) {
    if (unit.duration() == 0) return;
    const std::int64_t begin = x(unit.span.start);
    const std::int64_t size = x(unit.span.end) - begin;
    add("<g><title>{}, rank {}\n{} to {} ({})</title>", xml_text(cell_text(unit.ops)), rank,
        format_time_exact(unit.span.start - bounds_.start), format_time_exact(unit.span.end - bounds_.start),
        format_time_exact(unit.duration()));
    const int y = row_top(rank);
    if (!unit.is_pair()) {
      part(unit.ops[0], begin, size, y, row_height_, "b");
    } else {
      const int half = row_height_ / 2;
      part(unit.ops[0], begin, size, y, half, "h");
      part(unit.ops[1], begin, size, y + half, row_height_ - half, "h");
      add("<rect class=\"pair\" x=\"{}\" y=\"{}.5\" width=\"{}\" height=\"{}\"/>", pixels(begin + 50), y,
          pixels(std::max<std::int64_t>(size - 100, 10)), row_height_ - 1);
    }
    svg_ += "</g>\n";
  }

  void part(Op op, std::int64_t begin, std::int64_t size, int y, int height, std::string_view text_class) {
    const std::string_view border = size >= 400 ? "op " : "";
    add("<rect class=\"{}{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>", border, fill_class(op), pixels(begin), y,
        pixels(size), height);
    const std::string number = std::to_string(op.micro_batch);
    const auto number_width = static_cast<std::int64_t>(number.size()) * 650 + 300;
    if (size < number_width || height < 12) return;
    add("<text class=\"{}\" x=\"{}\" y=\"{}\">{}</text>", text_class, pixels(begin + size / 2), y + height / 2 + 4,
        number);
  }

  // --- many ops: a path per pass and shade, a rectangle per run of equal columns

  void merged_row(int rank) {
    const auto& units = units_[static_cast<std::size_t>(rank)];
    const Columns columns = columns_over(bounds_, std::clamp(merged_boxes_max / ranks(), 100, plot_width_));
    const auto filled = fill(columns, units);
    std::map<std::string, std::string> paths;  // by class
    for (std::size_t i = 0; i < filled.size();) {
      std::size_t end = i + 1;
      while (end < filled.size() && looks_equal(units, filled[i], filled[end])) ++end;
      if (filled[i]) {
        const Time begin = columns.begin + columns.duration * static_cast<Time>(i);
        const Time finish = std::min(bounds_.end, columns.begin + columns.duration * static_cast<Time>(end));
        merged_box(rank, units[*filled[i]], begin, finish, paths);
      }
      i = end;
    }
    for (const auto& [name, path] : paths) add("<path class=\"{}\" d=\"{}\"/>\n", name, path);
  }

  [[nodiscard]] bool looks_equal(std::span<const Unit> units, std::optional<std::size_t> a,
                                 std::optional<std::size_t> b) const {
    if (!a || !b) return !a && !b;
    const auto x_ops = units[*a].ops;
    const auto y_ops = units[*b].ops;
    return std::equal(x_ops.begin(), x_ops.end(), y_ops.begin(), y_ops.end(),
                      [&](Op p, Op q) { return p.kind == q.kind && chunks_[p.stage] == chunks_[q.stage]; });
  }

  void merged_box(int rank, const Unit& unit, Time begin, Time end, std::map<std::string, std::string>& paths) const {
    const std::int64_t from = x(begin);
    const std::int64_t size = x(end) - from;
    const int first_height = unit.is_pair() ? row_height_ / 2 : row_height_;
    int y = row_top(rank);
    int height = first_height;
    for (const Op op : unit.ops) {
      fmt::format_to(std::back_inserter(paths[fill_class(op)]), "M{} {}h{}v{}h-{}z", pixels(from), y, pixels(size),
                     height, pixels(size));
      y += height;
      height = row_height_ - first_height;
    }
  }

  // --- the legend

  struct LegendItem {
    std::vector<std::string> fills;  // a swatch each, but for a pair: forward and backward in one
    bool pair = false;
    std::string text;

    [[nodiscard]] int swatches() const { return pair ? 1 : static_cast<int>(fills.size()); }
    [[nodiscard]] int width() const { return swatches() * 16 + static_cast<int>(text.size()) * 7 + 16; }
  };

  [[nodiscard]] std::vector<LegendItem> legend_items() const {
    std::array<bool, 4> seen{};
    bool pairs = false;
    for (const auto& row : units_) {
      for (const Unit& unit : row) {
        for (const Op op : unit.ops) seen[static_cast<std::size_t>(op.kind)] = true;
        pairs = pairs || unit.is_pair();
      }
    }
    std::vector<LegendItem> items;
    for (std::size_t pass = 0; pass < seen.size(); ++pass) {
      if (!seen[pass]) continue;
      const auto kind = static_cast<Kind>(pass);
      LegendItem& item = items.emplace_back();
      for (int shade = 0; shade < shades_; ++shade) item.fills.push_back(fill_class(kind, shade));
      item.text = fmt::format("{} {}", name(kind), pass_titles[pass]);
    }
    if (pairs) items.push_back({{fill_class(Kind::forward, 0), fill_class(Kind::backward, 0)}, true, "F&B pair"});
    items.push_back({{"idle"}, false, "idle"});
    if (shades_ > 1)
      items.push_back({{}, false, placement().chains() > 1 ? "paler: second chain" : "paler: later stages"});
    return items;
  }

  // Calls draw(item, x, line) for each, wrapped to the width of the plot; returns the number of lines.
  template <typename Draw>
  int lay_out_legend(Draw draw) const {
    int line = 0;
    int x = left();
    for (const LegendItem& item : legend_items()) {
      if (x > left() && x + item.width() > left() + plot_width_) {
        ++line;
        x = left();
      }
      draw(item, x, line);
      x += item.width();
    }
    return line + 1;
  }

  void legend() {
    lay_out_legend([&](const LegendItem& item, int x, int line) {
      const int y = plot_bottom() + axis_height + 12 + line * legend_line_height;
      const int height = item.pair ? 7 : 14;
      for (std::size_t i = 0; i < item.fills.size(); ++i) {
        const auto at = static_cast<int>(i);
        add("<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"14\" height=\"{}\"/>", item.fills[i],
            item.pair ? x : x + at * 16, item.pair ? y + at * 7 : y, height);
      }
      if (item.pair) add("<rect class=\"pair\" x=\"{}\" y=\"{}\" width=\"14\" height=\"14\"/>", x, y);
      add("<text x=\"{}\" y=\"{}\">{}</text>\n", x + item.swatches() * 16 + 2, y + 11, xml_text(item.text));
    });
  }

  const Program& program_;
  const Timeline& timeline_;
  Span bounds_;
  std::vector<int> chunks_;  // per stage: its shade
  std::vector<std::vector<Unit>> units_;
  int shades_ = 1;
  bool merged_ = false;
  int plot_width_ = 0;
  int row_height_ = 0;
  int row_gap_ = 0;
  int label_width_ = 0;
  int legend_lines_ = 1;
  std::string svg_;
};

}  // namespace

void write_gantt_svg(std::ostream& out, const Program& program, const Timeline& timeline) {
  const std::string svg = GanttSvg(program, timeline).draw();
  out.write(svg.data(), static_cast<std::streamsize>(svg.size()));
}

}  // namespace dualpipe
