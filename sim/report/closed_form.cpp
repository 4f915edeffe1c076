#include "dualpipe/sim/report/closed_form.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <limits>
#include <span>
#include <tuple>
#include <utility>

#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

__extension__ using Int128 = __int128;

// "W = 3 ms"
std::string text_of(Symbol symbol, const SymbolValues& s) {
  const auto is = [](std::string_view name, Time value) {
    return fmt::format("{} = {}", name, format_time_exact(value));
  };
  switch (symbol) {
    case Symbol::ranks:
      return fmt::format("P = {}", s.p);
    case Symbol::micro_batches:
      return fmt::format("M = {}", s.m);
    case Symbol::forward:
      return is("F", s.f);
    case Symbol::backward:
      return is("B", s.b);
    case Symbol::input_gradient:
      return is("I", s.i);
    case Symbol::weight_gradient:
      return is("W", s.w);
    case Symbol::overlapped:
      return is("F&B", s.overlapped);
  }
  return {};
}

std::string broken_text(std::string_view condition, std::string_view numbers) {
  return fmt::format("needs {}{}{}", condition, numbers.empty() ? "" : ": ", numbers);
}

// The first of the formula's own conditions that does not hold.
std::string first_broken(const BubbleFormula& formula, const SymbolValues& values) {
  const auto broken = std::ranges::find(formula.conditions, false, &BubbleCondition::holds);
  if (broken == formula.conditions.end()) return {};
  std::string numbers;
  for (const Symbol symbol : broken->symbols) numbers += (numbers.empty() ? "" : ", ") + text_of(symbol, values);
  return broken_text(broken->text, numbers);
}

// What every form supposes.
std::string broken_premise(const Costs& costs) {
  const StageCosts& stage = costs.stages[0];
  const auto same_durations = [&](const StageCosts& other) {
    return std::tie(other.forward, other.backward, other.input_gradient, other.weight_gradient, other.recompute,
                    other.overlapped) == std::tie(stage.forward, stage.backward, stage.input_gradient,
                                                  stage.weight_gradient, stage.recompute, stage.overlapped);
  };
  const bool sends_bytes = std::ranges::any_of(costs.stages, [](const StageCosts& each) { return each.message > 0; });
  const bool free =
      costs.latency == 0 && (costs.model == CommunicationModel::latency || costs.bandwidth == 0 || !sends_bytes);
  struct Premise {
    bool holds;
    std::string_view text;
    std::string numbers = {};
  };
  const std::array premises{
      Premise{std::ranges::all_of(costs.stages, same_durations), "equal stages"},
      Premise{std::ranges::all_of(costs.speed, [](double speed) { return speed == 1; }), "equal ranks"},
      Premise{costs.jitter == 0, "no jitter"},
      Premise{costs.launch == 0, "no launch overhead"},
      Premise{costs.model != CommunicationModel::stream,
              "messages that do not wait for each other (--comm latency or links)"},
      Premise{free, "free communication",
              costs.latency > 0 ? fmt::format("latency = {}", format_time_exact(costs.latency)) : ""},
      Premise{!costs.release_early, "pairs that release at their end"},
  };
  const auto broken = std::ranges::find(premises, false, &Premise::holds);
  return broken == premises.end() ? std::string() : broken_text(broken->text, broken->numbers);
}

// So many times a duration. The simulated run may be short enough where this is not: ranks can be a million times as
// fast as the formula, which knows no speed, takes them to be.
Time repeated(std::int64_t count, Time duration) {
  const Int128 product = Int128{count} * duration;
  if (product <= std::numeric_limits<Time>::max() && product >= std::numeric_limits<Time>::min()) {
    return static_cast<Time>(product);
  }
  throw InputError(
      fmt::format("the closed form for the bubble, {} times {}, comes to more than 292 years; use shorter durations",
                  count, format_time(duration)));
}

SymbolValues values_of(const Family& family, const Shape& shape, const StageCosts& stage) {
  SymbolValues values;
  values.p = shape.ranks;
  values.m = shape.micro_batches;
  values.chains = family.chains(shape);
  values.pp = values.p * family.stages_per_rank(shape) / values.chains;
  values.f = stage.forward;
  values.b = stage.duration(Kind::backward);
  values.i = stage.duration(Kind::input_gradient);
  values.w = stage.weight_gradient;
  values.overlapped = stage.overlapped.value_or(values.f + values.b);
  return values;
}

}  // namespace

std::optional<ClosedForm> closed_form(std::string_view name, const Shape& shape, const Costs& costs) {
  check(costs);
  const Family& of = family(name);
  if (of.bubble == nullptr) return std::nullopt;
  const SymbolValues values = values_of(of, shape, costs.stages[0]);
  const BubbleFormula formula = of.bubble(values);
  std::string broken = broken_premise(costs);
  if (broken.empty()) broken = first_broken(formula, values);
  return ClosedForm{std::string(formula.text), repeated(formula.count, formula.duration), formula.by_span,
                    std::move(broken)};
}

std::string closed_form_text(const Family& family) {
  if (family.bubble == nullptr) return {};
  const BubbleFormula formula = family.bubble(SymbolValues{});
  std::string text = fmt::format("{}{}", formula.text, formula.by_span ? " by span" : "");
  for (std::size_t i = 0; i < formula.conditions.size(); ++i) {
    text += fmt::format("{} {}", i == 0 ? ";" : ",", formula.conditions[i].text);
  }
  return text;
}

}  // namespace dualpipe
