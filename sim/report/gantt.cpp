#include "dualpipe/sim/report/gantt.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "dualpipe/sim/report/gantt_layout.h"
#include "dualpipe/sim/report/text_table.h"

namespace dualpipe {

using detail::report::cause_of;
using detail::report::Chart;
using detail::report::chunk_of_stages;
using detail::report::class_names;
using detail::report::class_of;
using detail::report::Columns;
using detail::report::fill;
using detail::report::idle_class;
using detail::report::round_up_to_tick;
using detail::report::scaled;
using detail::report::Shown;
using detail::report::Unit;

namespace {

enum class Form { with_stages, without_stages, dense, letters };

// How the chart is cut: `columns.count` cells, `cell_width` characters each.
struct Layout {
  Form form = Form::dense;
  Columns columns;
  int cell_width = 1;
  bool exact = false;  // a cell is one unit of time

  [[nodiscard]] int width() const { return columns.count * cell_width; }
};

// One op, pair or idle time as it is drawn.
struct Bar {
  Shown shown;  // of the rank's units
  int cells = 0;
};

// Background colours of the 256-colour palette, near those of the SVG: of a rank's first stage, and of its others. By
// class: F, B, I, W, F&B.
struct Background {
  int first;
  int others;
};
constexpr std::array<Background, class_names.size()> backgrounds{
    {{39, 153}, {214, 223}, {175, 218}, {36, 115}, {227, 227}}};
constexpr std::array<std::string_view, class_names.size()> titles{"forward", "backward (full)", "input gradient",
                                                                  "weight gradient", "F&B pair"};

// By cause: what stands for it, in a colour near that of what is waited for.
struct IdleMark {
  char mark;
  int color;
};
constexpr std::array<IdleMark, cause_names.size()> idle_marks{{{'\'', 39},
                                                               {'"', 214},
                                                               {':', 175},
                                                               {';', 36},
                                                               {'=', 227},
                                                               {'!', 203},
                                                               {'<', 250},
                                                               {'~', 33},
                                                               {'#', 63},
                                                               {'|', 99},
                                                               {'+', 137},
                                                               {'.', 244},
                                                               {'_', 244}}};

std::string on_background(std::string_view text, int color) {
  return text.empty() ? "" : fmt::format("\x1b[38;5;16;48;5;{}m{}\x1b[0m", color, text);
}

std::string in_color(std::string_view text, int color) { return fmt::format("\x1b[38;5;{}m{}\x1b[0m", color, text); }

std::string dimmed(std::string_view text) { return fmt::format("\x1b[2m{}\x1b[0m", text); }

class Gantt {
 public:
  Gantt(const Program& program, const Timeline& timeline, const GanttOptions& options)
      : program_(program), options_(options), chart_(program, timeline, options.window, options.explanation) {
    chunks_ = chunk_of_stages(placement());
    several_stages_ = std::any_of(chunks_.begin(), chunks_.end(), [](int chunk) { return chunk > 0; });
    for (int rank = 0; rank < placement().ranks; ++rank) names_.push_back(fmt::format("rank {}", rank));
    margin_ = std::max<std::size_t>(names_.empty() ? 0 : names_.back().size(), 4) + 2;
    layout_ = choose_layout();
  }

  [[nodiscard]] std::string draw() const {
    std::string rows;
    for (std::size_t rank = 0; rank < names_.size(); ++rank) rows += row(rank) + path_row(static_cast<int>(rank));
    const bool goes_on = rows.find('-') != std::string::npos;
    return axis() + rows + legend(goes_on);
  }

 private:
  [[nodiscard]] const Placement& placement() const { return program_.schedule.placement; }

  // --- what an op is called

  [[nodiscard]] std::string label(Op op, Form form) const {
    if (form == Form::with_stages) return to_text(op);
    std::string letter(name(op.kind));
    if (chunks_[op.stage] % 2 == 1 && form != Form::letters) letter[0] = static_cast<char>(letter[0] - 'A' + 'a');
    return form == Form::letters ? letter : fmt::format("{}{}", letter, op.micro_batch);
  }

  [[nodiscard]] std::string label(const Unit& unit, Form form) const {
    std::string text = label(unit.ops[0], form);
    if (unit.is_pair()) text += "&" + label(unit.ops[1], form);
    return text;
  }

  // The pass alone.
  [[nodiscard]] char letter(const Unit& unit) const {
    const Form form = options_.letters ? Form::letters : Form::without_stages;
    return unit.is_pair() ? '&' : label(unit.ops[0], form)[0];
  }

  // --- the layout

  // The longest duration of which all times are multiples; 0 where it would take more than `cells_max` cells.
  [[nodiscard]] Time common_unit(int cells_max) const {
    const Time length = chart_.length();
    Time unit = length;
    for (const auto& units : chart_.units) {
      for (const Unit& each : units) {
        const Span shown = chart_.shown(each);
        unit = std::gcd(std::gcd(unit, shown.start - chart_.window.start), shown.end - shown.start);
        if (unit == 0 || length / unit > cells_max) return 0;
      }
    }
    return unit;
  }

  // The narrowest cell in which every label fits, with a blank after it.
  [[nodiscard]] int cell_width(Time unit, Form form) const {
    int width = 1;
    for (const auto& units : chart_.units) {
      for (const Unit& each : units) {
        const Span shown = chart_.shown(each);
        const auto cells = static_cast<int>((shown.end - shown.start) / unit);
        const auto length = static_cast<int>(label(each, form).size()) + 1;
        if (cells > 0) width = std::max(width, (length + cells - 1) / cells);
      }
    }
    return width;
  }

  [[nodiscard]] Layout choose_layout() const {
    const int width = std::max(options_.width - static_cast<int>(margin_), 20);
    const Form closest = options_.letters ? Form::letters : Form::dense;
    const Time unit = common_unit(width);
    if (unit == 0) return {closest, {chart_.window, chart_.length() == 0 ? 0 : width}};
    const Columns columns{chart_.window, static_cast<int>(chart_.length() / unit)};
    for (const Form form : {Form::with_stages, Form::without_stages}) {
      if (options_.letters || (form == Form::with_stages && !several_stages_)) continue;
      const Layout layout{form, columns, cell_width(unit, form), true};
      if (layout.width() <= width) return layout;
    }
    return {closest, columns, width / columns.count, true};
  }

  // --- drawing

  // The distance of ticks: as near as their labels allow.
  [[nodiscard]] Time tick_step() const {
    constexpr int tick_width_min = 9;
    Time step = 0;
    for (int width = tick_width_min;; ++width) {
      step = round_up_to_tick(scaled(width, chart_.length(), std::max(layout_.width(), width)));
      const Time last = (chart_.window.end - chart_.origin) / step * step;
      if (static_cast<int>(display_width(format_time_exact(last))) + 2 <= width || width > layout_.width()) return step;
    }
  }

  [[nodiscard]] std::string axis() const {
    const auto line_width = static_cast<std::size_t>(layout_.width());
    std::string line(line_width, ' ');
    if (chart_.length() > 0) {
      const Time step = tick_step();
      const Time begin = chart_.window.start - chart_.origin;
      for (Time time = (begin + step - 1) / step * step; chart_.origin + time < chart_.window.end; time += step) {
        const std::string text = "|" + (time == 0 ? "0" : format_time_exact(time));
        const auto at = static_cast<std::size_t>(scaled(time - begin, layout_.width(), chart_.length()));
        if (at + display_width(text) > line_width) break;
        // Written at the end of what is there, since "µs" has more bytes than columns.
        line.replace(at + (line.size() - display_width(line)), display_width(text), text);
      }
    }
    line.insert(0, fmt::format("{:<{}}", "time", margin_));
    line.erase(line.find_last_not_of(' ') + 1);
    return line + "\n";
  }

  [[nodiscard]] std::vector<Bar> bars(std::size_t rank) const {
    std::vector<Bar> bars;
    for (const Shown& shown : fill(layout_.columns, chart_.units[rank], chart_.idle[rank])) {
      if (bars.empty() || bars.back().shown != shown) bars.push_back({shown, 0});
      ++bars.back().cells;
    }
    return bars;
  }

  [[nodiscard]] std::string row(std::size_t rank) const {
    std::string line = fmt::format("{:<{}}", names_[rank], margin_);
    for (const Bar& bar : bars(rank)) {
      line += bar.shown.unit ? run(chart_.units[rank][*bar.shown.unit], bar.cells) : idle(bar);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    return line + "\n";
  }

  // Below the row: the columns in whose middle the critical path runs on this rank. Nothing where it never does.
  [[nodiscard]] std::string path_row(int rank) const {
    const auto cell_size = static_cast<std::size_t>(layout_.cell_width);
    std::string line;
    for (const PathStep& step : chart_.path) {
      if (step.rank != rank) continue;
      // A middle before a time: twice that of columns, which is odd.
      const auto columns_before = [&](Time time) {
        const std::int64_t halves = scaled(time - chart_.window.start, 2 * layout_.columns.count, chart_.length());
        return static_cast<std::size_t>(
            std::clamp((halves + 1) / 2, std::int64_t{0}, std::int64_t{layout_.columns.count}));
      };
      const Span shown = chart_.shown(step.span);
      const std::size_t begin = columns_before(shown.start);
      const std::size_t end = columns_before(shown.end);
      if (begin >= end) continue;
      line.resize(begin * cell_size, ' ');
      line.append((end - begin) * cell_size, '^');
    }
    return line.empty() ? "" : std::string(margin_, ' ') + line + "\n";
  }

  // Whether blanks set ops apart.
  [[nodiscard]] bool spaced() const {
    return layout_.form == Form::with_stages || layout_.form == Form::without_stages;
  }

  [[nodiscard]] std::string cell(char mark) const {
    const auto width = static_cast<std::size_t>(layout_.cell_width);
    return spaced() ? std::string(width - 1, mark) + ' ' : std::string(width, mark);
  }

  [[nodiscard]] std::string idle(const Bar& bar) const {
    const bool has_cause = bar.shown.shown_class > idle_class;
    const IdleMark* mark = has_cause ? &idle_mark(bar.shown.shown_class) : nullptr;
    std::string one = cell(spaced() ? ' ' : has_cause ? mark->mark : '.');
    one[0] = has_cause ? mark->mark : '.';
    std::string text;
    for (int i = 0; i < bar.cells; ++i) text += one;
    if (!options_.color) return text;
    return has_cause ? in_color(text, mark->color) : dimmed(text);
  }

  [[nodiscard]] static const IdleMark& idle_mark(std::size_t idle) {
    return idle_marks[static_cast<std::size_t>(cause_of(idle))];
  }

  // The label, a mark in each cell after it.
  [[nodiscard]] std::string run(const Unit& unit, int cells) const {
    const auto width = static_cast<std::size_t>(cells) * static_cast<std::size_t>(layout_.cell_width);
    const auto cell_size = static_cast<std::size_t>(layout_.cell_width);
    std::string text = label(unit, layout_.form);
    if (layout_.form == Form::letters || text.size() + (spaced() ? 1 : 0) > width) text = letter(unit);
    if (spaced()) {
      text.resize((text.size() + cell_size - 1) / cell_size * cell_size, ' ');
      while (text.size() < width) text += cell('-');
    } else {
      text.resize(width, '-');
    }
    return options_.color ? on_background(text, background_of(unit)) : text;
  }

  [[nodiscard]] int background_of(const Unit& unit) const {
    const Background& background = backgrounds[class_of(unit)];
    return chunks_[unit.ops[0].stage] == 0 ? background.first : background.others;
  }

  // --- the legend

  [[nodiscard]] std::vector<std::string> legend_items(bool goes_on) const {
    std::vector<std::string> items;
    for (std::size_t each = 0; each < titles.size(); ++each) {
      if (!chart_.has[each]) continue;
      const bool is_spaced_pair = each + 1 == titles.size() && spaced();
      items.push_back(swatch(each) + (is_spaced_pair ? "pair" : std::string(titles[each])));
    }
    if (goes_on) items.push_back(fmt::format("{} goes on", spaced() ? "--" : "-"));
    add_idle_items(items);
    if (layout_.form == Form::with_stages) items.emplace_back("0F1: stage 0, micro-batch 1");
    const bool has_case = layout_.form == Form::without_stages || layout_.form == Form::dense;
    if (has_case && several_stages_) items.emplace_back(chunk_item());
    if (layout_.columns.count == 0) return items;
    const std::string_view unit = layout_.cell_width == 1 && !spaced() ? "column" : "cell";
    const std::string duration = format_time(chart_.length() / layout_.columns.count);
    items.push_back(fmt::format("one {}: {}{}", unit, layout_.exact ? "" : "about ", duration));
    if (!layout_.exact) items.emplace_back("a row keeps its shares of each");
    return items;
  }

  void add_idle_items(std::vector<std::string>& items) const {
    if (options_.explanation == nullptr) {
      items.push_back((options_.color ? dimmed(".") : ".") + " idle");
      return;
    }
    for (std::size_t each = idle_class + 1; each < chart_.has.size(); ++each) {
      if (!chart_.has[each]) continue;
      const IdleMark& mark = idle_mark(each);
      const std::string text(1, mark.mark);
      items.push_back(fmt::format("{} {}", options_.color ? in_color(text, mark.color) : text, name(cause_of(each))));
    }
    if (!chart_.path.empty()) items.emplace_back("^ critical path");
  }

  // What stands for a class, in its colours.
  [[nodiscard]] std::string swatch(std::size_t each) const {
    const bool is_pair = each + 1 == class_names.size();
    std::string mark(is_pair && !spaced() ? "&" : class_names[each]);
    return (options_.color ? on_background(mark, backgrounds[each].first) : mark) + " ";
  }

  [[nodiscard]] std::string chunk_item() const {
    const std::string lower_case = options_.color ? on_background("lower case", backgrounds[0].others) : "lower case";
    if (placement().chains() == 2) return lower_case + ": second chain";
    const int most = *std::max_element(chunks_.begin(), chunks_.end()) + 1;
    return lower_case + (most == 2 ? ": the rank's second stage" : ": every other stage of the rank");
  }

  // Wrapped between items.
  [[nodiscard]] std::string legend(bool goes_on) const {
    const auto width = static_cast<std::size_t>(std::max(options_.width, 0));
    std::string out;
    std::string line(margin_, ' ');
    std::size_t line_width = 0;  // without escapes; 0 before the first item
    for (const std::string& item : legend_items(goes_on)) {
      const std::size_t item_width = visible_width(item);
      if (line_width > 0 && margin_ + line_width + 3 + item_width > width) {
        out += line + "\n";
        line.assign(margin_, ' ');
        line_width = 0;
      }
      line += (line_width == 0 ? "" : "   ") + item;
      line_width += (line_width == 0 ? 0 : 3) + item_width;
    }
    return out + line + "\n";
  }

  // Of a text with escapes that set colours.
  [[nodiscard]] static std::size_t visible_width(std::string_view text) {
    std::size_t hidden = 0;
    for (std::size_t at = text.find('\x1b'); at != std::string_view::npos; at = text.find('\x1b', at + 1)) {
      hidden += text.find('m', at) + 1 - at;
    }
    return display_width(text) - hidden;
  }

  const Program& program_;
  const GanttOptions& options_;
  Chart chart_;
  std::vector<int> chunks_;  // per stage
  bool several_stages_ = false;
  std::vector<std::string> names_;
  std::size_t margin_ = 0;
  Layout layout_;
};

}  // namespace

std::string gantt(const Program& program, const Timeline& timeline, const GanttOptions& options) {
  return Gantt(program, timeline, options).draw();
}

}  // namespace dualpipe
