// The Chrome trace as a format: its events, one after another, whichever program wrote them. It knows nothing of
// pipelines; run_reader.h does.
//
// Both forms of the format are read: an object whose "traceEvents" is the list of events, and the list by itself, which
// may lack its end, as the format allows. Either may be compressed with gzip. What else the object has is stepped over.
// Nothing is kept of an event once it has been handed over, so that memory does not grow with the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe {

// One event. A value is named by its key ("ph", "ts"), one of the event's arguments by "args." and its key, and is
// looked at only when it is asked for: so an event of which nobody wants anything may hold anything.
class TraceEvent {
 public:
  // As they stand in the file: a key in its quotes, a value as JSON text.
  struct Member {
    std::string_view key;
    std::string_view value;
    bool in_args = false;
  };

  // Number `index` of a list that errors call by this name. All that it refers to must outlive it.
  TraceEvent(const std::string& source, std::string_view list, std::size_t index, std::span<const Member> members)
      : source_(source), list_(list), index_(index), members_(members) {}

  [[nodiscard]] bool has(std::string_view key) const { return find(key).has_value(); }
  // Whether it is there, and is a string of this text.
  [[nodiscard]] bool is(std::string_view key, std::string_view text) const;

  // All throw InputError, which names file, event and key, where the value is missing, is there twice, or is of another
  // type or range.
  [[nodiscard]] std::string_view json(std::string_view key) const;  // as it is written, of any type
  [[nodiscard]] std::string text(std::string_view key) const;
  [[nodiscard]] std::int64_t integer(std::string_view key, std::int64_t least, std::int64_t most) const;
  // From "ts", and "dur" long. These are microseconds in decimal, with any number of digits and an exponent or none; an
  // end is exact before it is rounded to a nanosecond, so that slices which touch in the file touch here, too.
  [[nodiscard]] Span span() const;
  // Of one of them alone: the time of an event that has no duration.
  [[nodiscard]] Time time(std::string_view key) const;

  [[nodiscard]] std::string place() const;  // "traceEvents[7]"
  [[noreturn]] void fail(std::string_view what) const;
  [[noreturn]] void fail(std::string_view key, std::string_view what) const;

 private:
  [[nodiscard]] std::optional<std::string_view> find(std::string_view key) const;

  const std::string& source_;
  std::string_view list_;
  std::size_t index_;
  std::span<const Member> members_;
};

// What else a trace's object has, besides its events: `take` is called with the JSON text of those that have these
// keys.
struct TraceMembers {
  std::span<const std::string_view> keys = {};
  std::function<void(std::string_view key, std::string_view json)> take = {};
};

// Calls `take` with each event, in the order of the file; the event is gone when that returns. Throws InputError,
// naming file and place, for what is not JSON, is no trace, or is a damaged gzip file; and what `take` throws.
void read_trace_events(std::istream& in, const std::string& source, const std::function<void(const TraceEvent&)>& take,
                       const TraceMembers& members = {});

}  // namespace dualpipe
