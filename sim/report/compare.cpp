#include "dualpipe/sim/report/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>
#include <span>
#include <vector>

#include "dualpipe/sim/report/difference_json.h"
#include "dualpipe/sim/report/json_text.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/schedule.h"

namespace dualpipe {
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

}  // namespace

Comparison compare(const NamedRun& planned, const NamedRun& measured) {
  check_ranks(planned, measured);
  Comparison result;
  result.names = {planned.name, measured.name};
  result.ops = {op_count(planned.run), op_count(measured.run)};
  PlannedMeasured<std::vector<RankRun>> common;
  for (std::size_t rank = 0; rank < planned.run.ranks.size(); ++rank) {
    const std::size_t count = common_ops(planned, measured, rank);
    const auto cut = [&](const TraceRank& whole) {
      return RankRun{std::span(whole.ops).first(count), std::span(whole.spans).first(count), whole.peak};
    };
    common.planned.push_back(cut(planned.run.ranks[rank]));
    common.measured.push_back(cut(measured.run.ranks[rank]));
    result.compared += count;
  }
  result.difference = difference({common.planned, common.measured});
  return result;
}

std::string to_text(const Comparison& comparison) {
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
  json.update(detail::report::to_json(comparison.difference));
  out << detail::report::json_text(json);
}

}  // namespace dualpipe
