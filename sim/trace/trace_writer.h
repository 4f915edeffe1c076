// The Chrome trace as a format: events, one per line. It knows nothing of pipelines; chrome_trace.h does.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>

#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

// The `args` of an event: a JSON object that grows.
class TraceArgs {
 public:
  TraceArgs& add(std::string_view key, std::int64_t value);
  TraceArgs& add(std::string_view key, std::string_view value);
  TraceArgs& add(std::string_view key, const TraceArgs& value);

  TraceArgs& add(const TraceArgs& others);

  [[nodiscard]] std::string json() const { return "{" + members_ + "}"; }

 private:
  void add_key(std::string_view key);
  std::string members_;
};

struct TraceTrack {
  int pid = 0;
  int tid = 0;
};

// Writes events as they come: nothing is kept.
class TraceWriter {
 public:
  explicit TraceWriter(std::ostream& out);

  void process(int pid, std::string_view name);
  // Sorted by tid. `args`: what is to be known of it besides its name.
  void thread(TraceTrack track, std::string_view name, const TraceArgs& args = {});
  void slice(TraceTrack track, std::string_view category, std::string_view name, Span span, const TraceArgs& args);
  void counter(int pid, std::string_view name, std::string_view key, Time time, std::int64_t value);
  // After both slices, at times when they are open; not backwards in time.
  void arrow(std::string_view category, std::string_view name, TraceTrack from, Time from_time, TraceTrack to,
             Time to_time);

  // Closes the document. Nothing may be written after it.
  void finish();

 private:
  void event(std::string_view json);
  void flush();

  std::ostream& out_;
  std::string buffer_;
  bool first_ = true;
  std::int64_t arrows_ = 0;
};

}  // namespace dualpipe
