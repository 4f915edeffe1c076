// Traces on the command line: one or more files of a run, of our own tools or of others.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/trace/foreign.h"
#include "dualpipe/sim/trace/measured_run.h"
#include "tools/common/options.h"

namespace dualpipe {

// By what it begins with: a trace is JSON without the name of our schedules' format, or compressed.
[[nodiscard]] bool is_trace(std::string_view begin);
// Of a file that is there; a name of the catalog is none.
[[nodiscard]] bool is_trace_file(const std::string& path);

// --chunks, where it is one of several options of a shape.
[[nodiscard]] std::string chunks_given(const ShapeOptions& shape);

struct TraceOptions {
  std::vector<std::string> files;
  std::string format = "auto";
  std::string range, step, schedule;
  std::string chunks;  // of Primus' files

  // What is to be known of them besides the files, and --chunks.
  void add_to(CLI::App& app);
  // One that is given; empty: none is.
  [[nodiscard]] std::string given() const;

  // Whose traces they are, as it is said or as the first file shows. Throws InputError.
  [[nodiscard]] TraceFormat kind() const;

  struct Loaded {
    MeasuredRun measured;
    std::vector<MeasuredMessage> messages;
    std::optional<Time> clock_width;
    std::vector<std::string> remarks;
  };
  // Throws InputError, and CLI::ValidationError, wrong usage, for an option that such traces have no use for.
  [[nodiscard]] Loaded load() const;
};

}  // namespace dualpipe
