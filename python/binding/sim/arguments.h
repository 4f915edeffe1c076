// Python's arguments as the options of sim/options/, which read, check and refuse them: the names are those of the
// command line with '_' for '-', the values the same, with their units.
#pragma once

#include <nanobind/nanobind.h>

#include <functional>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/options/cost_options.h"
#include "dualpipe/sim/options/schedule_options.h"
#include "dualpipe/sim/options/sweep_options.h"
#include "dualpipe/sim/options/table_options.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::python {

namespace nb = nanobind;

// One keyword: where its value goes, of which one pointer is set.
struct Keyword {
  std::string_view name;
  std::string* text = nullptr;
  std::vector<std::string>* list = nullptr;
  bool* flag = nullptr;
  bool names_files = false;
};

using Keywords = std::vector<Keyword>;

[[nodiscard]] Keywords keywords_of(ShapeOptions& shape);  // chunks and the like
[[nodiscard]] Keywords keywords_of(ScheduleOptions& schedule);
[[nodiscard]] Keywords keywords_of(CostOptions& costs);   // all but the file
[[nodiscard]] Keywords keywords_of(TableOptions& table);  // its own, and `shape`'s
[[nodiscard]] Keywords keywords_of(SweepOptions& sweep);  // its own, without what is set

// "ranks: str | float | None = None, …", for a signature.
[[nodiscard]] std::string signature_of(const Keywords& keywords);
// Throws TypeError for a keyword that is not among these, and for a value that is no text, number, path or list.
void read(const nb::kwargs& given, const Keywords& keywords);

// A text, number or path as text; none for None.
[[nodiscard]] std::optional<std::string> text_of(std::string_view keyword, nb::handle value);
[[nodiscard]] std::string path_of(nb::handle path);
// BEGIN and END, since the start of the first op.
[[nodiscard]] std::optional<Span> window_of(nb::handle window);

// A package that what is asked for needs. Throws ImportError, with the remedy.
[[nodiscard]] nb::module_ package(const char* name);
// A text of JSON as Python has it.
[[nodiscard]] nb::object from_json(const std::string& text);
[[nodiscard]] std::string written(const std::function<void(std::ostream&)>& write);

// Of the terminal that Python's standard output is; 0 where it is none.
[[nodiscard]] std::size_t columns_of_terminal();

// "--memory-limit 8" in a text that was made for a command line, as Python has it: memory_limit=8.
[[nodiscard]] std::string in_python(std::string_view text);
[[nodiscard]] std::vector<std::string> in_python(std::vector<std::string> remarks);

inline constexpr auto path_type = "str | os.PathLike[str]";

}  // namespace dualpipe::python
