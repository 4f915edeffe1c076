#include "dualpipe/exec/train/faults.h"

#include <fmt/format.h>

#include <chrono>
#include <string>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {
namespace {

constexpr double factor_max = 1e6;

// "0-1".
LinkDelay link_of(std::string_view text) {
  const std::size_t dash = text.find('-');
  if (dash == text.npos) throw InputError("a link is two ranks, as 0-1");
  LinkDelay link;
  link.from = static_cast<int>(parse_integer(text.substr(0, dash), 0, stage_count_max - 1));
  link.to = static_cast<int>(parse_integer(text.substr(dash + 1), 0, stage_count_max - 1));
  if (link.from == link.to) throw InputError("the ranks of a link are two");
  return link;
}

Op op_of_text(std::string_view text) {
  const Cell cell = parse_cell(text);
  if (cell.second || !is_compute(cell.first.kind)) throw InputError("an op is one F, B, I or W, as 3B7");
  return cell.first;
}

void add_parsed(std::string_view kind, std::string_view which, std::string_view value, Faults& faults,
                TransportOptions& transport) {
  if (kind == "rank") {
    const auto rank = static_cast<int>(parse_integer(which, 0, stage_count_max - 1));
    const double factor = parse_real(value);
    if (!(factor > 0 && factor <= factor_max)) throw InputError("a factor is above 0, and at most a million");
    faults.ranks.push_back({rank, factor});
  } else if (kind == "op") {
    faults.ops.push_back({op_of_text(which), parse_duration(value)});
  } else if (kind == "link") {
    LinkDelay link = link_of(which);
    link.delay = std::chrono::nanoseconds(parse_duration(value));
    transport.slow_links.push_back(link);
  } else {
    throw InputError("a fault is of a rank, an op or a link");
  }
}

void check_rank(int rank, const Placement& placement) {
  if (rank < placement.ranks) return;
  throw InputError(
      fmt::format("there is no rank {} to inject a fault into; the schedule has {}", rank, placement.ranks));
}

}  // namespace

void add_fault(std::string_view text, Faults& faults, TransportOptions& transport) {
  const std::size_t first = text.find(':');
  const std::size_t second = first == text.npos ? first : text.find(':', first + 1);
  try {
    if (second == text.npos) throw InputError("three parts are expected");
    add_parsed(text.substr(0, first), text.substr(first + 1, second - first - 1), text.substr(second + 1), faults,
               transport);
  } catch (const InputError& error) {
    throw InputError(fmt::format("{} is no fault, as rank:2:1.5, op:3B7:8ms or link:0-1:5ms: {}",
                                 detail::schedule::quote(std::string(text)), error.what()));
  }
}

void check(const Faults& faults, const TransportOptions& transport, const Placement& placement) {
  for (const auto& each : faults.ranks) check_rank(each.rank, placement);
  for (const LinkDelay& each : transport.slow_links) {
    check_rank(each.from, placement);
    check_rank(each.to, placement);
  }
  for (const auto& each : faults.ops) {
    if (each.op.stage < placement.stages()) continue;
    throw InputError(fmt::format("there is no op {} to inject a fault into; the schedule has {} stages",
                                 to_text(each.op), placement.stages()));
  }
}

}  // namespace dualpipe
