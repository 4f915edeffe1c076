#include "dualpipe/sim/report/closed_form.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <functional>
#include <limits>

#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

__extension__ using Int128 = __int128;

// What the formulas are written in.
struct Symbols {
  std::int64_t p, m, half;  // ranks, micro-batches, half the stages of a DualPipe chain
  Time f, b, i, w, overlapped;
};

struct Condition {
  bool holds;
  std::string_view text;  // "W <= F"
  std::string numbers;    // "W = 3 ms, F = 1 ms"
};

std::string first_broken(std::span<const Condition> conditions) {
  const auto broken = std::ranges::find(conditions, false, &Condition::holds);
  if (broken == conditions.end()) return {};
  return fmt::format("needs {}{}{}", broken->text, broken->numbers.empty() ? "" : ": ", broken->numbers);
}

std::string times(std::initializer_list<std::pair<std::string_view, Time>> values) {
  std::string text;
  for (const auto& [name, value] : values) {
    text += fmt::format("{}{} = {}", text.empty() ? "" : ", ", name, format_time_exact(value));
  }
  return text;
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
  const std::array conditions{
      Condition{std::ranges::all_of(costs.stages, same_durations), "equal stages", ""},
      Condition{std::ranges::all_of(costs.speed, [](double speed) { return speed == 1; }), "equal ranks", ""},
      Condition{costs.jitter == 0, "no jitter", ""},
      Condition{costs.launch == 0, "no launch overhead", ""},
      Condition{costs.model != CommunicationModel::stream,
                "messages that do not wait for each other (--comm latency or links)", ""},
      Condition{free, "free communication", costs.latency > 0 ? times({{"latency", costs.latency}}) : ""},
      Condition{!costs.release_early, "pairs that release at their end", ""},
  };
  return first_broken(conditions);
}

Condition at_least(const Symbols& s, std::string_view text, std::int64_t least) {
  return {s.m >= least, text, fmt::format("M = {}, P = {}", s.m, s.p)};
}

Condition splits(const Symbols& s) {
  return {s.b == s.i + s.w, "B = I + W", times({{"B", s.b}, {"I", s.i}, {"W", s.w}})};
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

ClosedForm plain(const Symbols& s, std::int64_t micro_batches_least) {
  const std::array conditions{at_least(s, "M >= P", micro_batches_least)};
  return {"(P-1)(F+B)", repeated(s.p - 1, s.f + s.b), false, first_broken(conditions)};
}

ClosedForm zb_h1(const Symbols& s) {
  const std::array conditions{
      splits(s), at_least(s, "M >= P", s.p),
      Condition{s.w <= std::min(s.f, s.i), "W <= min(F, I)", times({{"F", s.f}, {"I", s.i}, {"W", s.w}})}};
  return {"(P-1)(F+B-2W)", repeated(s.p - 1, s.f + s.b - 2 * s.w), false, first_broken(conditions)};
}

ClosedForm zb_h2(const Symbols& s) {
  const std::array conditions{
      splits(s), at_least(s, "M >= 2P-1", 2 * s.p - 1),
      Condition{s.w <= s.f, "W <= F", times({{"F", s.f}, {"W", s.w}})},
      Condition{2 * s.w <= s.f + s.i, "2W <= F+I", times({{"F", s.f}, {"I", s.i}, {"W", s.w}})}};
  return {"(P-1)(F+B-3W)", repeated(s.p - 1, s.f + s.b - 3 * s.w), true, first_broken(conditions)};
}

ClosedForm dual(const Symbols& s) {
  const std::array conditions{
      splits(s), Condition{s.f == s.i, "F = I", times({{"F", s.f}, {"I", s.i}})},
      Condition{s.w <= s.f, "W <= F", times({{"F", s.f}, {"W", s.w}})},
      Condition{s.overlapped <= s.f + s.b, "F&B <= F+B", times({{"F&B", s.overlapped}, {"F", s.f}, {"B", s.b}})},
      Condition{s.overlapped >= std::max(s.f, s.b), "F&B >= max(F, B)",
                times({{"F&B", s.overlapped}, {"F", s.f}, {"B", s.b}})}};
  return {"(PP/2-1)(F&B+B-3W)", repeated(s.half - 1, s.overlapped + s.b - 3 * s.w), false, first_broken(conditions)};
}

}  // namespace

std::optional<ClosedForm> closed_form(std::string_view name, const Shape& shape, const Costs& costs) {
  check(costs);
  const StageCosts& stage = costs.stages[0];
  const Family& of = family(name);
  const std::int64_t half = std::int64_t{shape.ranks} * of.stages_per_rank / of.chains / 2;
  const Time backward = stage.duration(Kind::backward);
  const Symbols symbols{shape.ranks,
                        shape.micro_batches,
                        half,
                        stage.forward,
                        backward,
                        stage.duration(Kind::input_gradient),
                        stage.weight_gradient,
                        stage.overlapped.value_or(stage.forward + backward)};
  ClosedForm form;
  if (name == "gpipe" || name == "1f1b") {
    form = plain(symbols, 0);
  } else if (name == "interleaved" || name == "looped-bfs") {
    form = plain(symbols, shape.ranks);
  } else if (name == "zb1p") {
    form = zb_h1(symbols);
  } else if (name == "zb-h2") {
    form = zb_h2(symbols);
  } else if (name == "dualpipe" || name == "dualpipev") {
    form = dual(symbols);
  } else {
    return std::nullopt;
  }
  if (const std::string premise = broken_premise(costs); !premise.empty()) form.broken = premise;
  return form;
}

}  // namespace dualpipe
