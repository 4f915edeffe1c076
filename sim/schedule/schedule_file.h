// A schedule or a program in a file of either format, PyTorch's CSV (csv.h) or our JSON (json.h). The content tells
// them apart, not the name: JSON begins with a brace.
#pragma once

#include <iosfwd>
#include <optional>
#include <string>
#include <variant>

#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// `chains`: how many chains the stages of a CSV file are, 1 unless given; a JSON file says so itself. `source` names
// the file in errors. Throws InputError with the place in the file, and where the number of chains is given for a JSON
// file. Does not validate.
[[nodiscard]] std::variant<Schedule, Program> read_schedule(std::istream& in, const std::string& source,
                                                            std::optional<int> chains = std::nullopt);

// The same of a file; throws InputError, too, where it cannot be opened.
[[nodiscard]] std::variant<Schedule, Program> load_schedule(const std::string& path,
                                                            std::optional<int> chains = std::nullopt);

}  // namespace dualpipe
