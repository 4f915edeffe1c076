#include "dualpipe/sim/report/gantt_svg_frame.h"

#include <fmt/format.h>

#include <algorithm>

#include "dualpipe/sim/schedule/flow.h"

namespace dualpipe::detail::report {
namespace {

// Bytes of what is drawn of an op and its message, roughly; and what all of that may come to.
constexpr std::size_t box_size = 200;
constexpr std::size_t pair_box_size = 400;
constexpr std::size_t stripe_size = 13;
constexpr std::size_t drawing_size_max = 650'000;
constexpr int file_size_max = 900'000;
constexpr std::size_t segment_size = 230;        // of idle time with its tooltip
constexpr std::size_t explained_size = 250'000;  // that causes and the critical path may take
constexpr int rank_size = 450;                   // of all else that each rank has

constexpr int op_width_min = 2;  // pixels, on average; narrower ones make bands
constexpr int plot_width_min = 640;
constexpr int plot_width_max = 2400;
constexpr int unit_width = 20;  // of the shortest op, where there is room: two digits
constexpr int shades_max = 6;   // of a colour

}  // namespace

Frame::Frame(const Program& drawn, const Costs& its_costs, const Timeline& run, const SvgOptions& asked)
    : program(drawn),
      costs(its_costs),
      timeline(run),
      options(asked),
      chart(drawn, run, asked.window, asked.explanation),
      shade_of(chunk_of_stages(drawn.schedule.placement)) {
  check(costs, placement());
  choose_shades();
  std::size_t text = 0;
  for (int rank = 0; rank < ranks(); ++rank) text = std::max(text, rank_text(rank).size());
  left = margin + 14 + 7 * static_cast<int>(text);
  plot_width = options.width == 0 ? natural_plot_width() : std::max(options.width - left - right, 100);
  choose_detail();
  choose_sizes();
}

// Several chunks share a shade where there are more than can be told apart.
void Frame::choose_shades() {
  const int most = shade_of.empty() ? 1 : *std::max_element(shade_of.begin(), shade_of.end()) + 1;
  shades = std::min(most, shades_max);
  for (int& shade : shade_of) shade = most == 1 ? 0 : shade * (shades - 1) / (most - 1);
}

int Frame::natural_plot_width() const {
  Time shortest = length();
  for (const auto& row : chart.units) {
    for (const Unit& unit : row) {
      if (unit.duration() > 0) shortest = std::min(shortest, unit.duration());
    }
  }
  const Time wanted = std::min<Time>(length() / shortest, plot_width_max) * unit_width;
  return static_cast<int>(std::clamp<Time>(wanted, plot_width_min, plot_width_max));
}

void Frame::choose_detail() {
  std::size_t units = 0;
  std::size_t size = 0;
  std::int64_t widths = 0;  // hundredths of a pixel
  for (const auto& row : chart.units) {
    for (const Unit& unit : row) {
      const Span shown = chart.shown(unit);
      ++units;
      size += unit.is_pair() ? pair_box_size : box_size;
      widths += x(shown.end) - x(shown.start);
    }
  }
  for (const auto& row : chart.idle) size += row.size() * segment_size;
  const std::size_t size_max = drawing_size_max - (is_explained() ? explained_size : 0);
  if (widths < static_cast<std::int64_t>(units) * op_width_min * 100) {
    detail = chart.length() == 0 ? Detail::boxes : Detail::bands;
  } else if (size > size_max) {
    detail = units * stripe_size > size_max ? Detail::bands : Detail::stripes;
  }
}

void Frame::choose_sizes() {
  const bool has_spans = timeline.communication.size() == program.communication.size();
  for (std::size_t i = 0; has_spans && i < program.communication.size(); ++i) {
    const Span span = timeline.communication[i];
    if (is_send(program.communication[i].kind) && span.end > span.start) has_messages = detail == Detail::boxes;
  }
  row_height = ranks() <= 32 ? 28 : ranks() <= 128 ? 14 : 6;
  int gap = ranks() <= 32 ? 4 : ranks() <= 128 ? 2 : 1;
  if (has_messages) gap *= 3;
  if (options.memory) strip_height = std::max(row_height / 2, 6);
  if (options.memory) gap += 2;
  row_pitch = row_height + (strip_height > 0 ? strip_height + 2 : 0) + gap;
}

int Frame::size_max() const {
  const int explained = is_explained() ? static_cast<int>(explained_size) : 0;
  return std::max(file_size_max - explained - rank_size * ranks(), file_size_max / 10);
}

bool Frame::has_own_speed(int rank) const {
  if (costs.speed.empty() || costs.speed[static_cast<std::size_t>(rank)] == 1) return false;
  return std::ranges::any_of(costs.speed, [&](double speed) { return speed != costs.speed.front(); });
}

std::string Frame::rank_text(int rank) const {
  if (!has_own_speed(rank)) return fmt::format("rank {}", rank);
  return fmt::format("rank {}, speed {:.3g}", rank, costs.speed[static_cast<std::size_t>(rank)]);
}

std::string fill_class(std::size_t class_of_unit, int shade) {
  const bool is_pair = class_of_unit + 1 == class_names.size();
  return is_pair ? "P" : fmt::format("{}{}", class_names[class_of_unit], shade);
}

std::string fill_class(const Frame& frame, const Unit& unit) {
  return fill_class(class_of(unit), frame.shade_of[unit.ops[0].stage]);
}

}  // namespace dualpipe::detail::report
