// The rules that Perfetto's JSON importer sets for events, and where they are kept:
//
//   - ts and dur are microseconds, rounded separately to nanoseconds: integers with exactly three decimals
//   (microseconds).
//   - Threads sort by tid (TraceWriter::thread).
//   - An arrow's ends come after the slices in the file, start before finish, an id used once, "bp":"e"
//   (TraceWriter::arrow).
#include "dualpipe/sim/trace/trace_writer.h"

#include <fmt/format.h>

#include <cassert>
#include <ostream>

#include "dualpipe/sim/report/printable.h"

namespace dualpipe {
namespace {

std::string microseconds(Time time) {
  const auto bits = static_cast<std::uint64_t>(time);
  const std::uint64_t size = time < 0 ? ~bits + 1 : bits;
  return fmt::format("{}{}.{:03}", time < 0 ? "-" : "", size / 1000, size % 1000);
}

}  // namespace

void TraceArgs::add_key(std::string_view key) {
  if (!members_.empty()) members_ += ',';
  members_ += json_string(key) + ":";
}

TraceArgs& TraceArgs::add(std::string_view key, std::int64_t value) {
  add_key(key);
  members_ += fmt::format("{}", value);
  return *this;
}

TraceArgs& TraceArgs::add(std::string_view key, std::string_view value) {
  add_key(key);
  members_ += json_string(value);
  return *this;
}

TraceArgs& TraceArgs::add(std::string_view key, const TraceArgs& value) {
  add_key(key);
  members_ += value.json();
  return *this;
}

TraceArgs& TraceArgs::add(const TraceArgs& others) {
  if (!members_.empty() && !others.members_.empty()) members_ += ',';
  members_ += others.members_;
  return *this;
}

TraceWriter::TraceWriter(std::ostream& out) : out_(out), buffer_("{\"traceEvents\":[") {}

void TraceWriter::event(std::string_view json) {
  constexpr std::size_t buffer_size = 1U << 16U;
  buffer_ += first_ ? "\n" : ",\n";
  first_ = false;
  buffer_ += json;
  if (buffer_.size() >= buffer_size) flush();
}

void TraceWriter::flush() {
  out_.write(buffer_.data(), static_cast<std::streamsize>(buffer_.size()));
  buffer_.clear();
}

void TraceWriter::finish() {
  buffer_ += "\n]}\n";
  flush();
}

void TraceWriter::process(int pid, std::string_view name) {
  event(fmt::format(R"({{"ph":"M","pid":{},"name":"process_name","args":{{"name":{}}}}})", pid, json_string(name)));
}

void TraceWriter::thread(TraceTrack track, std::string_view name, const TraceArgs& args) {
  const TraceArgs all = TraceArgs().add("name", name).add(args);
  event(fmt::format(R"({{"ph":"M","pid":{},"tid":{},"name":"thread_name","args":{}}})", track.pid, track.tid,
                    all.json()));
  event(fmt::format(R"({{"ph":"M","pid":{},"tid":{},"name":"thread_sort_index","args":{{"sort_index":{}}}}})",
                    track.pid, track.tid, track.tid));
}

void TraceWriter::slice(TraceTrack track, std::string_view category, std::string_view name, Span span,
                        const TraceArgs& args) {
  event(fmt::format(R"({{"ph":"X","pid":{},"tid":{},"ts":{},"dur":{},"cat":{},"name":{},"args":{}}})", track.pid,
                    track.tid, microseconds(span.start), microseconds(span.end - span.start), json_string(category),
                    json_string(name), args.json()));
}

void TraceWriter::counter(int pid, std::string_view name, std::string_view key, Time time, std::int64_t value) {
  event(fmt::format(R"({{"ph":"C","pid":{},"ts":{},"name":{},"args":{{{}:{}}}}})", pid, microseconds(time),
                    json_string(name), json_string(key), value));
}

void TraceWriter::arrow(std::string_view category, std::string_view name, TraceTrack from, Time from_time,
                        TraceTrack to, Time to_time) {
  assert(from_time <= to_time);
  const std::int64_t id = ++arrows_;
  const std::string shared = fmt::format(R"("id":{},"cat":{},"name":{})", id, json_string(category), json_string(name));
  event(
      fmt::format(R"({{"ph":"s","pid":{},"tid":{},"ts":{},{}}})", from.pid, from.tid, microseconds(from_time), shared));
  event(fmt::format(R"({{"ph":"f","bp":"e","pid":{},"tid":{},"ts":{},{}}})", to.pid, to.tid, microseconds(to_time),
                    shared));
}

}  // namespace dualpipe
