// What an exception says. Private to exec and its tools.
#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <string>

namespace dualpipe::detail::replay {

// Without the stack trace that LibTorch adds.
[[nodiscard]] inline std::string text_of(const std::exception& error) {
  const auto* const of_torch = dynamic_cast<const c10::Error*>(&error);
  return of_torch == nullptr ? error.what() : of_torch->what_without_backtrace();
}

}  // namespace dualpipe::detail::replay
