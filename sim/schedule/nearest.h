// What somebody who mistyped a name may have meant.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace dualpipe {

// The first of the names that are closest to what was typed, by the fewest letters inserted, left out, replaced, or
// swapped with the next one; one per three letters at most. Case, dashes and underscores do not count, and one digit is
// not taken for another: zb-h1 is not zb-h2. Three letters or more also stand for the only name that begins with them.
// Empty: no name is close.
[[nodiscard]] std::string_view nearest_name(std::string_view typed, std::span<const std::string> names);

// To go on with after "there is no …": "; did you mean 1f1b?", or nothing.
[[nodiscard]] std::string did_you_mean(std::string_view typed, std::span<const std::string> names);

}  // namespace dualpipe
