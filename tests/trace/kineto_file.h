// Traces of other tools, as tests read and write them.
#pragma once

#include <zlib.h>

#include <fstream>
#include <string>
#include <variant>
#include <vector>

#include "dualpipe/sim/schedule/schedule_file.h"
#include "dualpipe/sim/trace/foreign.h"

namespace dualpipe::test {

inline std::string golden_trace(const std::string& name) {
  return std::string(DUALPIPE_TESTS_DIR) + "/goldens/traces/" + name;
}

inline Schedule order_of(const std::string& name) {
  auto loaded = load_schedule(golden_trace(name + "_order.csv"));
  const auto* program = std::get_if<Program>(&loaded);
  return program != nullptr ? program->schedule : std::get<Schedule>(loaded);
}

inline std::string unpacked(const std::string& path) {
  gzFile in = gzopen(path.c_str(), "rb");
  std::string text;
  char buffer[1 << 16];
  for (int size = gzread(in, buffer, sizeof buffer); size > 0; size = gzread(in, buffer, sizeof buffer)) {
    text.append(buffer, static_cast<std::size_t>(size));
  }
  gzclose(in);
  return text;
}

inline void write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = text.find(from); at != text.npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

// An event of torch.profiler's; times in microseconds.
inline std::string event(const std::string& category, const std::string& name, Time begin, Time duration,
                         const std::string& args = "") {
  return R"({"ph": "X", "cat": ")" + category + R"(", "name": ")" + name + R"(", "pid": 1, "tid": 1, "ts": )" +
         std::to_string(begin) + R"(, "dur": )" + std::to_string(duration) + R"(, "args": {)" + args + "}}";
}

inline std::string document(int rank, const std::vector<std::string>& events) {
  std::string text = R"({"distributedInfo": {"rank": )" + std::to_string(rank) + R"(}, "traceEvents": [)";
  for (const std::string& each : events) text += (&each == events.data() ? "" : ",\n") + each;
  return text + "]}";
}

inline std::string text_of(const TraceRank& rank) {
  std::string text;
  for (std::size_t i = 0; i < rank.ops.size(); ++i) {
    text += to_text(rank.ops[i]) + " " + std::to_string(rank.spans[i].start) + "-" + std::to_string(rank.spans[i].end) +
            "\n";
  }
  return text;
}

}  // namespace dualpipe::test
