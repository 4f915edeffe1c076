#include "progress.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <utility>

#include "tools/common/output.h"

namespace dualpipe {
namespace {

std::string time_text(double seconds) {
  const auto all = static_cast<long>(seconds + 0.5);
  if (all >= 3600) return fmt::format("{} h {:02} min", all / 3600, all / 60 % 60);
  return all >= 60 ? fmt::format("{} min {:02} s", all / 60, all % 60) : fmt::format("{} s", all);
}

}  // namespace

bool TerminalLine::is_seen() { return isatty(STDERR_FILENO) != 0; }

void TerminalLine::show(const std::string& text) {
  std::size_t end = std::min(text.size(), static_cast<std::size_t>(std::max(20, terminal_width(80)) - 1));
  while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;  // whole characters
  std::cerr << "\r\033[K" << in_locale(text.substr(0, end)) << std::flush;
  is_there_ = true;
}

void TerminalLine::clear() {
  if (is_there_) std::cerr << "\r\033[K" << std::flush;
  is_there_ = false;
}

Progress::Progress(Shown shown, std::size_t all, std::string noun)
    : shown_(shown), all_(all), noun_(std::move(noun)), begin_(Clock::now()), next_(begin_) {}

Progress::Shown Progress::where_people_look() { return TerminalLine::is_seen() ? Shown::bar : Shown::never; }

void Progress::at(std::size_t done) {
  if (shown_ == Shown::never) return;
  const auto now = Clock::now();
  if (!has_begun_) before_ = done;
  has_begun_ = true;
  if (now < next_ && done < all_) return;
  next_ = now + (shown_ == Shown::bar ? std::chrono::milliseconds(200) : std::chrono::seconds(10));
  show(done, now);
}

void Progress::show(std::size_t done, Clock::time_point now) {
  const double seconds = std::chrono::duration<double>(now - begin_).count();
  const double rate = seconds > 0 ? static_cast<double>(done - before_) / seconds : 0;
  const std::size_t percent = all_ == 0 ? 100 : done * 100 / all_;
  std::string text = fmt::format("{} of {} {}, {} %", done, all_, noun_, percent);
  if (rate > 0) text += fmt::format(", {:.0f} per second", rate);
  if (rate > 0 && done < all_) text += fmt::format(", {} left", time_text(static_cast<double>(all_ - done) / rate));
  if (shown_ == Shown::lines) {
    std::cerr << text << '\n';
    return;
  }
  constexpr std::size_t bar_width = 20;
  const std::size_t filled = percent * bar_width / 100;
  text = fmt::format("[{}{}] {}", std::string(filled, '#'), std::string(bar_width - filled, '.'), text);
  line_.show(text);
}

}  // namespace dualpipe
