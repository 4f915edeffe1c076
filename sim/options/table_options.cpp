#include "dualpipe/sim/options/table_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/schedule_options.h"
#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/options/value.h"

namespace dualpipe {
namespace {

constexpr Shape default_shape{8, 20, default_chunks};  // DeepSeek's README

constexpr std::array sorts{std::pair{"makespan", TableSort::makespan}, std::pair{"bubble", TableSort::bubble},
                           std::pair{"memory", TableSort::memory}, std::pair{"none", TableSort::none}};

TableSchedule schedule_of_table(const std::string& name, std::istream* standard_input,
                                std::vector<std::string>& remarks) {
  auto loaded = load_file_of_list(name, standard_input, remarks);
  if (!loaded) return {name, std::nullopt};
  return {name, lower_valid(std::move(*loaded))};
}

double positive(std::string_view option, const std::string& text) {
  return value_of(option, text, [](std::string_view number) {
    const double value = parse_real(number);
    if (value <= 0) throw InputError("it must be more than 0");
    return value;
  });
}

template <typename Number>
void read_counts(std::string_view option, const std::vector<std::string>& texts, std::int64_t most,
                 std::vector<Number>& counts) {
  if (texts.empty()) return;
  counts.clear();
  for (const std::string& text : texts) {
    const auto whole = [&](std::string_view number) { return parse_integer(number, 1, most); };
    counts.push_back(static_cast<Number>(value_of(option, text, whole)));
  }
}

TableRequest request_of(const TableOptions& options, GivenCosts given, std::vector<std::string>& remarks) {
  TableRequest request;
  for (const std::string& name : options.schedules) {
    request.schedules.push_back(schedule_of_table(name, options.standard_input, remarks));
  }
  if (!options.equal.empty()) check_choice("--equal", options.equal, table_terms());
  request.terms = options.equal == "stages" ? EqualTerms::stages : EqualTerms::ranks;
  request.ranks = {default_shape.ranks};
  request.micro_batches = {default_shape.micro_batches};
  read_counts("--ranks", options.ranks, stage_count_max, request.ranks);
  read_counts("--microbatches", options.micro_batches, std::numeric_limits<std::int64_t>::max(), request.micro_batches);
  request.parameters = options.shape.shape(default_shape);
  request.costs = std::move(given);
  if (!options.memory_limit.empty()) {
    request.memory_limit = value_of("--memory-limit", options.memory_limit, parse_bytes);
  }
  for (const std::string& each : options.recompute) {
    if (each != "none" && each != "full") {
      throw InputError(fmt::format("--recompute: '{}' is neither none nor full", each));
    }
    request.recompute.push_back(each == "full" ? Recomputation::full : Recomputation::none);
  }
  if (!options.seeds.empty()) {
    constexpr int seeds_max = 1'000'000;
    const auto count = [&](std::string_view text) { return static_cast<int>(parse_integer(text, 1, seeds_max)); };
    request.seeds = value_of("--seeds", options.seeds, count);
  }
  if (!options.straggler.empty()) {
    if (options.seeds.empty())
      throw UsageError("--straggler", "it is another rank in each of several runs; add --seeds");
    request.straggler = positive("--straggler", options.straggler);
  }
  if (!options.tokens.empty()) request.tokens = positive("--tokens", options.tokens);
  if (!options.flops.empty()) {
    if (options.flops.size() != 2) {
      throw InputError("--flops takes two numbers: the FLOPs of a micro-batch, and the peak FLOP/s of a rank");
    }
    request.flops = positive("--flops", options.flops[0]);
    request.peak_flops = positive("--flops", options.flops[1]);
  }
  // DeepSeek's table has an order of its own.
  if (request.terms == EqualTerms::stages) request.sort = TableSort::none;
  if (!options.sort.empty()) check_choice("--sort", options.sort, table_sorts());
  const auto* const sort = std::ranges::find(sorts, options.sort, &decltype(sorts)::value_type::first);
  if (sort != sorts.end()) request.sort = sort->second;
  return request;
}

// What none of the schedules has a use for.
void check_used(const TableOptions& options, const TableRequest& request) {
  std::vector<std::string> families;
  for (const TableSchedule& each : request.schedules) {
    if (!each.program) families.push_back(each.name);
  }
  if (request.schedules.empty()) families = default_schedules(request.terms);
  Used used = used_by(families);
  for (const TableSchedule& each : request.schedules) {
    if (each.program) used.add(used_by(each.program->schedule));
  }
  used.reduces = false;  // when reductions end stands in no table
  options.shape.check_used(families);
  options.costs.check_used(used, request.costs);
  if (request.seeds > 0 && machine_of(request.costs).jitter == 0 && !request.straggler) {
    throw UsageError("--seeds", "nothing is drawn; add --jitter");
  }
}

}  // namespace

TableRequest TableOptions::request(GivenCosts given, std::vector<std::string>& remarks) const {
  TableRequest request = request_of(*this, std::move(given), remarks);
  check_used(*this, request);
  return request;
}

std::vector<std::string> table_terms() { return {"ranks", "stages"}; }

std::vector<std::string> table_sorts() {
  std::vector<std::string> names;
  for (const auto& [name, sort] : sorts) names.emplace_back(name);
  return names;
}

}  // namespace dualpipe
