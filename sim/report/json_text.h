// A JSON document as we write it. Private: users of the library need no nlohmann/json.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/report/title.h"

namespace dualpipe::detail::report {

// In ASCII alone, like json_string() (printable.h): the names in a document may consist of any bytes, and the text may
// be printed on a terminal.
[[nodiscard]] inline std::string json_text(const nlohmann::ordered_json& document) {
  return document.dump(2, ' ', true, nlohmann::ordered_json::error_handler_t::replace) + '\n';
}

// The beginning of a document.
[[nodiscard]] inline nlohmann::ordered_json json_title(const ReportTitle& title) {
  return {{"schedule", title.schedule},
          {"ranks", title.ranks},
          {"stages", title.stages},
          {"chains", title.chains},
          {"microbatches", title.micro_batches}};
}

// [{"cause": …, "ns": …}, …]: those that there are.
[[nodiscard]] inline nlohmann::ordered_json causes_json(const Causes& causes) {
  auto json = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < cause_names.size(); ++i) {
    if (causes.time[i] == 0) continue;
    json.push_back(nlohmann::ordered_json{{"cause", cause_names[i]}, {"ns", causes.time[i]}});
  }
  return json;
}

}  // namespace dualpipe::detail::report
