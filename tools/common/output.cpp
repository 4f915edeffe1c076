#include "tools/common/output.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <system_error>

#include "dualpipe/sim/report/output_file.h"
#include "dualpipe/sim/report/printable.h"

namespace dualpipe {
namespace {

// What is at the place, if there is anything. `standard`: the descriptor that "-" stands for.
std::optional<struct stat> found_at(const std::string& path, int standard) {
  struct stat found {};
  const int failed = path == "-" ? fstat(standard, &found) : stat(path.c_str(), &found);
  return failed == 0 ? std::optional(found) : std::nullopt;
}

// Of a file that is not there yet. Names that differ in case alone are one file on some file systems, and cannot be
// told from two before they are written.
std::string name_to_come(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::string name = fs::weakly_canonical(fs::absolute(target_of_output(path)), error).string();
  std::ranges::transform(name, name.begin(),
                         [](char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c); });
  return name;
}

// Two results in a pipe or a socket would be one text. But one that is read is not written over by what goes into it: a
// process may have the same socket on either side.
bool holds_one_result(const struct stat& place) { return !S_ISCHR(place.st_mode) && !S_ISBLK(place.st_mode); }
bool can_be_written_over(const struct stat& place) { return S_ISREG(place.st_mode); }

// Whether what is written to `a` does not stay apart from what is in `b`; `b_standard` as above.
bool is_one_place(const std::string& a, const std::string& b, int b_standard) {
  const auto at_a = found_at(a, STDOUT_FILENO);
  const auto at_b = found_at(b, b_standard);
  if (at_a && at_b) {
    const bool matters = b_standard == STDIN_FILENO ? can_be_written_over(*at_b) : holds_one_result(*at_b);
    return matters && at_a->st_dev == at_b->st_dev && at_a->st_ino == at_b->st_ino;
  }
  return !at_a && !at_b && a != "-" && b != "-" && name_to_come(a) == name_to_come(b);
}

[[noreturn]] void refuse_both(const NamedFile& a, const NamedFile& b) {
  const std::string options = fmt::format("{} and {}", a.option, b.option);
  if (a.path == "-" && b.path == "-") {
    throw CLI::ValidationError(options, "only one of them can go to standard output; name a file");
  }
  throw CLI::ValidationError(
      options, fmt::format("both would write {}; give each a file of its own", a.path == "-" ? b.path : a.path));
}

// Empty where it is not set, which means the same for all that we ask for.
std::string_view environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

void check_apart(std::span<const NamedFile> results, std::span<const NamedFile> read) {
  for (std::size_t i = 0; i < results.size(); ++i) {
    const NamedFile& result = results[i];
    if (result.path.empty()) continue;
    for (const NamedFile& other : results.first(i)) {
      if (other.path.empty()) continue;
      if (other.path == "-" && result.path == "-") refuse_both(other, result);
      if (is_one_place(other.path, result.path, STDOUT_FILENO)) refuse_both(other, result);
    }
    for (const NamedFile& source : read) {
      if (source.path.empty() || source.holds == result.holds) continue;
      if (!is_one_place(result.path, source.path, STDIN_FILENO)) continue;
      throw CLI::ValidationError(std::string(result.option),
                                 fmt::format("it would write over {}, which {} reads; give it another file",
                                             source.path == "-" ? result.path : source.path, source.option));
    }
  }
}

void check_output(const std::string& path) {
  if (path != "-") check_output_file(path);
}

void write_output(const std::string& path, const std::function<void(std::ostream&)>& write) {
  if (path == "-") return write_checked(std::cout, "standard output", write);
  write_output_file(path, write);
}

void print_notes(std::span<const std::string> remarks) {
  for (const std::string& remark : remarks) std::cerr << "note: " << in_locale(printable_lines(remark)) << '\n';
}

void print(std::string_view text) {
  write_output("-", [&](std::ostream& out) { out << in_locale(text); });
}

bool terminal_has_color() {
  if (!environment("NO_COLOR").empty()) return false;
  const std::string_view forced = environment("CLICOLOR_FORCE");
  if (!forced.empty() && forced != "0") return true;
  const std::string_view terminal = environment("TERM");
  return environment("CLICOLOR") != "0" && !terminal.empty() && terminal != "dumb" && isatty(STDOUT_FILENO) != 0;
}

int terminal_width(int otherwise) {
  constexpr int most = 100'000;
  const std::string_view wanted = environment("COLUMNS");
  int columns = 0;
  const auto [end, error] = std::from_chars(wanted.data(), wanted.data() + wanted.size(), columns);
  if (error == std::errc{} && end == wanted.data() + wanted.size() && columns > 0) return std::min(columns, most);
  winsize size{};
  if (isatty(STDOUT_FILENO) == 0 || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return otherwise;
  return size.ws_col;
}

bool locale_has_utf8() {
  for (const char* const name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    std::string locale(environment(name));
    if (locale.empty()) continue;
    std::ranges::transform(locale, locale.begin(),
                           [](char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c); });
    return locale.find("utf-8") != std::string::npos || locale.find("utf8") != std::string::npos;
  }
  return true;
}

std::string in_locale(std::string_view text) {
  if (locale_has_utf8()) return std::string(text);
  std::string result;
  for (std::size_t i = 0; i < text.size();) {
    std::size_t size = 1;
    std::string_view instead = text.substr(i, 1);
    for (const auto& [ours, ascii] : {std::pair<std::string_view, std::string_view>{"µ", "u"}, {"…", "..."}}) {
      if (!text.substr(i).starts_with(ours)) continue;
      size = ours.size();
      instead = ascii;
    }
    result += instead;
    i += size;
  }
  return result;
}

}  // namespace dualpipe
