#include "dualpipe/sim/generate/check_shape.h"

#include <fmt/core.h>

#include <string>
#include <string_view>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::generate {

void check_counts(const Family& family, const Shape& shape) {
  const auto check_range = [&](std::string_view what, std::int64_t value, std::int64_t most) {
    if (value >= 1 && value <= most) return;
    throw ShapeError(fmt::format("{}: the {} must be between 1 and {}, and is {}", family.name, what, most, value));
  };
  check_range("number of ranks", shape.ranks, stage_count_max);
  check_range("number of micro-batches", shape.micro_batches, micro_batch_count_max);
  for (const Parameter& each : parameters()) {
    const int value = shape.*each.value;
    if (value != Shape{}.*each.value) check_range(each.noun, value, each.most);
  }
}

void check_shape(const Family& family, const Shape& shape) {
  check_counts(family, shape);
  for (const Parameter& each : parameters()) {
    if (family.*each.is_taken || shape.*each.value == Shape{}.*each.value) continue;
    throw ShapeError(fmt::format("{}: the {} cannot be chosen, and {} was asked for; leave it out, or use one of: {}",
                                 family.name, each.noun, shape.*each.value, families_that_take(each)));
  }
  const std::int64_t per_rank = family.stages_per_rank(shape);
  const std::int64_t stages = shape.ranks * per_rank;
  if (stages > stage_count_max) {
    throw ShapeError(fmt::format("{}: {} ranks of {} stages make {} stages; there can be at most {}", family.name,
                                 shape.ranks, per_rank, stages, stage_count_max));
  }
  const std::int64_t ops = stages * shape.micro_batches * (family.splits_backward ? 3 : 2);
  if (ops > static_cast<std::int64_t>(op_count_max)) {
    throw ShapeError(fmt::format("{}: {} ranks and {} micro-batches make up to {} ops; there can be at most {}",
                                 family.name, shape.ranks, shape.micro_batches, ops, op_count_max));
  }
  if (family.misfit == nullptr) return;
  if (const std::string why = family.misfit(shape); !why.empty()) {
    throw ShapeError(fmt::format("{}: {}", family.name, why));
  }
}

}  // namespace dualpipe::detail::generate
