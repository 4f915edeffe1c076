// What people read of an explanation.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>
#include <string_view>

#include "dualpipe/sim/report/costs_text.h"
#include "dualpipe/sim/report/explain_report.h"
#include "dualpipe/sim/report/path_text.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/units.h"

namespace dualpipe {

using detail::report::class_names;

namespace {

// What is shown of lists that may be long; JSON has all.
constexpr std::size_t ranks_shown_max = 16;
constexpr std::size_t awaited_shown_max = 5;
constexpr std::size_t gains_shown_max = 12;

std::string share(Time part, Time whole) {
  return format_rate(whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole));
}

std::string header(const ExplainReport& report, ByteUnits units) {
  std::string text = title_text(report) + "\n";
  for (const std::string& remark : report.remarks) text += wrapped(printable_lines(remark));
  if (report.costs) text += costs_text(*report.costs, report.has_pairs, units);
  text += "\n";
  const auto append_text = [&](std::string_view term, const std::string& value, const std::string& meaning) {
    const std::string padding(display_width(value) < 10 ? 10 - display_width(value) : 0, ' ');
    text += fmt::format("{:<8}  {}{}   {}\n", term, padding, value, meaning);
  };
  const auto append = [&](std::string_view term, Time time, const std::string& meaning) {
    append_text(term, format_time(time), meaning);
  };
  append("makespan", report.makespan, "first start to last end, over all ranks");
  append("ideal", report.ideal, "no order of the same ops on the same ranks is shorter");
  append("busy", report.busy, "over all ranks");
  append("idle", report.idle,
         fmt::format("{} by makespan (DeepSeek's), {} by span (zero-bubble's)",
                     format_rate(report.bubble_rate_makespan), format_rate(report.bubble_rate_span)));
  if (report.peak_memory > 0) {
    append_text("memory", format_bytes(report.peak_memory, units), "at most, on the rank that needs most");
  }
  if (report.clock_width) append("clocks", *report.clock_width, "by so much those of two ranks may still differ");
  return text;
}

std::string source_text(const CauseReport& cause) {
  if (cause.sources.empty()) return "";
  const CauseSource& most = cause.sources.front();
  const std::string place =
      most.to ? fmt::format("rank {} to {}", most.rank, *most.to) : fmt::format("rank {}", most.rank);
  return fmt::format("{}: {} of it, most in {}", place, share(most.time, cause.time), most.op);
}

std::string causes_text(const ExplainReport& report) {
  if (report.idle == 0) return "no rank is ever idle\n";
  std::vector<std::optional<Time>> times;
  for (const CauseReport& cause : report.causes) times.emplace_back(cause.time);
  const auto time_cells = format_times(times);
  TextTable table({{"idle"}, {"time"}, {"cause", Align::left}, {"most of it by", Align::left}});
  for (std::size_t i = 0; i < report.causes.size(); ++i) {
    const CauseReport& cause = report.causes[i];
    table.add_row({share(cause.time, report.idle), time_cells[i], std::string(name(cause.cause)), source_text(cause)});
  }
  std::string meanwhile;
  for (std::size_t i = 0; i < readiness_names.size(); ++i) {
    if (report.readiness[i] == 0) continue;
    meanwhile += fmt::format("{}{} {}", meanwhile.empty() ? "" : " · ", readiness_names[i],
                             share(report.readiness[i], report.idle));
  }
  return table.to_text() + "meanwhile: " + meanwhile + "\n";
}

// Of many ranks those that idle most.
std::vector<const RankCauses*> shown_ranks(const ExplainReport& report) {
  std::vector<const RankCauses*> shown;
  for (const RankCauses& rank : report.per_rank) shown.push_back(&rank);
  if (shown.size() <= ranks_shown_max) return shown;
  std::ranges::stable_sort(shown, std::ranges::greater{}, [](const RankCauses* each) { return each->idle; });
  shown.resize(ranks_shown_max);
  std::ranges::sort(shown, {}, [](const RankCauses* each) { return each->rank; });
  return shown;
}

// What a run took; of a plan the costs say it.
std::string times_text(const ExplainReport& report) {
  if (report.costs) return "";
  const auto shown = shown_ranks(report);
  TextTable table({});
  std::vector<std::string> ranks;
  for (const RankCauses* rank : shown) ranks.push_back(std::to_string(rank->rank));
  table.add_column({"rank"}, std::move(ranks));
  const auto add = [&](std::string_view header, auto time_of) {
    std::vector<std::optional<Time>> times;
    for (const RankCauses* rank : shown) times.emplace_back(time_of(*rank));
    table.add_column({std::string(header)}, format_times(times));
  };
  for (std::size_t i = 0; i < class_names.size(); ++i) {
    const auto pass = [i](const RankCauses& rank) { return rank.passes[i]; };
    if (std::ranges::any_of(report.per_rank, [&](const RankCauses& rank) { return pass(rank) > 0; })) {
      add(class_names[i], pass);
    }
  }
  add("busy", [](const RankCauses& rank) { return rank.busy; });
  add("idle", [](const RankCauses& rank) { return rank.idle; });
  return table.to_text();
}

std::string ranks_text(const ExplainReport& report, std::size_t width) {
  if (report.idle == 0) return "";
  const auto shown = shown_ranks(report);
  const std::size_t hidden = report.per_rank.size() - shown.size();
  TextTable table({});
  const auto add = [&](Column column, auto cell) {
    std::vector<std::string> cells;
    for (const RankCauses* rank : shown) cells.push_back(cell(*rank));
    table.add_column(std::move(column), std::move(cells));
  };
  add({"rank"}, [](const RankCauses& rank) { return std::to_string(rank.rank); });
  add({"idle"}, [&](const RankCauses& rank) { return share(rank.idle, report.makespan); });
  int column = 0;
  for (const CauseReport& cause : report.causes) {
    add({std::string(name(cause.cause)), Align::right, ++column},
        [&](const RankCauses& rank) { return share(rank.causes.of(cause.cause), report.makespan); });
  }
  std::string text;
  const auto left_out = width > 0 ? table.narrow_to(width) : std::vector<std::string>();
  text += "of each rank's time\n" + table.to_text();
  if (!left_out.empty()) text += wrapped_list(no_room_text(width), left_out);
  if (hidden > 0)
    text += fmt::format("the {} ranks that idle most; --json has all {}\n", shown.size(), shown.size() + hidden);
  return text;
}

std::string awaited_text(const ExplainReport& report) {
  if (report.awaited.empty()) return "";
  const auto shown = std::span(report.awaited).first(std::min(report.awaited.size(), awaited_shown_max));
  std::vector<std::optional<Time>> idle;
  std::vector<std::optional<Time>> excess;
  for (const AwaitedOp& each : shown) {
    idle.emplace_back(each.idle);
    excess.push_back(each.excess > 0 ? std::optional(each.excess) : std::nullopt);
  }
  TextTable table({{"waited for", Align::left}, {"on rank"}});
  for (const AwaitedOp& each : shown) table.add_row({each.op, std::to_string(each.rank)});
  table.add_column({"idle meanwhile"}, format_times(idle));
  const bool any_late = std::ranges::any_of(excess, [](const auto& each) { return each.has_value(); });
  if (any_late) table.add_column({"above its stage's median"}, format_times(excess));
  return table.to_text();
}

// The gains, and the slower rank that costs most.
std::string what_if_text(const ExplainReport& report) {
  std::vector<const WhatIf*> shown;
  for (const WhatIf& each : report.what_if) {
    if (each.gain > 0 && shown.size() < gains_shown_max) shown.push_back(&each);
  }
  const auto is_slower = [](const WhatIf& each) { return each.change.ends_with("% slower"); };
  const WhatIf* worst = nullptr;
  for (const WhatIf& each : report.what_if) {
    if (is_slower(each) && (worst == nullptr || each.gain < worst->gain)) worst = &each;
  }
  if (worst != nullptr) shown.push_back(worst);
  if (shown.empty()) return "";
  std::vector<std::optional<Time>> times;
  for (const WhatIf* each : shown) times.emplace_back(each->makespan);
  const auto time_cells = format_times(times);
  TextTable table({{"what if", Align::left}, {"makespan"}, {"gain"}});
  for (std::size_t i = 0; i < shown.size(); ++i) {
    table.add_row({shown[i]->change, time_cells[i], format_rate(shown[i]->gain)});
  }
  const std::size_t hidden = report.what_if.size() - shown.size();
  return table.to_text() + (hidden > 0 ? fmt::format("{} more, of less gain or none, in --json\n", hidden) : "");
}

}  // namespace

std::string to_text(const ExplainReport& report, const TextLayout& layout) {
  std::string text = header(report, layout.bytes);
  for (const std::string& part : {causes_text(report), times_text(report), ranks_text(report, layout.width),
                                  detail::report::path_text(report.path), awaited_text(report), what_if_text(report)}) {
    if (!part.empty()) text += "\n" + part;
  }
  return text;
}

}  // namespace dualpipe
