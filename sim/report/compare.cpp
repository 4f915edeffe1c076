#include "dualpipe/sim/report/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <ostream>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "dualpipe/sim/report/difference_json.h"
#include "dualpipe/sim/report/json_text.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/report/units.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/schedule.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "dualpipe/sim/trace/measured_run.h"

namespace dualpipe {

using detail::report::class_names;
using detail::report::class_of;
using detail::report::Unit;
using detail::report::units_of;

namespace {

std::size_t op_count(const TraceRun& run) {
  std::size_t count = 0;
  for (const TraceRank& rank : run.ranks) count += rank.ops.size();
  return count;
}

void check_ranks(const NamedRun& planned, const NamedRun& measured) {
  const auto ranks = [](const NamedRun& each) { return format_count(each.run.ranks.size(), "rank"); };
  if (planned.run.ranks.size() == measured.run.ranks.size()) return;
  throw InputError(fmt::format("{} has {}, {} has {}: only two runs of one schedule can be compared", planned.name,
                               ranks(planned), measured.name, ranks(measured)));
}

// Whether a rank of the run has a cell anywhere.
bool runs(const TraceRank& rank, std::span<const Op> cell) {
  return std::search(rank.ops.begin(), rank.ops.end(), cell.begin(), cell.end()) != rank.ops.end();
}

// The runs part at op `at` of a rank.
[[noreturn]] void fail_at(const NamedRun& planned, const NamedRun& measured, std::size_t rank, std::size_t at) {
  const auto cell = [&](const NamedRun& each) {
    const auto rest = std::span(each.run.ranks[rank].ops).subspan(at);
    return rest.first(unit_size(rest));
  };
  const auto here = [&](const NamedRun& each) {
    return fmt::format("rank {} runs {} as its op {} in {}", rank, cell_text(cell(each)), at, each.name);
  };
  std::string only;
  for (const auto& [one, other] : {std::pair{&planned, &measured}, std::pair{&measured, &planned}}) {
    if (runs(other->run.ranks[rank], cell(*one))) continue;
    only += fmt::format("; {} is in {} alone", cell_text(cell(*one)), one->name);
  }
  throw InputError(fmt::format("two schedules, where only two runs of one can be compared: {}, {}{}", here(planned),
                               here(measured), only));
}

// How many ops of a rank both ran: all, or those up to where one run ended. A pair is never cut in two.
std::size_t common_ops(const NamedRun& planned, const NamedRun& measured, std::size_t rank) {
  const auto& plan = planned.run.ranks[rank].ops;
  const auto& real = measured.run.ranks[rank].ops;
  const auto at = static_cast<std::size_t>(std::ranges::mismatch(plan, real).in1 - plan.begin());
  if (at < std::min(plan.size(), real.size())) {
    const bool inside_pair = at > 0 && plan[at - 1].with_next;
    fail_at(planned, measured, rank, inside_pair ? at - 1 : at);
  }
  return at;
}

std::string ended_early(const std::string& name, std::size_t ops, std::size_t compared) {
  if (ops == compared) return "";
  return fmt::format("{} has {} that the other run did not come to; times are of the {} before them, peaks of all\n",
                     name, format_count(ops - compared, "op"), compared);
}

// By stage, the rank that runs it.
std::map<int, std::size_t> ranks_of_stages(const TraceRun& run) {
  std::map<int, std::size_t> ranks;
  for (std::size_t rank = 0; rank < run.ranks.size(); ++rank) {
    for (const Op op : run.ranks[rank].ops) ranks.emplace(op.stage, rank);
  }
  return ranks;
}

// Of each rank's idle time; nothing where what ran is no whole step.
std::vector<std::optional<Causes>> causes_of(const NamedRun& named) {
  try {
    const MeasuredRun run = measured_run(named.run, named.name, named.program);
    const auto causes = causes_by_rank(explain_measured(run.program, run.timeline), run.program.schedule.ranks());
    return {causes.begin(), causes.end()};
  } catch (const InputError&) {
    return std::vector<std::optional<Causes>>(named.run.ranks.size());
  }
}

using CellKey = std::pair<Op, Op>;  // the ops of a pair, or an op twice

// The cells of a rank of `run` that the same rank of `other` does not run. Returns how many ops both run.
std::size_t add_only(std::vector<OnlyCells>& only, const TraceRank& run, const TraceRank& other) {
  const auto key = [](const Unit& unit) { return CellKey(unit.ops.front(), unit.ops.back()); };
  std::set<CellKey> others;
  for (const Unit& unit : units_of(other.ops, other.spans)) others.insert(key(unit));
  std::size_t in_both = 0;
  for (const Unit& unit : units_of(run.ops, run.spans)) {
    if (others.contains(key(unit))) {
      in_both += unit.ops.size();
      continue;
    }
    const std::string_view op_class = class_names[class_of(unit)];
    auto found = std::ranges::find(only, op_class, &OnlyCells::op_class);
    if (found == only.end()) found = only.insert(found, {std::string(op_class), 0, cell_text(unit.ops)});
    ++found->count;
  }
  return in_both;
}

std::string only_text(const std::string& label, std::span<const OnlyCells> only) {
  std::string text;
  for (const OnlyCells& each : only) {
    text += fmt::format("{}{} {} ({}{})", text.empty() ? "" : ", ", each.count, each.op_class, each.first,
                        each.count > 1 ? ", …" : "");
  }
  return text.empty() ? text : fmt::format("only in {}: {}\n", printable(label), text);
}

std::string schedules_text(const Comparison& comparison) {
  const auto& [first, second] = comparison.labels;
  if (comparison.stages != PlannedMeasured<std::size_t>{}) {
    return fmt::format("{} has {}, {} {}, and not on the same ranks: their ops are not compared one by one\n",
                       printable(first), format_count(comparison.stages.planned, "stage"), printable(second),
                       comparison.stages.measured);
  }
  return only_text(first, comparison.only.planned) + only_text(second, comparison.only.measured);
}

nlohmann::ordered_json to_json(std::span<const OnlyCells> only) {
  auto json = nlohmann::ordered_json::array();
  for (const OnlyCells& each : only) {
    json.push_back(nlohmann::ordered_json{{"class", each.op_class}, {"count", each.count}, {"first", each.first}});
  }
  return json;
}

}  // namespace

NamedRun run_of(std::string name, const Program& program, const Timeline& timeline, std::span<const RankPeak> peaks) {
  NamedRun run{std::move(name), {}, program};
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const auto i = static_cast<std::size_t>(rank);
    const auto ops = program.schedule.rank(rank);
    const auto spans = std::span(timeline.ops).subspan(program.schedule.rank_begin[i], ops.size());
    run.run.ranks.push_back({{ops.begin(), ops.end()}, {spans.begin(), spans.end()}, peaks[i]});
  }
  return run;
}

NamedRun simulated(std::string name, const Program& program, const Costs& costs) {
  std::vector<RankPeak> peaks;
  for (const RankMemory& memory : memory_of_ranks(program, costs)) {
    peaks.push_back({memory.peak_activations, memory.peak});
  }
  return run_of(std::move(name), program, simulate(program, costs), peaks);
}

Comparison compare_schedules(const NamedRun& first, const NamedRun& second,
                             const PlannedMeasured<std::string>& labels) {
  if (first.run.ranks.size() != second.run.ranks.size()) {
    throw InputError(fmt::format("{} has {}, {} {}: only what runs on the same ranks can be compared", first.name,
                                 format_count(first.run.ranks.size(), "rank"), second.name, second.run.ranks.size()));
  }
  Comparison result;
  result.names = {first.name, second.name};
  result.labels = labels;
  result.is_of_one_schedule = false;
  result.ops = {op_count(first.run), op_count(second.run)};
  const auto stages_of_first = ranks_of_stages(first.run);
  const auto stages_of_second = ranks_of_stages(second.run);
  const bool has_same_stages = stages_of_first == stages_of_second;
  if (!has_same_stages) result.stages = {stages_of_first.size(), stages_of_second.size()};
  const PlannedMeasured<std::vector<std::optional<Causes>>> causes{causes_of(first), causes_of(second)};
  PlannedMeasured<std::vector<RankRun>> ranks;
  for (std::size_t rank = 0; rank < first.run.ranks.size(); ++rank) {
    const TraceRank& a = first.run.ranks[rank];
    const TraceRank& b = second.run.ranks[rank];
    ranks.planned.push_back({a.ops, a.spans, a.peak, causes.planned[rank]});
    ranks.measured.push_back({b.ops, b.spans, b.peak, causes.measured[rank]});
    if (!has_same_stages) continue;
    result.compared += add_only(result.only.planned, a, b);
    static_cast<void>(add_only(result.only.measured, b, a));
  }
  result.difference = difference({ranks.planned, ranks.measured}, has_same_stages);
  return result;
}

Comparison compare(const NamedRun& planned, const NamedRun& measured) {
  check_ranks(planned, measured);
  Comparison result;
  result.names = {planned.name, measured.name};
  result.labels = {"planned", "measured"};
  result.ops = {op_count(planned.run), op_count(measured.run)};
  PlannedMeasured<std::vector<RankRun>> common;
  for (std::size_t rank = 0; rank < planned.run.ranks.size(); ++rank) {
    const std::size_t count = common_ops(planned, measured, rank);
    const auto cut = [&](const TraceRank& whole) {
      return RankRun{std::span(whole.ops).first(count), std::span(whole.spans).first(count), whole.peak, {}};
    };
    common.planned.push_back(cut(planned.run.ranks[rank]));
    common.measured.push_back(cut(measured.run.ranks[rank]));
    result.compared += count;
  }
  if (result.ops == PlannedMeasured<std::size_t>{result.compared, result.compared}) {
    const PlannedMeasured<std::vector<std::optional<Causes>>> causes{causes_of(planned), causes_of(measured)};
    for (std::size_t rank = 0; rank < common.planned.size(); ++rank) {
      common.planned[rank].causes = causes.planned[rank];
      common.measured[rank].causes = causes.measured[rank];
    }
  }
  result.difference = difference({common.planned, common.measured});
  return result;
}

Comparison compare_plan(const NamedRun& planned, const NamedRun& measured) {
  const bool is_of_one_schedule =
      std::ranges::equal(planned.run.ranks, measured.run.ranks, {}, &TraceRank::ops, &TraceRank::ops);
  if (is_of_one_schedule) return compare(planned, measured);
  return compare_schedules(planned, measured, {"planned", "measured"});
}

std::string to_text(const Comparison& comparison) {
  if (!comparison.is_of_one_schedule) {
    const auto& [first, second] = comparison.names;
    return fmt::format("A  {}\nB  {}\n{}\n", printable(first), printable(second), schedules_text(comparison)) +
           to_text(comparison.difference, comparison.labels);
  }
  std::string text = fmt::format("planned   {}\nmeasured  {}\n", printable(comparison.names.planned),
                                 printable(comparison.names.measured));
  text += ended_early("planned", comparison.ops.planned, comparison.compared);
  text += ended_early("measured", comparison.ops.measured, comparison.compared);
  return text + "\n" + to_text(comparison.difference);
}

void write_json(std::ostream& out, const Comparison& comparison) {
  using Json = nlohmann::ordered_json;
  Json json;
  json["planned"] = comparison.names.planned;
  json["measured"] = comparison.names.measured;
  json["planned_ops"] = comparison.ops.planned;
  json["measured_ops"] = comparison.ops.measured;
  json["compared_ops"] = comparison.compared;
  json["only_in_planned"] = to_json(comparison.only.planned);
  json["only_in_measured"] = to_json(comparison.only.measured);
  json.update(detail::report::to_json(comparison.difference));
  out << detail::report::json_text(json);
}

}  // namespace dualpipe
