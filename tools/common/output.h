// Where results go: a file that is there whole or not at all, or standard output.
#pragma once

#include <functional>
#include <iosfwd>
#include <span>
#include <string>
#include <string_view>

namespace dualpipe {

// write_output_file() (sim/report/output_file.h), or standard output for "-". Throws InputError that names the path and
// the system's reason.
void write_output(const std::string& path, const std::function<void(std::ostream&)>& write);

// What a user must know of what was read, on stderr: where no report is read by people, which would have it.
void print_notes(std::span<const std::string> remarks);

// A file that the command line names.
struct NamedFile {
  std::string_view option;  // by which it is named
  std::string path;         // "-" is standard output, or for what is read input; empty: not given
  std::string_view holds;   // what is in it: "costs", "trace", …
};

// Throws CLI::ValidationError, wrong usage that names both options, where a result would be lost: by another one in the
// same file, however its name is spelled and whatever links lead there, or by two on standard output; or where it would
// replace what the run reads. But the new one of what was read may: a checkpoint, or costs measured anew. Devices take
// all, /dev/null above all.
void check_apart(std::span<const NamedFile> results, std::span<const NamedFile> read);

// Throws what write_output() would throw for a path that cannot be written, before the work whose result goes there.
void check_output(const std::string& path);

// Text for people, on standard output: as in_locale() has it. Throws as write_output().
void print(std::string_view text);

// Whether standard output is to have colour: a terminal does, unless NO_COLOR is set, CLICOLOR is 0, or it is a dumb
// one; with CLICOLOR_FORCE whatever else it is, but for NO_COLOR.
[[nodiscard]] bool terminal_has_color();
// Its columns: COLUMNS, or those of the terminal, or `otherwise` where it is none.
[[nodiscard]] int terminal_width(int otherwise);

// Whether LC_ALL, LC_CTYPE or LANG names a locale that has UTF-8. Where none of them is set, as in a container or a
// service, whoever reads the text takes it for UTF-8 nowadays.
[[nodiscard]] bool locale_has_utf8();
// The text with "us" for "µs", and "..." for "…", where it does not. Names of files stay as they are.
[[nodiscard]] std::string in_locale(std::string_view text);

}  // namespace dualpipe
