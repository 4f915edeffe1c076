// The value of an option, as text.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

// What is wrong with a value is said by who parses it; here, of which option.
template <typename Parse>
auto value_of(std::string_view option, const std::string& text, Parse parse) {
  try {
    return parse(text);
  } catch (const InputError& error) {
    throw InputError(std::string(option).append(": ").append(error.what()));
  }
}

// "a,b,…", in parts; one of them may be empty.
[[nodiscard]] std::vector<std::string> split_list(std::string_view text);

// Throws InputError, which says what may have been meant, where the value is none of these.
void check_choice(std::string_view option, const std::string& text, std::span<const std::string> choices);

}  // namespace dualpipe
