// A JSON document as we write it. Private: users of the library need no nlohmann/json.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace dualpipe::detail::report {

// ASCII alone, as json_string() (printable.h): names in it may be of any bytes, and it may go to a terminal.
[[nodiscard]] inline std::string json_text(const nlohmann::ordered_json& document) {
  return document.dump(2, ' ', true, nlohmann::ordered_json::error_handler_t::replace) + '\n';
}

}  // namespace dualpipe::detail::report
