#include "dualpipe/sim/sweep/points.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <set>
#include <tuple>
#include <type_traits>

#include "dualpipe/sim/costs/set_cost.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/nearest.h"
#include "dualpipe/sim/schedule/quote.h"
#include "dualpipe/sim/schedule/validate.h"

namespace dualpipe::detail::sweep {
namespace {

using detail::schedule::quote;

// Times the combinations so far.
std::size_t times(std::size_t count, std::size_t values) {
  if (values != 0 && count > sweep_points_max / values) {
    throw InputError(fmt::format("the sweep has more than {} points; give fewer values", sweep_points_max));
  }
  return count * values;
}

template <typename Value>
void check_distinct(std::string_view name, const std::vector<Value>& values) {
  if (values.empty()) throw InputError(fmt::format("{}: it has no values", name));
  std::set<Value> seen;
  for (const Value& each : values) {
    if (!seen.insert(each).second) throw InputError(fmt::format("{}: {} is there twice", name, each));
  }
}

void check_axis(const SweepAxis& axis) {
  std::vector<std::string> names = cost_names();
  for (const std::string& each : sweep_axis_names()) names.push_back(each);
  if (std::ranges::find(names, axis.name) == names.end()) {
    throw InputError(fmt::format("there is nothing named {} to vary{}; there are {}", quote(axis.name),
                                 did_you_mean(axis.name, names), fmt::join(names, ", ")));
  }
  check_distinct(axis.name, axis.values);
}

const Placement& placement_of(const Schedule& schedule) { return schedule.placement; }
const Placement& placement_of(const Program& program) { return program.schedule.placement; }

Variant variant_of(const SweepSchedule& file) {
  Program program = std::visit(
      [&](const auto& loaded) -> Program {
        const auto violations = validate(loaded);
        if (!violations.empty()) {
          throw InputError(fmt::format("the schedule {} is not valid: {}", quote(file.name),
                                       to_text(violations.front(), placement_of(loaded))));
        }
        if constexpr (std::is_same_v<decltype(loaded), const Program&>)
          return loaded;
        else
          return lower(loaded);
      },
      file.schedule);
  const Schedule& schedule = program.schedule;
  Shape shape;
  shape.ranks = schedule.ranks();
  shape.micro_batches = static_cast<std::int64_t>(schedule.total_micro_batches());
  return {file.name, nullptr, shape, std::make_shared<const Program>(std::move(program))};
}

}  // namespace

bool leaves_stages(std::string_view axis) { return is_machine_cost(axis) || axis == "speed" || axis == "straggler"; }

Axes::Axes(const SweepGrid& grid) {
  add_variants(grid);
  add_places(grid);
  add_pairs();
  std::set<std::string> seen;
  for (const SweepAxis& each : grid.axes) {
    check_axis(each);
    if (!seen.insert(each.name).second) throw InputError(fmt::format("{}: it varies twice", each.name));
    lengths_.push_back(each.values.size());
  }
  for (const bool of_machine : {false, true}) {
    for (std::size_t i = 0; i < grid.axes.size(); ++i) {
      if (leaves_stages(grid.axes[i].name) != of_machine) continue;
      order_.push_back(i);
      std::size_t& count = of_machine ? of_machine_ : of_stages_;
      count = times(count, lengths_[i]);
    }
  }
  const std::size_t pairs = pairs_.empty() ? times(places_.size(), variants_.size()) : pairs_.size();
  size_ = times(times(pairs, of_stages_), of_machine_);
}

void Axes::add_places(const SweepGrid& grid) {
  if (grid.cluster) {
    places_ = places_of(*grid.cluster, grid.ranks, machine_of(grid.costs));
    return;
  }
  if (grid.ranks.empty() && grid.micro_batches.empty()) {
    for (const Variant& each : variants_) {
      const bool is_there = std::ranges::any_of(places_, [&](const Place& place) { return each.is_at(place); });
      if (each.program && !is_there) places_.push_back({each.shape.ranks, each.shape.micro_batches, nullptr});
    }
    if (!places_.empty()) return;
  }
  check_distinct("ranks", grid.ranks);
  check_distinct("microbatches", grid.micro_batches);
  times(grid.ranks.size(), grid.micro_batches.size());
  for (const int ranks : grid.ranks) {
    for (const std::int64_t micro_batches : grid.micro_batches) places_.push_back({ranks, micro_batches, nullptr});
  }
}

void Axes::add_variants(const SweepGrid& grid) {
  std::vector<std::string> names = grid.schedules;
  if (names.empty()) {
    for (const Family& each : catalog()) names.emplace_back(each.name);
  }
  check_distinct("schedules", names);
  for (const std::string& name : names) {
    const auto file = std::ranges::find(grid.files, name, &SweepSchedule::name);
    if (file == grid.files.end()) {
      add_family(name, grid);
    } else {
      variants_.push_back(variant_of(*file));
    }
  }
}

void Axes::add_family(const std::string& name, const SweepGrid& grid) {
  const Family& of_name = family(name);
  std::vector<Variant> variants{{name, &of_name, {}, nullptr}};
  for (std::size_t i = 0; i < grid.parameters.size(); ++i) {
    const Parameter& parameter = parameters()[i];
    if (!(of_name.*parameter.is_taken) || grid.parameters[i].empty()) continue;
    check_distinct(parameter.name, grid.parameters[i]);
    std::vector<Variant> more;
    for (const Variant& each : variants) {
      for (const int value : grid.parameters[i]) {
        more.push_back(each);
        more.back().shape.*parameter.value = value;
      }
    }
    variants = std::move(more);
  }
  variants_.insert(variants_.end(), variants.begin(), variants.end());
}

void Axes::add_pairs() {
  if (std::ranges::none_of(variants_, [](const Variant& each) { return each.program != nullptr; })) return;
  times(places_.size(), variants_.size());
  for (const Place& place : places_) {
    for (const Variant& each : variants_) {
      if (each.is_at(place)) pairs_.emplace_back(&place, &each);
    }
  }
  for (const Variant& each : variants_) {
    if (std::ranges::any_of(pairs_, [&](const auto& pair) { return pair.second == &each; })) continue;
    throw InputError(
        fmt::format("{} has {} ranks and {} micro-batches, a shape that this sweep does not go through; "
                    "add it to the ranks and the micro-batches, or leave the file out",
                    each.name, each.shape.ranks, each.shape.micro_batches));
  }
}

Axes::Values Axes::at(std::size_t point) const {
  Values values{};
  values.of_axis.resize(lengths_.size());
  values.prepared = point / of_machine_;
  for (auto axis = order_.rbegin(); axis != order_.rend(); ++axis) {
    values.of_axis[*axis] = point % lengths_[*axis];
    point /= lengths_[*axis];
  }
  if (pairs_.empty()) {
    values.variant = &variants_[point % variants_.size()];
    values.place = &places_[point / variants_.size()];
  } else {
    std::tie(values.place, values.variant) = pairs_[point];
  }
  return values;
}

}  // namespace dualpipe::detail::sweep
