// Where results go: a file that is there whole or not at all, or standard output.
#pragma once

#include <functional>
#include <iosfwd>
#include <string>

namespace dualpipe {

// write_output_file() (sim/report/output_file.h), or standard output for "-". Throws InputError that names the path and
// the system's reason.
void write_output(const std::string& path, const std::function<void(std::ostream&)>& write);

// Throws what write_output() would throw for a path that cannot be written, before the work whose result goes there.
void check_output(const std::string& path);

// Standard output is a terminal that wants colour (NO_COLOR is not set).
[[nodiscard]] bool terminal_has_color();
// Its columns, or `otherwise` where it is none.
[[nodiscard]] int terminal_width(int otherwise);

}  // namespace dualpipe
