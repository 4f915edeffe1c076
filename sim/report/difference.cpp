#include "dualpipe/sim/report/difference.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdlib>
#include <map>
#include <optional>
#include <ostream>
#include <string_view>
#include <utility>

#include "dualpipe/sim/report/difference_json.h"
#include "dualpipe/sim/report/json_text.h"
#include "dualpipe/sim/report/percentile.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/report/units.h"

namespace dualpipe {

using detail::report::class_names;
using detail::report::class_of;
using detail::report::median;
using detail::report::percentile;
using detail::report::Unit;
using detail::report::units_of;

namespace {

// From the first start to the last end.
Span bounds_of(std::span<const RankRun> run) {
  std::optional<Span> bounds;
  for (const RankRun& rank : run) {
    for (const Span& span : rank.spans) {
      if (!bounds) bounds = span;
      *bounds = {std::min(bounds->start, span.start), std::max(bounds->end, span.end)};
    }
  }
  return bounds.value_or(Span{});
}

Time busy(std::span<const Unit> units) {
  Time total = 0;
  for (const Unit& unit : units) total += unit.duration();
  return total;
}

// The starts of some ops, and what is known of them when all are there.
class Starts {
 public:
  void add(Time off, std::span<const Op> ops, int rank) {
    off_.push_back(off);
    if (!worst_.empty() && off <= largest_) return;
    largest_ = off;
    worst_ = ops;
    rank_ = rank;
  }

  [[nodiscard]] std::size_t count() const { return off_.size(); }

  [[nodiscard]] StartError error() && {
    if (off_.empty()) return {};
    return {median(off_), percentile(off_, 95), largest_, cell_text(worst_), rank_};
  }

 private:
  std::vector<Time> off_;
  Time largest_ = 0;
  std::span<const Op> worst_;
  int rank_ = 0;
};

std::optional<Time> median_of(const std::vector<Time>& durations) {
  return durations.empty() ? std::nullopt : std::optional(median(durations));
}

// Calls `visit` with the units of a rank that two runs have in common: one by one, where they are of one schedule.
template <typename Visit>
void for_each_in_both(std::span<const Unit> plan, std::span<const Unit> real, bool has_same_stages, Visit visit) {
  const auto is_same = [](const Unit& a, const Unit& b) { return std::ranges::equal(a.ops, b.ops); };
  if (std::ranges::equal(plan, real, is_same)) {
    for (std::size_t i = 0; i < plan.size(); ++i) visit(plan[i], real[i]);
    return;
  }
  if (!has_same_stages) return;
  const auto key = [](const Unit& unit) { return std::pair(unit.ops.front(), unit.ops.back()); };
  std::map<std::pair<Op, Op>, const Unit*> by_ops;
  for (const Unit& unit : real) by_ops.emplace(key(unit), &unit);
  for (const Unit& unit : plan) {
    if (const auto found = by_ops.find(key(unit)); found != by_ops.end()) visit(unit, *found->second);
  }
}

struct OfClass {
  PlannedMeasured<std::vector<Time>> durations;
  Starts starts;
};

// Takes the runs rank by rank.
class DifferenceBuilder {
 public:
  explicit DifferenceBuilder(const PlannedMeasured<std::span<const RankRun>>& runs)
      : bounds_{bounds_of(runs.planned), bounds_of(runs.measured)} {
    const auto length = [](Span bounds) { return bounds.end - bounds.start; };
    result_.makespan = {length(bounds_.planned), length(bounds_.measured)};
  }

  void add(const RankRun& planned, const RankRun& measured, bool has_same_stages) {
    const int rank = static_cast<int>(result_.per_rank.size());
    const auto plan = units_of(planned.ops, planned.spans);
    const auto real = units_of(measured.ops, measured.spans);
    for (const Unit& unit : plan) classes_[class_of(unit)].durations.planned.push_back(unit.duration());
    for (const Unit& unit : real) classes_[class_of(unit)].durations.measured.push_back(unit.duration());
    Starts starts;
    for_each_in_both(plan, real, has_same_stages, [&](const Unit& of_plan, const Unit& of_real) {
      const Time off = start_error(of_plan.span, of_real.span);
      OfClass& of_class = classes_[class_of(of_plan)];
      for (Starts* each : {&starts, &of_class.starts, &starts_}) each->add(off, of_plan.ops, rank);
    });
    const PlannedMeasured<Time> work{busy(plan), busy(real)};
    result_.per_rank.push_back({rank,
                                work,
                                {result_.makespan.planned - work.planned, result_.makespan.measured - work.measured},
                                {planned.causes, measured.causes},
                                {planned.peak, measured.peak},
                                std::move(starts).error()});
  }

  [[nodiscard]] Difference result() && {
    for (std::size_t i = 0; i < class_names.size(); ++i) {
      const auto& [planned, measured] = classes_[i].durations;
      if (planned.empty() && measured.empty()) continue;
      result_.classes.push_back({std::string(class_names[i]),
                                 classes_[i].starts.count(),
                                 {median_of(planned), median_of(measured)},
                                 std::move(classes_[i].starts).error()});
    }
    result_.starts = std::move(starts_).error();
    add_causes();
    return std::move(result_);
  }

 private:
  void add_causes() {
    PlannedMeasured<Causes> all;
    for (const RankDifference& rank : result_.per_rank) {
      if (!rank.causes.planned || !rank.causes.measured) return;
      all.planned += *rank.causes.planned;
      all.measured += *rank.causes.measured;
    }
    for (std::size_t i = 0; i < cause_names.size(); ++i) {
      const CauseDifference each{static_cast<Cause>(i), {all.planned.time[i], all.measured.time[i]}};
      if (each.idle != PlannedMeasured<Time>{}) result_.causes.push_back(each);
    }
    std::ranges::stable_sort(result_.causes, std::ranges::greater{}, &CauseDifference::more);
  }

  [[nodiscard]] Time start_error(Span planned, Span measured) const {
    return std::abs((measured.start - bounds_.measured.start) - (planned.start - bounds_.planned.start));
  }

  PlannedMeasured<Span> bounds_;
  std::array<OfClass, class_names.size()> classes_;
  Starts starts_;
  Difference result_;
};

std::string ratio_text(const PlannedMeasured<std::optional<Time>>& times) {
  if (times.planned.value_or(0) == 0 || !times.measured) return "";
  return format_rate(static_cast<double>(*times.measured) / static_cast<double>(*times.planned));
}

std::string bubble_text(Time makespan, std::span<const RankDifference> ranks, Time PlannedMeasured<Time>::*run) {
  if (makespan == 0) return "";
  double idle = 0;
  for (const RankDifference& rank : ranks) idle += static_cast<double>(rank.idle.*run);
  return format_rate(idle / (static_cast<double>(makespan) * static_cast<double>(ranks.size())));
}

std::string whole_text(const Difference& difference, const PlannedMeasured<std::string>& labels) {
  TextTable table({{"", Align::left},
                   {labels.planned},
                   {labels.measured},
                   {fmt::format("{} / {}", labels.measured, labels.planned)},
                   {"", Align::left}});
  const auto text = [](std::optional<Time> time) { return time ? format_time(*time) : "-"; };
  const auto add = [&](const std::string& what, const PlannedMeasured<std::optional<Time>>& times,
                       const std::string& remark) {
    table.add_row({what, text(times.planned), text(times.measured), ratio_text(times), remark});
  };
  add("makespan", {difference.makespan.planned, difference.makespan.measured}, "");
  table.add_row(
      {"bubble", bubble_text(difference.makespan.planned, difference.per_rank, &PlannedMeasured<Time>::planned),
       bubble_text(difference.makespan.measured, difference.per_rank, &PlannedMeasured<Time>::measured), "", ""});
  for (const ClassDifference& each : difference.classes) {
    add(each.op_class, each.median, each.count > 0 ? fmt::format("median of {}", each.count) : "median");
  }
  return table.to_text();
}

// Where all time went, and where what the one run took more; empty where causes are not known.
std::string causes_text(const Difference& difference, const PlannedMeasured<std::string>& labels) {
  if (difference.causes.empty()) return "";
  PlannedMeasured<Time> busy;
  for (const RankDifference& rank : difference.per_rank) {
    busy.planned += rank.busy.planned;
    busy.measured += rank.busy.measured;
  }
  TextTable table({{"all ranks' time", Align::left}, {labels.planned}, {labels.measured}, {"more"}});
  const auto add = [&](std::string_view what, const PlannedMeasured<Time>& time) {
    table.add_row({std::string(what), format_time(time.planned), format_time(time.measured),
                   format_time(time.measured - time.planned)});
  };
  add("busy", busy);
  for (const CauseDifference& each : difference.causes) add(name(each.cause), each.idle);
  const bool has_transfer =
      std::ranges::find(difference.causes, Cause::transfer, &CauseDifference::cause) != difference.causes.end();
  return table.to_text() +
         (has_transfer ? "transfer: up to the start of the op that waited for the message\n\n" : "\n");
}

// Empty where nothing that both ran was compared.
std::string starts_text(const Difference& difference) {
  if (difference.starts.op.empty()) return "";
  TextTable table({{"starts off by", Align::left}, {"median"}, {"95%"}, {"at most"}, {"", Align::left}});
  const auto add = [&](const std::string& what, const StartError& starts, const std::string& where) {
    if (starts.op.empty()) return;
    table.add_row({what, format_time(starts.median), format_time(starts.percentile95), format_time(starts.largest),
                   starts.op + where});
  };
  const auto of_rank = [](const StartError& starts) { return fmt::format(" of rank {}", starts.rank); };
  add("all", difference.starts, of_rank(difference.starts));
  for (const ClassDifference& each : difference.classes) add(each.op_class, each.starts, of_rank(each.starts));
  for (const RankDifference& each : difference.per_rank) add(fmt::format("rank {}", each.rank), each.starts, "");
  return table.to_text() + "\n";
}

std::string ranks_text(const Difference& difference, const PlannedMeasured<std::string>& labels) {
  std::vector<Column> columns{{"rank"}};
  for (const std::string_view what : {"busy", "idle", "peak act.", "peak memory"}) {
    columns.push_back({fmt::format("{} {}", what, labels.planned)});
    columns.push_back({labels.measured});
  }
  TextTable table(std::move(columns));
  for (const RankDifference& rank : difference.per_rank) {
    table.add_row({std::to_string(rank.rank), format_time(rank.busy.planned), format_time(rank.busy.measured),
                   format_time(rank.idle.planned), format_time(rank.idle.measured),
                   std::to_string(rank.peak.planned.activations), std::to_string(rank.peak.measured.activations),
                   format_bytes(rank.peak.planned.memory), format_bytes(rank.peak.measured.memory)});
  }
  return table.to_text();
}

}  // namespace

Difference difference(const PlannedMeasured<std::span<const RankRun>>& runs, bool has_same_stages) {
  assert(runs.planned.size() == runs.measured.size());
  DifferenceBuilder builder(runs);
  for (std::size_t rank = 0; rank < runs.planned.size(); ++rank) {
    builder.add(runs.planned[rank], runs.measured[rank], has_same_stages);
  }
  return std::move(builder).result();
}

std::optional<Overlap> overlap_of(const Difference& difference) {
  const auto median_of = [&](std::string_view op_class) -> Time {
    const auto found = std::ranges::find(difference.classes, op_class, &ClassDifference::op_class);
    return found == difference.classes.end() ? 0 : found->median.measured.value_or(0);
  };
  const Overlap overlap = {median_of("F"), median_of("B"), median_of("F&B")};
  if (overlap.forward == 0 || overlap.backward == 0 || overlap.pair == 0) return std::nullopt;
  return overlap;
}

std::string to_text(const Difference& difference, const PlannedMeasured<std::string>& labels) {
  return whole_text(difference, labels) + "\n" + causes_text(difference, labels) + starts_text(difference) +
         ranks_text(difference, labels);
}

void write_json(std::ostream& out, const Difference& difference) {
  out << detail::report::json_text(detail::report::to_json(difference));
}

}  // namespace dualpipe
