// Options that do not go together, or do nothing.
#pragma once

#include <string>
#include <string_view>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

// An option that contradicts another one, or that nothing which is asked for has a use for. A command line takes it for
// wrong usage.
class UsageError : public InputError {
 public:
  using InputError::InputError;
  UsageError(std::string_view option, std::string_view why)
      : InputError(std::string(option).append(": ").append(why)) {}
};

}  // namespace dualpipe
