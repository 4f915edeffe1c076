#include "dualpipe/sim/report/path_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include "dualpipe/sim/report/units.h"

namespace dualpipe::detail::report {
namespace {

constexpr std::size_t lines_max = 24;

using Steps = std::span<const ReportedStep>;

bool is_op(const ReportedStep& step) { return step.kind == PathStep::Kind::op; }

// How many steps from the first one on stay on its rank: ops, and what launches them.
std::size_t stay_of(Steps path) {
  std::size_t size = 1;
  while (size < path.size() && path[size].kind != PathStep::Kind::transfer && path[size].rank == path[0].rank) ++size;
  return size;
}

// How many steps follow one micro-batch from stage to stage: ops of one pass, and what brings each to the next.
std::size_t way_of(Steps path) {
  std::size_t size = 1;
  for (std::size_t i = 1; i < path.size(); ++i) {
    if (!is_op(path[i])) continue;
    const bool is_next = path[i].op_class == path[0].op_class && path[i].micro_batch == path[0].micro_batch &&
                         path[i].rank != path[size - 1].rank;
    if (!is_next) break;
    size = i + 1;
  }
  return size;
}

std::string stay_text(Steps steps) {
  constexpr std::size_t ops_shown = 6;
  std::vector<std::string_view> ops;
  for (const ReportedStep& step : steps) {
    if (is_op(step)) ops.push_back(step.op);
  }
  const auto shown = std::span(ops).first(std::min(ops.size(), ops_shown));
  std::string text = fmt::format("rank {}: {}", steps[0].rank, fmt::join(shown, " "));
  if (ops.size() > ops_shown) text += fmt::format(" … {} ({} ops)", ops.back(), ops.size());
  return text;
}

std::string text_of(Steps steps, bool is_way) {
  switch (steps[0].kind) {
    case PathStep::Kind::transfer:
      return fmt::format("{}, sent by rank {}", steps[0].op, steps[0].rank);
    case PathStep::Kind::launch:
      return fmt::format("rank {} launches {}", steps[0].rank, steps[0].op);
    case PathStep::Kind::op:
      break;
  }
  if (!is_way) return stay_text(steps);
  return fmt::format("{} to {}, from rank {} to rank {}", steps.front().op, steps.back().op, steps.front().rank,
                     steps.back().rank);
}

// "critical path: F 40%, I 50%, transfer 10%".
std::string shares_text(Steps path) {
  std::array<Time, class_names.size() + 2> times{};
  Time all = 0;
  for (const ReportedStep& step : path) {
    const Time time = step.span.end - step.span.start;
    all += time;
    const std::size_t other = class_names.size() + (step.kind == PathStep::Kind::transfer ? 0 : 1);
    times[is_op(step) ? static_cast<std::size_t>(step.op_class) : other] += time;
  }
  std::string text;
  for (std::size_t i = 0; i < times.size(); ++i) {
    if (times[i] == 0) continue;
    const std::string_view what = i < class_names.size()    ? class_names[i]
                                  : i == class_names.size() ? std::string_view("transfer")
                                                            : std::string_view("launch");
    text += fmt::format("{} {} {}", text.empty() ? "" : ",", what,
                        format_rate(static_cast<double>(times[i]) / static_cast<double>(all)));
  }
  return "the critical path:" + text + "\n";
}

}  // namespace

std::string path_text(Steps path) {
  if (path.empty()) return "";
  std::vector<std::string> lines;
  std::vector<std::optional<Time>> begins;
  std::vector<std::optional<Time>> lengths;
  for (std::size_t i = 0; i < path.size();) {
    const Steps rest = path.subspan(i);
    const std::size_t stay = is_op(rest[0]) ? stay_of(rest) : 1;
    const std::size_t way = is_op(rest[0]) ? way_of(rest) : 1;
    const Steps steps = rest.first(std::max(stay, way));
    // What brings the first op is a part of its line's time, where it is no line by itself.
    lines.push_back(text_of(steps, way > stay));
    begins.emplace_back(steps.front().span.start);
    lengths.emplace_back(steps.back().span.end - steps.front().span.start);
    i += steps.size();
  }
  const std::size_t all = lines.size();
  if (all > lines_max) {
    lines.resize(lines_max);
    begins.resize(lines_max);
    lengths.resize(lines_max);
  }
  TextTable table({});
  table.add_column({"from"}, format_times(begins));
  table.add_column({"for"}, format_times(lengths));
  table.add_column({"what runs", Align::left}, lines);
  std::string text = shares_text(path) + table.to_text();
  if (all > lines_max) text += fmt::format("… and {} more lines; --json has every step\n", all - lines_max);
  return text;
}

}  // namespace dualpipe::detail::report
