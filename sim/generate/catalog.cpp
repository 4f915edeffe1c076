#include "dualpipe/sim/generate/catalog.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <string>

#include "dualpipe/sim/generate/builder.h"
#include "dualpipe/sim/generate/dualpipe.h"
#include "dualpipe/sim/generate/gpipe.h"
#include "dualpipe/sim/generate/interleaved.h"
#include "dualpipe/sim/generate/looped_bfs.h"
#include "dualpipe/sim/generate/one_f_one_b.h"
#include "dualpipe/sim/generate/zero_bubble.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

constexpr std::array families{
    Family{"gpipe", "GPipe: all forwards, then all backwards", "arXiv:1811.06965", "any shape", false, 1, 1, false,
           gpipe},
    Family{"1f1b", "1F1B with a flush (PipeDream-Flush)", "arXiv:2006.09503", "any shape", false, 1, 1, false,
           one_f_one_b},
    Family{"interleaved", "1F1B over V chunks per rank (Megatron-LM)", "arXiv:2104.04473",
           "M divisible by max(1, floor(M/P)) rounds", true, 1, 1, false, interleaved},
    Family{"looped-bfs", "all forwards chunk by chunk, then all backwards", "arXiv:2211.05953", "any shape", true, 1, 1,
           false, looped_bfs},
    Family{"zb1p", "ZB1P, the handcrafted ZB-H1: W fills the bubbles, memory of 1F1B", "arXiv:2401.10241", "any shape",
           false, 1, 1, true, zb_h1},
    Family{"zb-h2", "ZB-H2: no bubble by span at F=I=W, twice the memory", "arXiv:2401.10241", "any shape", false, 1, 1,
           true, zb_h2},
    Family{"dualpipe", "DualPipe: two directions, F and B overlapped", "arXiv:2412.19437", "P even, M even, M >= 2P",
           false, 2, 2, true, dualpipe},
    Family{"dualpipev", "DualPipeV: DualPipe folded onto half the ranks", "github.com/deepseek-ai/DualPipe", "M >= 2P",
           false, 2, 1, true, dualpipev},
};

}  // namespace

std::span<const Family> catalog() { return families; }

const Family& family(std::string_view name) {
  const auto found = std::ranges::find(families, name, &Family::name);
  if (found != families.end()) return *found;
  std::string names;
  for (const Family& each : families) names += fmt::format("{}{}", names.empty() ? "" : ", ", each.name);
  throw InputError(fmt::format("there is no schedule named '{}'; the catalog has: {}", name, names));
}

Schedule generate(std::string_view name, const Shape& shape) { return family(name).generate(shape); }

void detail::generate::check_counts(std::string_view family_name, const Shape& shape) {
  const auto check_range = [&](std::string_view what, std::int64_t value, std::int64_t most) {
    if (value >= 1 && value <= most) return;
    throw ShapeError(
        fmt::format("{}: the number of {} must be between 1 and {}, and is {}", family_name, what, most, value));
  };
  check_range("ranks", shape.ranks, stage_count_max);
  check_range("micro-batches", shape.micro_batches, micro_batch_count_max);
  check_range("chunks", shape.chunks, stage_count_max);
}

void detail::generate::check_shape(std::string_view family_name, const Shape& shape) {
  const Family& family = dualpipe::family(family_name);
  check_counts(family_name, shape);
  if (!family.takes_chunks && shape.chunks != 1) {
    throw ShapeError(
        fmt::format("{}: the number of chunks per rank is fixed, and {} were asked for; leave it out, or use "
                    "interleaved or looped-bfs",
                    family.name, shape.chunks));
  }
  const std::int64_t per_rank = family.takes_chunks ? shape.chunks : family.stages_per_rank;
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
}

}  // namespace dualpipe
