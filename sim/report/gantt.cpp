#include "dualpipe/sim/report/gantt.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "dualpipe/sim/report/gantt_layout.h"
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

enum class Form { with_stages, without_stages, dense };

// How the chart is cut: `columns.count` cells, `cell_width` characters each.
struct Layout {
  Form form = Form::dense;
  Columns columns;
  int cell_width = 1;

  [[nodiscard]] int width() const { return columns.count * cell_width; }
};

// One op, pair or idle time as it is drawn.
struct Bar {
  const Unit* unit = nullptr;  // idle without one
  int cells = 0;
};

// Background colours of the 256-colour palette, near those of the SVG: of a rank's first stage, and of its others.
struct Background {
  int first;
  int others;
};
constexpr std::array<Background, 4> backgrounds{{{39, 153}, {214, 223}, {175, 218}, {36, 115}}};  // F, B, I, W

class Gantt {
 public:
  Gantt(const Program& program, const Timeline& timeline, const GanttOptions& options)
      : program_(program), options_(options), bounds_(bounds_of(timeline)) {
    chunks_ = chunk_of_stages(placement());
    several_stages_ = std::any_of(chunks_.begin(), chunks_.end(), [](int chunk) { return chunk > 0; });
    for (int rank = 0; rank < placement().ranks; ++rank) {
      units_.push_back(units_of(program, timeline, rank));
      names_.push_back(fmt::format("rank {}", rank));
    }
    margin_ = std::max<std::size_t>(names_.empty() ? 0 : names_.back().size(), 4) + 2;
    layout_ = choose_layout();
  }

  [[nodiscard]] std::string draw() const {
    std::string out = axis();
    for (std::size_t rank = 0; rank < units_.size(); ++rank) out += row(rank);
    out += legend();
    return out;
  }

 private:
  [[nodiscard]] const Placement& placement() const { return program_.schedule.placement; }

  // --- what an op is called

  [[nodiscard]] std::string label(Op op, Form form) const {
    if (form == Form::with_stages) return to_text(op);
    std::string letter(name(op.kind));
    if (chunks_[op.stage] % 2 == 1) letter[0] = static_cast<char>(letter[0] - 'A' + 'a');
    return fmt::format("{}{}", letter, op.micro_batch);
  }

  [[nodiscard]] std::string label(const Unit& unit, Form form) const {
    std::string text = label(unit.ops[0], form);
    if (unit.is_pair()) text += "&" + label(unit.ops[1], form);
    return text;
  }

  // The pass alone.
  [[nodiscard]] char letter(const Unit& unit) const {
    return unit.is_pair() ? '&' : label(unit.ops[0], Form::without_stages)[0];
  }

  // --- the layout

  // The longest duration of which all times are multiples; 0 where it would take more than `cells_max` cells.
  [[nodiscard]] Time common_unit(int cells_max) const {
    const Time length = bounds_.end - bounds_.start;
    Time unit = length;
    for (const auto& units : units_) {
      for (const Unit& each : units) {
        unit = std::gcd(std::gcd(unit, each.span.start - bounds_.start), each.duration());
        if (unit == 0 || length / unit > cells_max) return 0;
      }
    }
    return unit;
  }

  // The narrowest cell in which every label fits, with a blank after it.
  [[nodiscard]] int cell_width(Time unit, Form form) const {
    int width = 1;
    for (const auto& units : units_) {
      for (const Unit& each : units) {
        const auto cells = static_cast<int>(each.duration() / unit);
        const auto length = static_cast<int>(label(each, form).size()) + 1;
        if (cells > 0) width = std::max(width, (length + cells - 1) / cells);
      }
    }
    return width;
  }

  [[nodiscard]] Layout choose_layout() const {
    const int width = std::max(options_.width - static_cast<int>(margin_), 20);
    const Time unit = common_unit(width);
    if (unit == 0) return {Form::dense, columns_over(bounds_, width), 1};
    const Columns columns{bounds_.start, unit, static_cast<int>((bounds_.end - bounds_.start) / unit)};
    for (const Form form : {Form::with_stages, Form::without_stages}) {
      if (form == Form::with_stages && !several_stages_) continue;
      const Layout layout{form, columns, cell_width(unit, form)};
      if (layout.width() <= width) return layout;
    }
    return {Form::dense, columns, width / columns.count};
  }

  // --- drawing

  [[nodiscard]] std::string axis() const {
    constexpr int tick_width_min = 9;
    const Columns& columns = layout_.columns;
    const Time cells_min = (tick_width_min + layout_.cell_width - 1) / layout_.cell_width;
    const Time step = round_up_to_tick(columns.duration * std::min<Time>(cells_min, std::max(columns.count, 1)));
    std::string line(static_cast<std::size_t>(layout_.width()), ' ');
    for (Time time = 0; columns.begin + time < bounds_.end; time += step) {
      const std::string text = "|" + (time == 0 ? "0" : format_time(time));
      const auto at = static_cast<std::size_t>(time / columns.duration * layout_.cell_width +
                                               scaled(time % columns.duration, layout_.cell_width, columns.duration));
      if (at + display_width(text) > static_cast<std::size_t>(layout_.width())) break;
      // Written at the end of what is there, since "µs" has more bytes than columns.
      line.replace(at + (line.size() - display_width(line)), display_width(text), text);
    }
    line.insert(0, fmt::format("{:<{}}", "time", margin_));
    line.erase(line.find_last_not_of(' ') + 1);
    return line + "\n";
  }

  [[nodiscard]] std::vector<Bar> bars(const std::vector<Unit>& units) const {
    std::vector<Bar> bars;
    for (const auto& index : fill(layout_.columns, units)) {
      const Unit* unit = index ? &units[*index] : nullptr;
      if (bars.empty() || bars.back().unit != unit) bars.push_back({unit, 0});
      ++bars.back().cells;
    }
    return bars;
  }

  [[nodiscard]] std::string row(std::size_t rank) const {
    std::string line = fmt::format("{:<{}}", names_[rank], margin_);
    for (const Bar& bar : bars(units_[rank])) line += bar.unit == nullptr ? idle(bar.cells) : run(bar);
    line.erase(line.find_last_not_of(' ') + 1);
    return line + "\n";
  }

  [[nodiscard]] std::string cell(char mark) const {
    const auto width = static_cast<std::size_t>(layout_.cell_width);
    if (layout_.form == Form::dense) return std::string(width, mark);
    return std::string(width - 1, mark) + ' ';
  }

  [[nodiscard]] std::string idle(int cells) const {
    std::string one = cell(' ');
    one[0] = '.';
    if (layout_.form == Form::dense) one = cell('.');
    std::string text;
    for (int i = 0; i < cells; ++i) text += one;
    return options_.color ? "\x1b[2m" + text + "\x1b[0m" : text;
  }

  // The label, a mark in each cell after it.
  [[nodiscard]] std::string run(const Bar& bar) const {
    const auto width = static_cast<std::size_t>(bar.cells) * static_cast<std::size_t>(layout_.cell_width);
    std::string text = label(*bar.unit, layout_.form);
    const std::size_t blank = layout_.form == Form::dense ? 0 : 1;
    if (text.size() + blank > width) text = letter(*bar.unit);
    const auto cell_size = static_cast<std::size_t>(layout_.cell_width);
    if (layout_.form == Form::dense) {
      text.resize(width, '-');
    } else {
      text.resize((text.size() + cell_size - 1) / cell_size * cell_size, ' ');
      while (text.size() < width) text += cell('-');
    }
    return options_.color ? colored(text, *bar.unit) : text;
  }

  // A pair has two colours: the forward's up to its '&', or the middle, the backward's from there on.
  [[nodiscard]] std::string colored(const std::string& text, const Unit& unit) const {
    if (!unit.is_pair()) return on_background(text, unit.ops[0]);
    const std::size_t mark = text.find('&');
    const std::size_t cut = mark == 0 ? (text.size() + 1) / 2 : mark;
    return on_background(text.substr(0, cut), unit.ops[0]) + on_background(text.substr(cut), unit.ops[1]);
  }

  [[nodiscard]] std::string on_background(const std::string& text, Op op) const {
    const Background& background = backgrounds[static_cast<std::size_t>(op.kind)];
    const int color = chunks_[op.stage] == 0 ? background.first : background.others;
    return text.empty() ? text : fmt::format("\x1b[38;5;16;48;5;{}m{}\x1b[0m", color, text);
  }

  // --- the legend

  [[nodiscard]] std::vector<std::string> legend_items() const {
    std::array<bool, 4> seen{};
    bool pairs = false;
    for (const auto& units : units_) {
      for (const Unit& unit : units) {
        for (const Op op : unit.ops) seen[static_cast<std::size_t>(op.kind)] = true;
        pairs = pairs || unit.is_pair();
      }
    }
    std::vector<std::string> items;
    if (seen[0]) items.emplace_back("F forward");
    if (seen[1]) items.emplace_back("B backward (full)");
    if (seen[2]) items.emplace_back("I input gradient");
    if (seen[3]) items.emplace_back("W weight gradient");
    if (pairs) items.emplace_back(layout_.form == Form::dense ? "& F&B pair" : "F&B pair");
    items.emplace_back(". idle");
    if (layout_.form == Form::with_stages) items.emplace_back("0F1: stage 0, micro-batch 1");
    if (layout_.form != Form::with_stages && several_stages_) items.emplace_back(chunk_item());
    if (layout_.columns.count == 0) return items;
    const std::string_view unit = layout_.form == Form::dense && layout_.cell_width == 1 ? "column" : "cell";
    items.push_back(fmt::format("one {}: {}", unit, format_time(layout_.columns.duration)));
    return items;
  }

  [[nodiscard]] std::string chunk_item() const {
    if (placement().chains() > 1) return "lower case: second chain";
    const int most = *std::max_element(chunks_.begin(), chunks_.end()) + 1;
    return most == 2 ? "lower case: the rank's second stage" : "lower case: every other stage of the rank";
  }

  // Wrapped between items.
  [[nodiscard]] std::string legend() const {
    const auto width = static_cast<std::size_t>(std::max(options_.width, 0));
    std::string out;
    std::string line(margin_, ' ');
    for (const std::string& item : legend_items()) {
      const bool first = line.find_first_not_of(' ') == std::string::npos;
      if (!first && display_width(line) + 3 + display_width(item) > width) {
        out += line + "\n";
        line = std::string(margin_, ' ') + item;
      } else {
        line += (first ? "" : "   ") + item;
      }
    }
    return out + line + "\n";
  }

  const Program& program_;
  const GanttOptions& options_;
  Span bounds_;
  std::vector<int> chunks_;  // per stage
  bool several_stages_ = false;
  std::vector<std::vector<Unit>> units_;  // per rank
  std::vector<std::string> names_;
  std::size_t margin_ = 0;
  Layout layout_;
};

}  // namespace

std::string gantt(const Program& program, const Timeline& timeline, const GanttOptions& options) {
  return Gantt(program, timeline, options).draw();
}

}  // namespace dualpipe
