// How far a long run is, on stderr: a bar that is drawn again and again on a terminal, a line now and then elsewhere.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace dualpipe {

class Progress {
 public:
  enum class Shown : std::uint8_t { never, bar, lines };

  // `noun`: what is counted, in the plural.
  Progress(Shown shown, std::size_t all, std::string noun);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

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
  Clock::time_point begin_;
  Clock::time_point next_;
  std::size_t before_ = 0;
  bool has_begun_ = false;
};

}  // namespace dualpipe
