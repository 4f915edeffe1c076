// Which options of costs would do nothing.
#include <fmt/format.h>

#include <algorithm>

#include "dualpipe/sim/generate/catalog.h"
#include "tools/common/options.h"

namespace dualpipe {
namespace {

bool shares_weights(const Placement& placement) {
  for (int stage = 0; stage < placement.stages(); ++stage) {
    if (placement.weights_of[static_cast<std::size_t>(stage)] != stage) return true;
  }
  return false;
}

// Whether anything moves over links that has a size.
bool has_bytes_to_send(std::span<const StageCosts> stages, bool reduces) {
  return std::ranges::any_of(
      stages, [=](const StageCosts& stage) { return stage.message > 0 || (reduces && stage.gradients > 0); });
}

[[noreturn]] void refuse(const char* option, const std::string& why) { throw CLI::ValidationError(option, why); }

std::string without_pairs() {
  return fmt::format("nothing that runs has F&B pairs; leave it out, or take {}", families_with(&Family::has_pairs));
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

void CostOptions::check_used(const Used& used, const GivenCosts& costs) const {
  const MachineCosts& machine = machine_of(costs);
  if (!overlapped.empty() && !used.pairs) {
    refuse("--overlapped", without_pairs());
  }
  if (!weight_stash.empty() && !used.weight_gradients) {
    refuse("--weight-stash-bytes", "nothing that runs has W apart from B, and so holds anything for it; leave it out");
  }
  if (!bandwidth.empty() && machine.model == CommunicationModel::latency) {
    refuse("--bandwidth", "it does nothing with --comm latency; add --comm links or --comm stream");
  }
  if (!bandwidth.empty() && !has_bytes_to_send(entries_of(costs), used.reduces)) {
    refuse("--bandwidth", "messages have no bytes; add --bytes");
  }
  if (!seed.empty() && machine.jitter == 0) refuse("--seed", "nothing is drawn; add --jitter");
  if (release_early && !used.pairs) {
    refuse("--release-early", without_pairs());
  }
  if (release_early && machine.model == CommunicationModel::stream) {
    refuse("--release-early",
           "with --comm stream a batch of messages goes as a whole, at the pair's end; leave it out");
  }
}

}  // namespace dualpipe
