// The text of an SVG file while it is written. Private to sim/report.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

namespace dualpipe::detail::report {

// Positions are integers, hundredths of a pixel, so that every machine writes the same digits.
[[nodiscard]] inline std::string pixels(std::int64_t hundredths) {
  if (hundredths < 0) return "-" + pixels(-hundredths);
  if (hundredths % 100 == 0) return fmt::format("{}", hundredths / 100);
  if (hundredths % 10 == 0) return fmt::format("{}.{}", hundredths / 100, hundredths / 10 % 10);
  return fmt::format("{}.{:02}", hundredths / 100, hundredths % 100);
}

class SvgText {
 public:
  template <typename... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }
  void raw(std::string_view text) { text_ += text; }

  [[nodiscard]] std::string take() && { return std::move(text_); }

 private:
  std::string text_;
};

}  // namespace dualpipe::detail::report
