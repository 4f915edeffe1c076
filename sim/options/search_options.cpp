#include "dualpipe/sim/options/search_options.h"

#include <limits>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/schedule/op.h"

namespace dualpipe {
namespace {

constexpr SearchPlacement all_placements[] = {SearchPlacement::linear, SearchPlacement::v, SearchPlacement::interleaved,
                                              SearchPlacement::two_way, SearchPlacement::any};

std::int64_t count(std::string_view option, const std::string& text, std::int64_t least, std::int64_t most) {
  return value_of(option, text, [&](std::string_view number) { return parse_integer(number, least, most); });
}

}  // namespace

SearchRequest SearchOptions::request() const {
  constexpr auto any = std::numeric_limits<std::int64_t>::max();
  SearchRequest request;
  if (ranks.empty()) throw InputError("--ranks is missing: how many ranks there are");
  if (micro_batches.empty()) throw InputError("--microbatches is missing: how many micro-batches a step has");
  request.ranks = static_cast<int>(count("--ranks", ranks, 1, stage_count_max / 2));
  request.micro_batches = count("--microbatches", micro_batches, 1, micro_batch_count_max);
  if (3 * std::int64_t{2} * request.ranks * request.micro_batches >= std::int64_t{1} << 31U) {
    throw InputError("--microbatches: a schedule that is searched for has fewer than 2 billion ops; use fewer");
  }
  check_choice("--placement", placement, search_placements());
  for (const SearchPlacement each : all_placements) {
    if (name(each) == placement) request.placement = each;
  }
  check_choice("--objective", objective, search_objectives());
  request.objective = objective == "span" ? SearchObjective::span : SearchObjective::makespan;
  request.costs = costs.costs();
  if (!memory_limit.empty()) request.memory_limit = value_of("--memory-limit", memory_limit, parse_memory_limit);
  if (!budget.empty()) request.evaluations = count("--budget", budget, 0, any);
  if (!seed.empty()) request.seed = static_cast<std::uint64_t>(count("--seed", seed, 0, any));
  if (!threads.empty()) request.threads = static_cast<unsigned>(count("--threads", threads, 1, 4096));
  const bool can_pair = request.placement != SearchPlacement::linear;
  costs.check_used({.pairs = can_pair, .weight_gradients = true, .reduces = can_pair}, request.costs);
  return request;
}

double SearchOptions::seconds() const {
  if (time_limit.empty()) return 0;
  return static_cast<double>(value_of("--time-limit", time_limit, parse_duration)) / 1e9;
}

std::vector<std::string> search_placements() {
  std::vector<std::string> names;
  for (const SearchPlacement each : all_placements) names.emplace_back(name(each));
  return names;
}

std::vector<std::string> search_objectives() { return {"makespan", "span"}; }

}  // namespace dualpipe
