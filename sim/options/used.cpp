#include "dualpipe/sim/options/used.h"

#include <fmt/format.h>

#include <algorithm>

#include "dualpipe/sim/generate/catalog.h"

namespace dualpipe {
namespace {

bool shares_weights(const Placement& placement) {
  for (int stage = 0; stage < placement.stages(); ++stage) {
    if (placement.weights_of[static_cast<std::size_t>(stage)] != stage) return true;
  }
  return false;
}

}  // namespace

std::string families_with(bool Family::*feature) {
  std::vector<std::string_view> names;
  for (const Family& family : catalog()) {
    if (family.*feature) names.push_back(family.name);
  }
  std::string text;
  for (const std::string_view name : names) {
    text += fmt::format("{}{}", name == names.front() ? "" : name == names.back() ? " or " : ", ", name);
  }
  return text;
}

Used used_by(const Schedule& schedule) {
  return {.pairs = has_pairs(schedule),
          .weight_gradients = std::ranges::any_of(schedule.ops, [](Op op) { return op.kind == Kind::weight_gradient; }),
          .reduces = shares_weights(schedule.placement)};
}

void Used::add(const Used& other) {
  pairs = pairs || other.pairs;
  weight_gradients = weight_gradients || other.weight_gradients;
  reduces = reduces || other.reduces;
}

Used used_by(std::span<const std::string> families) {
  Used used;
  for (const std::string& name : families) {
    const Family& each = family(name);
    used.add({each.has_pairs, each.splits_backward, shares_weights(each.placement({}))});
  }
  return used;
}

}  // namespace dualpipe
