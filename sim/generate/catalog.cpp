#include "dualpipe/sim/generate/catalog.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "dualpipe/sim/generate/check_shape.h"
#include "dualpipe/sim/schedule/error.h"

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
      DUALPIPE_FAMILY(interleaved),
      DUALPIPE_FAMILY(looped_bfs),
      DUALPIPE_FAMILY(zb_h1),
      DUALPIPE_FAMILY(zb_h2),
      DUALPIPE_FAMILY(dualpipe),
      DUALPIPE_FAMILY(dualpipev),
  };
  // clang-format on
  return all;
}

}  // namespace detail::generate

#undef DUALPIPE_FAMILY

std::span<const Family> catalog() { return detail::generate::families(); }

const Family& family(std::string_view name) {
  const auto families = catalog();
  const auto found = std::ranges::find(families, name, &Family::name);
  if (found != families.end()) return *found;
  std::string names;
  for (const Family& each : families) names += fmt::format("{}{}", names.empty() ? "" : ", ", each.name);
  throw InputError(fmt::format("there is no schedule named '{}'; the catalog has: {}", name, names));
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
