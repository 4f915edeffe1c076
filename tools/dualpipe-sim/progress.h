// How far a long run is, on stderr: a bar that is drawn again and again on a terminal, a line now and then elsewhere.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace dualpipe {

// A line on stderr that is written over and over, where that is a terminal, and is gone at the end.
class TerminalLine {
 public:
  TerminalLine() = default;
  ~TerminalLine() { clear(); }
  TerminalLine(const TerminalLine&) = delete;
  TerminalLine& operator=(const TerminalLine&) = delete;

  [[nodiscard]] static bool is_seen();
  void show(const std::string& text);  // as much of it as there is room for
  void clear();

 private:
  bool is_there_ = false;
};

class Progress {
 public:
  enum class Shown : std::uint8_t { never, bar, lines };

  // `noun`: what is counted, in the plural.
  Progress(Shown shown, std::size_t all, std::string noun);

  // How many are done. The first call says how many were done before.
  void at(std::size_t done);

  // A bar on a terminal, nothing elsewhere.
  [[nodiscard]] static Shown where_people_look();

 private:
  using Clock = std::chrono::steady_clock;
  void show(std::size_t done, Clock::time_point now);

  Shown shown_;
  std::size_t all_;
  std::string noun_;
  TerminalLine line_;
  Clock::time_point begin_;
  Clock::time_point next_;
  std::size_t before_ = 0;
  bool has_begun_ = false;
};

}  // namespace dualpipe
