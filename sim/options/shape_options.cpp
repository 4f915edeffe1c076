#include "dualpipe/sim/options/shape_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/schedule/op.h"

namespace dualpipe {

std::string option_of(const Parameter& parameter) { return fmt::format("--{}", parameter.name); }

bool ShapeOptions::given() const {
  const auto is_given = [](const std::string& value) { return !value.empty(); };
  return is_given(ranks) || is_given(micro_batches) || std::ranges::any_of(values, is_given);
}

bool ShapeOptions::has_chunks() const {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (parameters()[i].value == &Shape::chunks) return !values[i].empty();
  }
  return false;
}

void ShapeOptions::check_used(std::span<const std::string> families) const {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Parameter& each = parameters()[i];
    if (values[i].empty()) continue;
    if (std::ranges::any_of(families, [&](const std::string& name) { return family(name).*each.is_taken; })) continue;
    throw UsageError(option_of(each),
                     fmt::format("the {} cannot be chosen in {}; leave it out, or take one of: {}", each.noun,
                                 families.empty() ? "files" : fmt::format("{}", fmt::join(families, ", ")),
                                 families_that_take(each)));
  }
}

void ShapeOptions::keep_taken_by(const std::string& name) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!(family(name).*parameters()[i].is_taken)) values[i].clear();
  }
}

Shape ShapeOptions::shape(const std::optional<Shape>& defaults) const {
  if (!defaults && (ranks.empty() || micro_batches.empty())) {
    throw InputError("a schedule of the catalog needs its shape: give --ranks and --microbatches");
  }
  Shape shape = defaults.value_or(Shape{});
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  const auto whole = [](std::int64_t limit) {
    return [limit](std::string_view text) { return parse_integer(text, 1, limit); };
  };
  if (!ranks.empty()) shape.ranks = static_cast<int>(value_of("--ranks", ranks, whole(stage_count_max)));
  if (!micro_batches.empty()) shape.micro_batches = value_of("--microbatches", micro_batches, whole(most));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Parameter& each = parameters()[i];
    if (values[i].empty()) continue;
    shape.*each.value = static_cast<int>(value_of(option_of(each), values[i], whole(each.most)));
  }
  return shape;
}

}  // namespace dualpipe
