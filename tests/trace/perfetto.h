// A Chrome trace, read by the rules of Perfetto's importer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::test::perfetto {

using Track = std::pair<int, int>;  // pid, tid

struct Slice {
  Track track;
  Span span;
  std::string name;
  nlohmann::json args;
  std::size_t line = 0;
};

struct Arrow {
  Slice from;
  Slice to;
};

// Each rule that the text breaks is reported to Boost.Test at once.
class Trace {
 public:
  explicit Trace(const std::string& text);

  std::vector<Slice> slices;
  std::vector<Arrow> arrows;
  std::map<std::string, std::vector<std::pair<Time, std::int64_t>>> counters;  // by name and key
  std::map<int, std::string> processes;
  std::map<Track, std::string> threads;

  // The names of the threads in the order in which they are shown, which is by tid.
  [[nodiscard]] std::vector<std::string> rows() const;
  [[nodiscard]] std::vector<Slice> in_row(std::string_view row) const;
  [[nodiscard]] std::vector<Slice> in_lane(int rank, std::string_view lane) const;  // of the only run

 private:
  struct End {
    Track track;
    Time time;
    nlohmann::json event;
    std::size_t line;
  };

  void read(const nlohmann::json& event);
  void read_name(const nlohmann::json& event, Track track);
  void check_text() const;
  void check_names() const;
  void check_nesting() const;
  [[nodiscard]] std::optional<Slice> open_at(const End& end) const;
  void check_arrows();

  std::string text_;
  std::size_t line_ = 0;
  std::vector<End> starts_;
  std::vector<End> finishes_;
};

}  // namespace dualpipe::test::perfetto
