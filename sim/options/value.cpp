#include "dualpipe/sim/options/value.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/schedule/nearest.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {

std::vector<std::string> split_list(std::string_view text) {
  const std::vector<std::string_view> parts = split_at(',', text);
  return {parts.begin(), parts.end()};
}

void check_choice(std::string_view option, const std::string& text, std::span<const std::string> choices) {
  if (std::ranges::find(choices, text) != choices.end()) return;
  throw InputError(fmt::format("{}: it is one of {}, and not {}{}", option, fmt::join(choices, ", "),
                               detail::schedule::quote(text), did_you_mean(text, choices)));
}

}  // namespace dualpipe
