// What values costs may have. Private to sim.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/costs/fields.h"

namespace dualpipe::detail::costs {

struct Limits {
  std::int64_t least;
  std::int64_t most;
};
// Of a field of StageCosts.
[[nodiscard]] Limits limits_of(std::string_view key);

[[nodiscard]] bool is_speed(double speed);
[[nodiscard]] bool is_jitter(double jitter);
[[nodiscard]] bool is_bandwidth(double bandwidth);
inline constexpr std::string_view speed_rule = "a speed must be from 1e-6 to 1e6";
inline constexpr std::string_view jitter_rule = "the jitter must be at least 0 and below 1";
inline constexpr std::string_view bandwidth_rule =
    "the bandwidth must be a finite number of bytes per second, or 0 for infinite";

// What is wrong with them, or nothing.
[[nodiscard]] std::optional<std::string> flaw_of_recompute(const StageCosts& costs);
[[nodiscard]] std::optional<std::string> flaw_of_parts(std::span<const StageCosts> parts);
[[nodiscard]] std::optional<std::string> flaw_of_cut(std::span<const int> cut, std::size_t parts);

// Whether anything is said of what they hold or send; else a memory limit has nothing to limit.
[[nodiscard]] bool counts_bytes(const StageCosts& costs);

// All throw InputError. `what`: "stage 3".
void check_each(const StageCosts& costs, std::string_view what);
void check_machine(const MachineCosts& costs);

}  // namespace dualpipe::detail::costs
