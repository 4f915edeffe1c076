#include "tools/common/output.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>

#include "dualpipe/sim/report/output_file.h"

namespace dualpipe {

void check_output(const std::string& path) {
  if (path != "-") check_output_file(path);
}

void write_output(const std::string& path, const std::function<void(std::ostream&)>& write) {
  if (path == "-") return write_checked(std::cout, "standard output", write);
  write_output_file(path, write);
}

bool terminal_has_color() { return isatty(STDOUT_FILENO) != 0 && std::getenv("NO_COLOR") == nullptr; }

int terminal_width(int otherwise) {
  winsize size{};
  if (isatty(STDOUT_FILENO) == 0 || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return otherwise;
  return size.ws_col;
}

}  // namespace dualpipe
