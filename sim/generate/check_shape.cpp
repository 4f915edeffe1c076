#include "dualpipe/sim/generate/check_shape.h"

#include <fmt/core.h>

#include <string>
#include <string_view>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::generate {
namespace {

// "interleaved or looped-bfs"
std::string families_with_chunks() {
  std::string names;
  for (const Family& each : catalog()) {
    if (each.takes_chunks) names += fmt::format("{}{}", names.empty() ? "" : " or ", each.name);
  }
  return names;
}

}  // namespace

void check_counts(const Family& family, const Shape& shape) {
  const auto check_range = [&](std::string_view what, std::int64_t value, std::int64_t most) {
    if (value >= 1 && value <= most) return;
    throw ShapeError(
        fmt::format("{}: the number of {} must be between 1 and {}, and is {}", family.name, what, most, value));
  };
  check_range("ranks", shape.ranks, stage_count_max);
  check_range("micro-batches", shape.micro_batches, micro_batch_count_max);
  check_range("chunks", shape.chunks, stage_count_max);
}

void check_shape(const Family& family, const Shape& shape) {
  check_counts(family, shape);
  if (!family.takes_chunks && shape.chunks != 1) {
    throw ShapeError(
        fmt::format("{}: the number of chunks per rank is fixed, and {} were asked for; leave it out, or use {}",
                    family.name, shape.chunks, families_with_chunks()));
  }
  const std::int64_t per_rank = family.stages_per_rank(shape.chunks);
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
