// The figures of StageCosts, by name: what costs are checked by, read and written by, and put together by. Private to
// sim/costs.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "dualpipe/sim/costs/costs.h"

namespace dualpipe::detail::costs {

// How a figure of a stage comes from those of its parts (model_costs.h).
enum class Joined : std::uint8_t { sum, most, last };

struct Field {
  std::string_view key;
  std::int64_t StageCosts::*member;
  Joined joined;
};
// Unset where it is not known.
struct OptionalField {
  std::string_view key;
  std::optional<std::int64_t> StageCosts::*member;
  Joined joined;
};

inline constexpr std::array required_durations{Field{"forward_ns", &StageCosts::forward, Joined::sum},
                                               Field{"backward_ns", &StageCosts::backward, Joined::sum},
                                               Field{"input_gradient_ns", &StageCosts::input_gradient, Joined::sum},
                                               Field{"weight_gradient_ns", &StageCosts::weight_gradient, Joined::sum}};
inline constexpr Field recompute{"recompute_ns", &StageCosts::recompute, Joined::sum};
inline constexpr OptionalField recompute_activation{"recompute_activation_bytes", &StageCosts::recompute_activation,
                                                    Joined::sum};
inline constexpr OptionalField overlapped{"overlapped_ns", &StageCosts::overlapped, Joined::sum};
inline constexpr std::array sizes{
    Field{"activation_bytes", &StageCosts::activation, Joined::sum},
    Field{"weight_stash_bytes", &StageCosts::weight_stash, Joined::sum},
    Field{"message_bytes", &StageCosts::message, Joined::last},
    Field{"forward_workspace_bytes", &StageCosts::forward_workspace, Joined::most},
    Field{"backward_workspace_bytes", &StageCosts::backward_workspace, Joined::most},
    Field{"input_gradient_workspace_bytes", &StageCosts::input_gradient_workspace, Joined::most},
    Field{"weight_gradient_workspace_bytes", &StageCosts::weight_gradient_workspace, Joined::most},
    Field{"parameter_bytes", &StageCosts::parameters, Joined::sum},
    Field{"gradient_bytes", &StageCosts::gradients, Joined::sum},
    Field{"optimizer_bytes", &StageCosts::optimizer, Joined::sum}};
inline constexpr OptionalField overlapped_workspace{"overlapped_workspace_bytes", &StageCosts::overlapped_workspace,
                                                    Joined::most};

[[nodiscard]] inline std::optional<std::int64_t> value_of(const StageCosts& costs, const Field& field) {
  return costs.*field.member;
}
[[nodiscard]] inline std::optional<std::int64_t> value_of(const StageCosts& costs, const OptionalField& field) {
  return costs.*field.member;
}

// Calls `visit(field)` with each, required or not, in the order of the file.
template <typename Visit>
constexpr void visit_fields(Visit visit) {
  for (const Field& field : required_durations) visit(field);
  visit(recompute);
  visit(overlapped);
  for (const Field& field : sizes) visit(field);
  visit(recompute_activation);
  visit(overlapped_workspace);
}

}  // namespace dualpipe::detail::costs
