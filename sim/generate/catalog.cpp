#include "dualpipe/sim/generate/catalog.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/sim/generate/check_shape.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/nearest.h"

namespace dualpipe {

// The function that describes a family stands in a file of its own. It is declared where it is called, so that the
// catalog names it once.
#define DUALPIPE_FAMILY(function) \
  [] {                            \
    extern Family function();     \
    return function();            \
  }()

namespace detail::generate {

static std::span<const Family> families() {
  // clang-format off
  static const std::array all{
      DUALPIPE_FAMILY(gpipe),
      DUALPIPE_FAMILY(one_f_one_b),
      DUALPIPE_FAMILY(eager_one_f_one_b),
      DUALPIPE_FAMILY(interleaved),
      DUALPIPE_FAMILY(interleaved_overlap),
      DUALPIPE_FAMILY(looped_bfs),
      DUALPIPE_FAMILY(zb_h1),
      DUALPIPE_FAMILY(zb_h2),
      DUALPIPE_FAMILY(interleaved_zb),
      DUALPIPE_FAMILY(zbv),
      DUALPIPE_FAMILY(one_f_one_b_v),
      DUALPIPE_FAMILY(chimera),
      DUALPIPE_FAMILY(chimera_shifted),
      DUALPIPE_FAMILY(hanayo),
      DUALPIPE_FAMILY(dualpipe),
      DUALPIPE_FAMILY(dualpipev),
      DUALPIPE_FAMILY(dualpipev_plain),
      DUALPIPE_FAMILY(v_half),
      DUALPIPE_FAMILY(v_min),
      DUALPIPE_FAMILY(zb_auto),
      DUALPIPE_FAMILY(zbv_auto),
  };
  // clang-format on
  return all;
}

}  // namespace detail::generate

#undef DUALPIPE_FAMILY

std::span<const Family> catalog() { return detail::generate::families(); }

namespace {

// "gpipe, 1f1b": those that `is_wanted`.
template <typename IsWanted>
std::string names_of(IsWanted is_wanted) {
  std::string names;
  for (const Family& each : catalog()) {
    if (is_wanted(each)) names += fmt::format("{}{}", names.empty() ? "" : ", ", each.name);
  }
  return names;
}

}  // namespace

const Family& family(std::string_view name) {
  const auto families = catalog();
  const auto found = std::ranges::find(families, name, &Family::name);
  if (found != families.end()) return *found;
  std::vector<std::string> names;
  for (const Family& each : families) names.emplace_back(each.name);
  const std::string meant = did_you_mean(name, names);
  throw InputError(fmt::format("there is no schedule named '{}'{}{}he catalog has: {}", name, meant,
                               meant.empty() ? "; t" : " T", fmt::join(names, ", ")));
}

std::span<const Parameter> parameters() {
  constexpr auto stages_most = static_cast<int>(stage_count_max);
  constexpr auto micro_batches_most = static_cast<int>(micro_batch_count_max);
  static constexpr std::array all{
      Parameter{"chunks", "number of chunks", "V", "stages per rank", stages_most, &Shape::chunks,
                &Family::takes_chunks},
      Parameter{"group", "size of a group", "N", "micro-batches that go through one chunk before the next",
                micro_batches_most, &Shape::group, &Family::takes_group},
      Parameter{"waves", "number of waves", "W", "how often a micro-batch goes down all ranks and up again",
                stages_most / 2, &Shape::waves, &Family::takes_waves},
      Parameter{"replicas", "number of replicas", "f",
                "pairs of chains, one down the ranks and one up, over all layers", stages_most / 2, &Shape::replicas,
                &Family::takes_replicas},
  };
  return all;
}

std::string families_that_take(const Parameter& parameter) {
  return names_of([&](const Family& each) { return each.*parameter.is_taken; });
}

Shape as_taken_by(const Family& family, Shape shape) {
  for (const Parameter& each : parameters()) {
    if (!(family.*each.is_taken)) shape.*each.value = Shape{}.*each.value;
  }
  return shape;
}

Schedule generate(const Request& request) {
  const Family& chosen = family(request.family);
  detail::generate::check_shape(chosen, request.shape);
  Placement placement = chosen.placement(request.shape);
  const auto micro_batches = static_cast<std::uint32_t>(request.shape.micro_batches / placement.chains());
  const std::size_t ops_most = placement.rank_of.size() * micro_batches * (chosen.splits_backward ? 3 : 2);
  ScheduleBuilder builder(std::move(placement), micro_batches, ops_most);
  chosen.order(request, builder);
  return builder.take(std::string(chosen.name));
}

Schedule generate(std::string_view family, const Shape& shape) {
  return generate(Request{.family = std::string(family), .shape = shape});
}

}  // namespace dualpipe
