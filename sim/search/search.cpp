#include "dualpipe/sim/search/search.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <limits>
#include <thread>
#include <utility>

#include "dualpipe/sim/evaluate/in_order.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/search/placement_search.h"
#include "dualpipe/sim/simulate/memory_limit.h"

namespace dualpipe {
namespace {

using detail::search::Found;
using detail::search::PlacementSearch;
using detail::search::Real;

constexpr int chunks = 2;  // of interleaved

constexpr std::array placements{SearchPlacement::linear, SearchPlacement::v, SearchPlacement::interleaved,
                                SearchPlacement::two_way};

Placement placement_of(SearchPlacement placement, int ranks) {
  switch (placement) {
    case SearchPlacement::v:
      return v_shape(ranks);
    case SearchPlacement::interleaved:
      return straight(ranks, chunks);
    case SearchPlacement::two_way:
      return two_way(ranks);
    default:
      return straight(ranks, 1);
  }
}

// A rank's share of the model is a micro-batch's activation: of each of several chains a rank holds a whole share,
// where MemoryLimit counts as many stages as make one.
std::optional<MemoryLimit> limit_on(const Placement& placement, const SearchRequest& request) {
  std::optional<MemoryLimit> limit = request.memory_limit;
  if (limit && limit->unit == MemoryLimit::Unit::micro_batches) limit->amount /= placement.chains();
  return limit;
}

// One of the catalog, or why it is not.
struct Row {
  SearchRow row;
  Schedule schedule;
  Real real;
  std::string reason;
};

Row row_of(const Family& family, const SearchRequest& request, const ModelCosts& costs) {
  Row row;
  row.row.schedule = family.name;
  Request asked{.family = std::string(family.name), .costs = costs, .memory_limit = request.memory_limit};
  Shape shape;
  shape.ranks = request.ranks;
  shape.micro_batches = request.micro_batches;
  if (family.takes_chunks) shape.chunks = chunks;
  asked.shape = as_taken_by(family, shape);
  std::optional<MemoryLimit> limit;
  try {
    try {
      row.schedule = generate(asked);
    } catch (const MemoryLimitError& error) {
      asked.memory_limit = error.least();
      row.schedule = generate(asked);
    }
    limit = limit_on(row.schedule.placement, request);
    row.real = detail::search::real_of(row.schedule, stage_costs(costs, row.schedule.placement), limit);
  } catch (const ShapeError& error) {
    row.reason = error.what();
    return row;
  }
  row.row.makespan = row.real.makespan;
  row.row.span = row.real.span;
  row.row.peak_memory = row.real.peak;
  row.row.fits = row.real.keeps(limit);
  return row;
}

std::vector<Row> rows_of(const SearchRequest& request, const ModelCosts& costs) {
  std::vector<Row> rows;
  std::vector<std::exception_ptr> errors(catalog().size());
  const auto make = [&](std::size_t i) {
    try {
      return row_of(catalog()[i], request, costs);
    } catch (...) {
      errors[i] = std::current_exception();
      return Row{};
    }
  };
  detail::evaluate::in_order<Row>(catalog().size(), request.threads, make,
                                  [&](std::size_t, Row row) { rows.push_back(std::move(row)); });
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return rows;
}

class Search {
 public:
  Search(const SearchRequest& request, const SearchHooks& hooks)
      : request_(request), hooks_(hooks), costs_(of_model(request.costs, request.ranks)) {
    check_request();
    rows_ = rows_of(request, costs_);
    for (const SearchPlacement each : placements) {
      if (request.placement == SearchPlacement::any || request.placement == each) add(each);
    }
  }

  SearchResult run() {
    const std::int64_t budget = request_.evaluations.value_or(default_budget());
    if (best_field() && hooks_.found) hooks_.found(result());
    if (budget > 0) {
      // First some on each, then the rest where it goes on best.
      const auto first = static_cast<std::int64_t>(fields_.size() > 1 ? budget / 8 : budget);
      for (std::size_t i = 0; i < fields_.size(); ++i) run(i, first);
      while (evaluations() < budget) {
        const std::size_t i = most_promising();
        if (i == fields_.size() || is_stopped()) break;
        const std::int64_t before = evaluations();
        run(i, std::min(budget - before, std::max<std::int64_t>(budget / 4, 1)));
        if (evaluations() == before) break;
      }
    }
    return result();
  }

 private:
  struct Field {
    SearchPlacement placement;
    PlacementSearch search;
  };

  void check_request() const {
    if (machine_of(request_.costs).jitter > 0) {
      throw InputError("a schedule is sought for costs without jitter; leave the jitter out");
    }
    if (request_.ranks < 1 || request_.micro_batches < 1) throw InputError("there must be a rank and a micro-batch");
  }

  void add(SearchPlacement each) {
    const bool is_asked = request_.placement == each;
    if (each == SearchPlacement::two_way && (request_.ranks % 2 != 0 || request_.micro_batches % 2 != 0)) {
      const std::string reason =
          fmt::format("two-way: ranks and micro-batches must be even, as two chains share them; there are {} and {}",
                      request_.ranks, request_.micro_batches);
      if (is_asked) throw ShapeError(reason);
      remarks_.push_back("no " + reason);
      return;
    }
    const Placement placement = placement_of(each, request_.ranks);
    const std::int64_t micro_batches = request_.micro_batches / placement.chains();
    try {
      fields_.push_back({each, PlacementSearch(placement, micro_batches, stage_costs(costs_, placement),
                                               {.by_span = request_.objective == SearchObjective::span,
                                                .limit = limit_on(placement, request_),
                                                .seed = request_.seed,
                                                .threads = request_.threads,
                                                .stopped = hooks_.stopped})});
    } catch (const ShapeError& error) {  // a cut that was given for other stages
      if (is_asked) throw;
      remarks_.push_back(fmt::format("no {}: {}", name(each), error.what()));
      return;
    }
    for (const Row& row : rows_) {
      if (row.reason.empty() && row.schedule.placement == placement) fields_.back().search.add(row.schedule, row.real);
    }
    if (!fields_.back().search.best()) fields_.back().search.add_least();
  }

  [[nodiscard]] bool is_stopped() const { return hooks_.stopped && hooks_.stopped(); }

  // Some seconds on two cores: an evaluation takes as long as the number of ops.
  [[nodiscard]] std::int64_t default_budget() const {
    const std::int64_t ops = 3 * request_.micro_batches * 2 * request_.ranks;
    return std::clamp<std::int64_t>(3'000'000'000 / ops, 2'000, 4'000'000);
  }

  [[nodiscard]] std::int64_t evaluations() const {
    std::int64_t sum = 0;
    for (const Field& field : fields_) sum += field.search.evaluations();
    return sum;
  }

  [[nodiscard]] std::optional<std::size_t> best_field() const {
    std::optional<std::size_t> best;
    for (std::size_t i = 0; i < fields_.size(); ++i) {
      if (fields_[i].search.best() &&
          (!best || fields_[i].search.best()->value < fields_[*best].search.best()->value)) {
        best = i;
      }
    }
    return best;
  }

  // Whether this placement may still have something shorter than the best of all.
  [[nodiscard]] bool is_open(std::size_t i) const {
    const auto best = best_field();
    return !fields_[i].search.is_done() && (!best || fields_[i].search.bound() < fields_[*best].search.best()->value);
  }
  // Of those the one with the shortest; where none has any, the one with the least bound.
  [[nodiscard]] std::size_t most_promising() const {
    std::size_t best = fields_.size();
    const auto rank = [&](std::size_t i) {
      const auto& found = fields_[i].search.best();
      return found ? found->value : std::numeric_limits<Time>::max() / 2 + fields_[i].search.bound() / 4;
    };
    for (std::size_t i = 0; i < fields_.size(); ++i) {
      if (is_open(i) && (best == fields_.size() || rank(i) < rank(best))) best = i;
    }
    return best;
  }

  void run(std::size_t i, std::int64_t budget) {
    if (!is_open(i) || is_stopped()) return;
    const auto found = [&] {
      if (best_field() == i && hooks_.found) hooks_.found(result());
    };
    // In pieces, between which it can be said how far it is.
    const std::int64_t end = fields_[i].search.evaluations() + budget;
    while (fields_[i].search.evaluations() < end && is_open(i) && !is_stopped()) {
      const std::int64_t before = fields_[i].search.evaluations();
      fields_[i].search.run(end - before, found, [&] { report(i); });
      if (fields_[i].search.evaluations() == before) break;
    }
    report(i);
  }

  void report(std::size_t i) const {
    if (!hooks_.progress) return;
    SearchProgress progress{fields_[i].placement, std::nullopt, lower_bound(), evaluations()};
    if (const auto best = best_field()) progress.best = fields_[*best].search.best()->value;
    hooks_.progress(progress);
  }

  [[nodiscard]] Time lower_bound() const {
    Time least = std::numeric_limits<Time>::max();
    for (const Field& field : fields_) least = std::min(least, field.search.bound());
    return least;
  }

  [[nodiscard]] SearchResult result() const {
    const auto i = best_field();
    if (!i) refuse();
    SearchResult result;
    for (const Row& row : rows_) {
      if (row.reason.empty()) {
        result.catalog.push_back(row.row);
      } else {
        result.remarks.push_back("no row for " + row.reason);
      }
    }
    std::ranges::stable_sort(result.catalog, {}, &SearchRow::makespan);
    const PlacementSearch& field = fields_[*i].search;
    const Found& found = *field.best();
    result.schedule = found.schedule;
    result.origin = found.origin;
    result.costs = field.costs();
    result.makespan = found.real.makespan;
    result.span = found.real.span;
    result.peak_memory = found.real.peak;
    result.lower_bound = lower_bound();
    result.evaluations = evaluations();
    for (const Field& each : fields_) {
      std::optional<Time> best;
      if (each.search.best()) best = each.search.best()->value;
      result.placements.push_back({each.placement, each.search.bound(), best});
    }
    result.remarks.insert(result.remarks.end(), remarks_.begin(), remarks_.end());
    return result;
  }

  // Nothing keeps the limit: says what the placement needs that needs least.
  [[noreturn]] void refuse() const {
    const MemoryLimit limit = request_.memory_limit.value();
    std::optional<MemoryLimitError> least;
    for (const Field& field : fields_) {
      std::vector<MemoryLimit> needed = field.search.least_needed();
      const std::int64_t chains = placement_of(field.placement, request_.ranks).chains();
      const bool counts_shares = limit.unit == MemoryLimit::Unit::micro_batches;
      for (MemoryLimit& each : needed) each.amount *= counts_shares ? chains : 1;
      const MemoryLimitError error(name(field.placement), limit, needed);
      if (!least || error.least().amount < least->least().amount) least = error;
    }
    throw MemoryLimitError(*least);
  }

  const SearchRequest& request_;
  const SearchHooks& hooks_;
  ModelCosts costs_;
  std::vector<Row> rows_;
  std::vector<Field> fields_;
  std::vector<std::string> remarks_;
};

}  // namespace

std::string_view name(SearchPlacement placement) {
  switch (placement) {
    case SearchPlacement::linear:
      return "linear";
    case SearchPlacement::v:
      return "v";
    case SearchPlacement::interleaved:
      return "interleaved";
    case SearchPlacement::two_way:
      return "two-way";
    case SearchPlacement::any:
      break;
  }
  return "any";
}

SearchResult search(const SearchRequest& request, const SearchHooks& hooks) { return Search(request, hooks).run(); }

}  // namespace dualpipe
