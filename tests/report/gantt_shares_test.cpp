// What is drawn is true: each row of a Gantt chart has as much of F, B, I, W, F&B and idle time as the rank's time has.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/test/unit_test.hpp>
#include <charconv>
#include <map>
#include <sstream>
#include <string_view>
#include <vector>

#include "dualpipe/sim/report/gantt.h"
#include "dualpipe/sim/report/gantt_svg.h"
#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/report/window.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/support.h"
#include "tests/thinned.h"

namespace dualpipe::test {
namespace {

constexpr Time ms = 1'000'000;

// Of a row: F, B, I, W, F&B, idle. They add up to 1.
using Shares = std::array<double, 6>;
constexpr std::size_t idle = 5;

std::string text_of(const Shares& shares) {
  return fmt::format("F {:.4f} B {:.4f} I {:.4f} W {:.4f} F&B {:.4f} idle {:.4f}", shares[0], shares[1], shares[2],
                     shares[3], shares[4], shares[5]);
}

Shares in_parts_of(Shares amounts, double whole) {
  for (double& amount : amounts) amount /= whole;
  return amounts;
}

// In the timeline, between two of its times.
Shares shares_of(const Program& program, const Timeline& timeline, int rank, Span window) {
  Shares times{};
  const auto length = static_cast<double>(window.end - window.start);
  times[idle] = length;
  for (const auto& unit : detail::report::units_of(program, timeline, rank)) {
    const Time shown = std::min(unit.span.end, window.end) - std::max(unit.span.start, window.start);
    if (shown <= 0) continue;
    times[detail::report::class_of(unit)] += static_cast<double>(shown);
    times[idle] -= static_cast<double>(shown);
  }
  return in_parts_of(times, length);
}

double difference(const Shares& a, const Shares& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));
  return most;
}

// --- the text

// Of the rows of ranks what follows the name.
std::vector<std::string> rows_of(const std::string& chart) {
  std::vector<std::string> rows;
  std::istringstream in(chart);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with("rank ")) continue;
    const std::size_t name_end = line.find_first_not_of("0123456789", 5);
    rows.push_back(line.substr(line.find_first_not_of(' ', name_end)));
  }
  return rows;
}

struct DrawnRow {
  Shares shares{};
  std::size_t columns = 0;
};

// A letter where an op begins, and '-' where it goes on.
DrawnRow drawn_in_letters(std::string_view row) {
  static constexpr std::string_view letters = "FBIW&.";
  DrawnRow drawn;
  std::size_t last = std::string_view::npos;
  for (const char c : row) {
    if (c != '-') last = letters.find(c);
    BOOST_REQUIRE_MESSAGE(last != std::string_view::npos, "not one of F B I W & . -: " << c);
    ++drawn.shares[last];
    ++drawn.columns;
  }
  drawn.shares = in_parts_of(drawn.shares, static_cast<double>(drawn.columns));
  return drawn;
}

// A background for each pass, and idle time dimmed.
DrawnRow drawn_in_color(std::string_view row) {
  static const std::map<std::string_view, std::size_t> codes{{"39", 0},  {"153", 0}, {"214", 1}, {"223", 1}, {"175", 2},
                                                             {"218", 2}, {"36", 3},  {"115", 3}, {"227", 4}};
  static constexpr std::string_view background = "\x1b[38;5;16;48;5;";
  DrawnRow drawn;
  while (!row.empty()) {
    const std::size_t text = row.find('m') + 1;
    const std::size_t end = row.find("\x1b[0m", text);
    BOOST_REQUIRE(end != std::string_view::npos);
    const std::string_view escape = row.substr(0, text);
    const bool is_idle = escape == "\x1b[2m";
    BOOST_REQUIRE((is_idle || escape.starts_with(background)));
    const std::size_t each =
        is_idle ? idle : codes.at(escape.substr(background.size(), escape.size() - background.size() - 1));
    drawn.shares[each] += static_cast<double>(end - text);
    drawn.columns += end - text;
    row.remove_prefix(end + std::string_view("\x1b[0m").size());
  }
  drawn.shares = in_parts_of(drawn.shares, static_cast<double>(drawn.columns));
  return drawn;
}

// What a chart of so many columns may be off by: less than one of them (gantt_layout.h).
double bound(const Shares& shares, std::size_t columns) {
  const auto present = std::ranges::count_if(shares, [](double share) { return share > 0; });
  const double in_columns = present < 2 ? 0 : 1 - 1 / static_cast<double>(2 * present - 2);
  return in_columns / static_cast<double>(columns) + 1e-9;
}

void check_text(const Program& program, const Timeline& timeline, const GanttOptions& options, Span window) {
  const auto rows = rows_of(gantt(program, timeline, options));
  BOOST_REQUIRE(std::ssize(rows) == program.schedule.ranks());
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const std::string& row = rows[static_cast<std::size_t>(rank)];
    const DrawnRow drawn = options.letters ? drawn_in_letters(row) : drawn_in_color(row);
    const Shares shares = shares_of(program, timeline, rank, window);
    const double off = difference(drawn.shares, shares);
    if (off <= bound(shares, drawn.columns) && (options.width < 80 || off < 0.02)) continue;
    BOOST_ERROR("rank " << rank << ", width " << options.width << ": drawn " << text_of(drawn.shares) << ", is "
                        << text_of(shares) << "\n"
                        << row);
  }
}

// --- the picture

// Reads numbers from a text, stepping over what is between them.
class Numbers {
 public:
  explicit Numbers(std::string_view text) : text_(text) {}
  [[nodiscard]] double next() {
    text_.remove_prefix(std::min(text_.find_first_of("-0123456789."), text_.size()));
    double value = 0;
    const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), value);
    BOOST_REQUIRE((error == std::errc{}));
    text_.remove_prefix(static_cast<std::size_t>(end - text_.data()));
    return value;
  }
  [[nodiscard]] bool has_next() const { return text_.find_first_of("0123456789") != std::string_view::npos; }

 private:
  std::string_view text_;
};

double number_of(std::string_view tag, std::string_view attribute) {
  const std::size_t at = tag.find(fmt::format(" {}=\"", attribute));
  BOOST_REQUIRE(at != std::string_view::npos);
  return Numbers(tag.substr(at + attribute.size() + 3)).next();
}

std::string_view text_attribute(std::string_view tag, std::string_view attribute) {
  const std::size_t at = tag.find(fmt::format(" {}=\"", attribute));
  if (at == std::string_view::npos) return "";
  const std::size_t begin = at + attribute.size() + 3;
  return tag.substr(begin, tag.find('"', begin) - begin);
}

// The areas that a picture has of each class in each row.
class Areas {
 public:
  explicit Areas(std::string_view svg) {
    bool in_pair = false;
    const std::string_view body = svg.substr(svg.find("<path class=\"grid\""));
    for (std::size_t at = body.find('<'); at != std::string_view::npos; at = body.find('<', at + 1)) {
      const std::string_view tag = body.substr(at, body.find('>', at) - at);
      if (tag.starts_with("<text class=\"tick\"")) break;  // the axis, and then the legend
      if (tag == "<title")
        in_pair = body.substr(at, body.find('\n', at) - at).find("OVERLAP") != std::string_view::npos;
      take(tag, in_pair);
    }
  }

  [[nodiscard]] std::size_t rows() const { return rows_.size(); }
  [[nodiscard]] Shares shares(std::size_t rank) const {
    const Row& row = rows_[rank];
    Shares areas = row.areas;
    areas[idle] = row.width * row.height;
    for (std::size_t each = 0; each < idle; ++each) areas[idle] -= areas[each];
    return in_parts_of(areas, row.width * row.height);
  }

 private:
  struct Row {
    double top = 0, width = 0, height = 0;
    Shares areas{};
  };

  void take(std::string_view tag, bool in_pair) {
    const std::string_view classes = text_attribute(tag, "class");
    if (classes == "idle") {
      rows_.push_back({number_of(tag, "y"), number_of(tag, "width"), number_of(tag, "height"), {}});
      return;
    }
    const std::string_view paint = classes.substr(std::min(classes.size(), classes.rfind(' ') + 1));
    const std::size_t each = paint.empty() ? std::string_view::npos : std::string_view("FBIWP").find(paint[0]);
    const bool is_op = each != std::string_view::npos && (paint == "P" || (paint.size() == 2 && paint[1] <= '9'));
    if (!is_op) return;
    if (tag.starts_with("<rect")) {
      add(in_pair ? 4 : each, number_of(tag, "y"), number_of(tag, "width") * number_of(tag, "height"));
    } else if (classes.starts_with("line ")) {
      take_line(each, text_attribute(tag, "d"));
    } else {
      take_boxes(each, text_attribute(tag, "d"));
    }
  }

  // "M<x> <y>h<width>m<gap> 0h<width>h<width>": each as high as the row.
  void take_line(std::size_t each, std::string_view path) {
    Numbers start(path);
    static_cast<void>(start.next());
    const double y = start.next();
    double width = 0;
    for (std::size_t at = path.find('h'); at != std::string_view::npos; at = path.find('h', at + 1)) {
      width += Numbers(path.substr(at)).next();
    }
    add(each, y, width * row_at(y).height);
  }

  // "M<x> <y>h<width>v<height>h-<width>z", any number of them.
  void take_boxes(std::size_t each, std::string_view path) {
    for (Numbers numbers(path); numbers.has_next();) {
      static_cast<void>(numbers.next());
      const double y = numbers.next();
      const double width = numbers.next();
      const double height = numbers.next();
      BOOST_REQUIRE(numbers.next() == -width);
      add(each, y, width * height);
    }
  }

  void add(std::size_t each, double y, double area) { row_at(y).areas[each] += area; }

  Row& row_at(double y) {
    const auto row = std::ranges::find_if(rows_, [&](const Row& r) { return r.top <= y && y < r.top + r.height; });
    BOOST_REQUIRE((row != rows_.end()));
    return *row;
  }

  std::vector<Row> rows_;
};

void check_svg(const Program& program, const Costs& costs, const Timeline& timeline, const SvgOptions& options,
               Span window) {
  std::ostringstream out;
  write_gantt_svg(out, program, costs, timeline, options);
  const std::string svg = out.str();
  BOOST_TEST(svg.size() < 1'000'000U);
  const Areas areas(svg);
  BOOST_REQUIRE(areas.rows() == static_cast<std::size_t>(program.schedule.ranks()));
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const Shares drawn = areas.shares(static_cast<std::size_t>(rank));
    const Shares shares = shares_of(program, timeline, rank, window);
    if (difference(drawn, shares) < 0.003) continue;
    BOOST_ERROR("rank " << rank << ", " << options.width << " pixels: drawn " << text_of(drawn) << ", is "
                        << text_of(shares));
  }
}

// --- what is drawn

struct Run {
  std::string name;
  Program program;
  Costs costs;
  Timeline timeline;
};

Costs costs_for(int number) {
  if (number == 0) return uniform(ms, ms, ms, 0, 5 * ms / 2);
  Costs costs = uniform(1'030'000, 1'700'000, 900'001, number == 1 ? 0 : 70'000);
  costs.jitter = number == 1 ? 0.3 : 0;
  return costs;
}

// Every family of the catalog, from few ops to many, under even costs, uneven ones and random ones.
std::vector<Run> runs() {
  std::vector<Run> runs;
  Thinned thinned(7);
  for (const Family& family : catalog()) {
    int shapes = 0;  // that the family has
    for (const auto& [ranks, micro_batches] : {std::pair{2, 4}, {4, 24}, {8, 20}, {16, 64}, {32, 512}, {64, 512}}) {
      const int number = static_cast<int>(runs.size() % 3);
      Request request;
      request.family = family.name;
      request.shape = {ranks, micro_batches};
      if (family.takes_chunks) request.shape.chunks = 2;
      request.costs = costs_for(number);
      ++shapes;
      if (!thinned.next()) continue;
      Program program;
      try {
        program = lower(generate(request));
      } catch (const ShapeError&) {
        --shapes;
        continue;
      }
      const Costs costs = costs_for(number);
      runs.push_back({fmt::format("{} {}x{}, costs {}", family.name, ranks, micro_batches, number), program, costs,
                      simulate(program, costs)});
    }
    BOOST_TEST(shapes >= 3, family.name << " is hardly drawn");
  }
  return runs;
}

Span whole(const Timeline& timeline) { return detail::report::bounds_of(timeline); }

}  // namespace

BOOST_AUTO_TEST_SUITE(report_gantt_shares)

BOOST_AUTO_TEST_CASE(of_text) {
  for (const Run& run : runs()) {
    BOOST_TEST_CONTEXT(run.name) {
      for (const int width : {60, 80, 97, 133, 200}) {
        check_text(run.program, run.timeline, {.width = width, .letters = true}, whole(run.timeline));
        check_text(run.program, run.timeline, {.width = width, .color = true}, whole(run.timeline));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(of_pictures) {
  for (const Run& run : runs()) {
    BOOST_TEST_CONTEXT(run.name) {
      for (const int width : {800, 1280, 2560}) {
        check_svg(run.program, run.costs, run.timeline, {.width = width, .memory = width == 1280}, whole(run.timeline));
      }
    }
  }
}

// What is in a window, and nothing else.
BOOST_AUTO_TEST_CASE(of_a_window) {
  for (const auto& [family, shape] : {std::pair("dualpipe", Shape{8, 20}), {"zb1p", Shape{16, 512}}}) {
    const Program program = lower(generate(family, shape));
    const Costs costs = costs_for(1);
    const Timeline timeline = simulate(program, costs);
    const Time length = timeline.makespan();
    for (const Span part : {Span{length / 3, length / 2}, Span{length / 2 + 1, length / 2 + 4 * ms}, Span{0, 1}}) {
      const Span window = window_of(timeline, part);
      BOOST_TEST_CONTEXT(family << " from " << part.start << " to " << part.end) {
        check_text(program, timeline, {.width = 80, .letters = true, .window = part}, window);
        check_text(program, timeline, {.width = 133, .color = true, .window = part}, window);
        check_svg(program, costs, timeline, {.width = 1280, .window = part}, window);
      }
    }
  }
}

// The case that showed what a column's most frequent op hides: 80 columns drew rank 3 with 79% idle time and no W.
BOOST_AUTO_TEST_CASE(of_a_rank_whose_columns_hold_two_ops) {
  const Program program = lower(generate("zb1p", {16, 64}));
  const Timeline timeline = simulate(program, uniform(ms, ms, ms));
  const auto drawn = drawn_in_letters(rows_of(gantt(program, timeline, {.width = 80, .letters = true}))[3]);
  const Shares shares = shares_of(program, timeline, 3, whole(timeline));
  BOOST_TEST(shares[3] > 0.3);
  BOOST_TEST(difference(drawn.shares, shares) < 0.02);
}

// Ranks that do the same look the same, wherever their ops stand between two pixels.
BOOST_AUTO_TEST_CASE(of_ranks_that_do_the_same) {
  const Program program = lower(generate("1f1b", {64, 512}));
  const Costs costs = uniform(ms, ms, ms);
  const Timeline timeline = simulate(program, costs);
  for (const int width : {800, 1280, 2560}) {
    std::ostringstream out;
    write_gantt_svg(out, program, costs, timeline, {.width = width});
    BOOST_TEST(out.str().size() < 100'000U);  // hardly a piece of a row differs from the next
    const Areas areas(out.str());
    for (std::size_t rank = 1; rank < areas.rows(); ++rank) {
      BOOST_TEST(difference(areas.shares(rank), areas.shares(0)) < 0.001);
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
