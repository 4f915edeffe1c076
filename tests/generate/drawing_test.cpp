// Every family has its drawing in its file, and the drawing is what the generator makes:
//
//   // Drawing: 1f1b, 2 ranks, 2 micro-batches; F = 1, B = 2
//   //
//   //   rank 0: F0 F1 .  B0 -- B1 --
//   //   rank 1: .  F0 B0 -- F1 B1 --
//
// A column is one unit of time; -- goes on, . idles. Ops of ranks with several stages have the stage in front. An F&B
// pair is 0F3&3B1. With DUALPIPE_UPDATE_DRAWINGS set, this test rewrites the files instead.
#include <fmt/format.h>

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"

namespace dualpipe::test {
namespace {

struct Drawing {
  std::string title;
  std::string family;
  Shape shape;
  Costs costs;
  std::vector<std::string> lines;  // without the comment signs
};

std::int64_t number_in(const std::string& title, const std::string& pattern, std::int64_t otherwise) {
  std::smatch match;
  return std::regex_search(title, match, std::regex(pattern)) ? std::stoll(match[1]) : otherwise;
}

Drawing parse_title(const std::string& title) {
  Drawing drawing;
  drawing.title = title;
  drawing.family = title.substr(0, title.find(','));
  drawing.shape = {static_cast<int>(number_in(title, "(\\d+) ranks", 0)), number_in(title, "(\\d+) micro-batches", 0)};
  for (const Parameter& each : parameters()) {
    const std::string pattern = fmt::format("(\\d+) {}", each.name);
    drawing.shape.*each.value = static_cast<int>(number_in(title, pattern, Shape{}.*each.value));
  }
  StageCosts stage;
  stage.forward = number_in(title, "[ ]F = (\\d+)", 0);
  stage.backward = number_in(title, "[ ]B = (\\d+)", 0);
  stage.weight_gradient = number_in(title, "W = (\\d+)", 0);
  stage.input_gradient = stage.backward - stage.weight_gradient;
  stage.overlapped = number_in(title, "F&B = (\\d+)", stage.forward + stage.backward);
  drawing.costs.stages = {stage};
  return drawing;
}

std::string draw_rank(const Program& program, const Timeline& timeline, int rank) {
  const Schedule& schedule = program.schedule;
  const bool one_stage = schedule.placement.stages_on(rank).size() == 1;
  const std::size_t width = one_stage ? 3 : schedule.placement.stages() > 10 ? 5 : 4;
  const auto ops = schedule.rank(rank);
  std::vector<std::string> columns(static_cast<std::size_t>(timeline.makespan()), ".");
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const Span span = timeline.ops[schedule.rank_begin[static_cast<std::size_t>(rank)] + i];
    const bool second = i > 0 && ops[i - 1].with_next;
    const auto start = static_cast<std::size_t>(span.start) + (second ? 1 : 0);
    for (auto t = start; t < static_cast<std::size_t>(span.end); ++t) columns[t] = "--";
    Op op = ops[i];
    const std::string text = to_text(op);
    columns[start] = (one_stage ? text.substr(text.find_first_of("FBIW")) : text) + (op.with_next ? "&" : "");
  }
  std::string line = fmt::format("rank {}: ", rank);
  for (const std::string& column : columns) line += fmt::format("{:<{}}", column, width);
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

std::vector<std::string> drawn(const Drawing& drawing) {
  const Program program = lower(generate(drawing.family, drawing.shape));
  const Timeline timeline = simulate(program, drawing.costs);
  std::vector<std::string> lines;
  for (int rank = 0; rank < drawing.shape.ranks; ++rank) lines.push_back(draw_rank(program, timeline, rank));
  return lines;
}

constexpr std::string_view title_mark = "// Drawing: ";
constexpr std::string_view line_mark = "//   rank ";

// Copies a file and gives each of its drawings to `visit`, which may change its lines.
template <typename Visit>
std::string visit_drawings(const std::filesystem::path& file, Visit visit) {
  std::ifstream in(file);
  std::string copy;
  std::string line;
  while (std::getline(in, line)) {
    copy += line + "\n";
    if (!line.starts_with(title_mark)) continue;
    Drawing drawing = parse_title(line.substr(title_mark.size()));
    std::getline(in, line);
    copy += line + "\n";  // the empty one
    while (std::getline(in, line) && line.starts_with(line_mark)) drawing.lines.push_back(line.substr(5));
    visit(drawing);
    for (const std::string& each : drawing.lines) copy += "//   " + each + "\n";
    copy += line + "\n";
  }
  return copy;
}

BOOST_AUTO_TEST_SUITE(generate_drawing)

BOOST_AUTO_TEST_CASE(every_family_has_a_true_drawing) {
  const bool update = std::getenv("DUALPIPE_UPDATE_DRAWINGS") != nullptr;
  std::set<std::string, std::less<>> seen;
  for (const auto& entry : std::filesystem::directory_iterator(DUALPIPE_TESTS_DIR "/../sim/generate")) {
    if (entry.path().extension() != ".cpp") continue;
    const std::string copy = visit_drawings(entry.path(), [&](Drawing& drawing) {
      seen.insert(drawing.family);
      const auto lines = drawn(drawing);
      if (!update)
        BOOST_TEST(drawing.lines == lines, drawing.title << "\n" << fmt::format("{}", fmt::join(lines, "\n")));
      drawing.lines = lines;
    });
    if (update) std::ofstream(entry.path()) << copy;
  }
  for (const Family& family : catalog()) BOOST_TEST(seen.contains(family.name), family.name << " has no drawing");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
