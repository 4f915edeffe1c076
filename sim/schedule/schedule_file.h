// A schedule or a program in a file of either format, PyTorch's CSV (csv.h) or our JSON (json.h). The content tells
// them apart, not the name: JSON begins with a brace.
#pragma once

#include <iosfwd>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "dualpipe/sim/schedule/csv.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// What a CSV file leaves open, as in CsvOptions; a JSON file says it itself.
struct ScheduleFileOptions {
  std::optional<int> chains = std::nullopt;       // 1 unless given
  std::optional<Letters> letters = std::nullopt;  // by content unless given
  std::vector<std::string>* remarks = nullptr;
};

// `source` names the file in errors. Throws InputError with the place in the file, and where chains or letters are
// given for a JSON file. Does not validate.
[[nodiscard]] std::variant<Schedule, Program> read_schedule(std::istream& in, const std::string& source,
                                                            const ScheduleFileOptions& options = {});

// The same of a file; throws InputError, too, where it cannot be opened.
[[nodiscard]] std::variant<Schedule, Program> load_schedule(const std::string& path,
                                                            const ScheduleFileOptions& options = {});

}  // namespace dualpipe
