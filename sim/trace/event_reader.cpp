#include "dualpipe/sim/trace/event_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>
#include <vector>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/quote.h"
#include "dualpipe/sim/trace/json_scanner.h"

namespace dualpipe {

using detail::schedule::quote;
using detail::trace::ByteInput;
using detail::trace::decoded_string;
using detail::trace::JsonScanner;

namespace {

__extension__ using Int128 = __int128;

constexpr std::string_view args_prefix = "args.";
constexpr std::size_t members_max = std::size_t{1} << 16U;  // of an event and its args

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Whether a string in its quotes stands for this text.
bool is_string(std::string_view json, std::string_view text) {
  if (json.find('\\') == std::string_view::npos) {
    return json.size() == text.size() + 2 && json.front() == '"' && json.substr(1, text.size()) == text;
  }
  return decoded_string(json) == text;
}

std::string_view type_of(std::string_view json) {
  switch (json.front()) {
    case '"':
      return "a string";
    case '{':
      return "an object";
    case '[':
      return "a list";
    case 't':
    case 'f':
      return "a boolean";
    case 'n':
      return "null";
    default:
      return "a number";
  }
}

constexpr Int128 attoseconds_per_nanosecond = 1'000'000'000;
constexpr Int128 attoseconds_max = run_time_max * attoseconds_per_nanosecond;

// The number times ten to the `power`, without what is behind the point; no more than a little above attoseconds_max.
Int128 scaled(Int128 number, std::int64_t power) {
  for (; power > 0 && number != 0 && number <= attoseconds_max; --power) number *= 10;
  for (; power < 0 && number != 0; ++power) number /= 10;
  return number;
}

// A decimal number of microseconds in attoseconds, what is smaller cut off. Nothing where it is no such number.
std::optional<Int128> attoseconds(std::string_view json) {
  constexpr int attoseconds_power = 12;  // of a microsecond
  constexpr Int128 digits_full = attoseconds_max;
  std::string_view rest = json;
  const bool negative = rest.starts_with('-');
  if (negative) rest.remove_prefix(1);
  if (rest.empty() || !is_digit(rest.front())) return std::nullopt;
  Int128 number = 0;
  std::int64_t power = attoseconds_power;
  bool behind_point = false;
  for (; !rest.empty() && (is_digit(rest.front()) || (rest.front() == '.' && !behind_point)); rest.remove_prefix(1)) {
    if (rest.front() == '.') {
      behind_point = true;
    } else if (number <= digits_full) {
      number = number * 10 + (rest.front() - '0');
      power -= behind_point ? 1 : 0;
    } else {
      power += behind_point ? 0 : 1;
    }
  }
  if (rest.starts_with('e') || rest.starts_with('E')) {
    rest.remove_prefix(rest.substr(1).starts_with('+') ? 2 : 1);
    constexpr std::int64_t beyond_any_time = 1000;
    std::int64_t exponent = 0;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), exponent);
    if (error == std::errc::invalid_argument) return std::nullopt;
    if (error == std::errc::result_out_of_range) exponent = rest.front() == '-' ? -beyond_any_time : beyond_any_time;
    power += std::clamp(exponent, -beyond_any_time, beyond_any_time);
    rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
  }
  if (!rest.empty()) return std::nullopt;
  return negative ? -scaled(number, power) : scaled(number, power);
}

// To the nearest nanosecond, up from the middle.
Time rounded(Int128 attoseconds) {
  const Int128 shifted = attoseconds + attoseconds_per_nanosecond / 2;
  const bool below = shifted % attoseconds_per_nanosecond < 0;
  return static_cast<Time>(shifted / attoseconds_per_nanosecond - (below ? 1 : 0));
}

class EventReader {
 public:
  EventReader(std::istream& in, const std::string& source, const std::function<void(const TraceEvent&)>& take,
              const TraceMembers& others)
      : source_(source), take_(take), others_(others), input_(in, source), scanner_(input_, source) {}

  void run() {
    const auto first = scanner_.peek();
    if (!first) scanner_.fail_unexpected("value");
    if (first == '[') {
      read_events("", true);
    } else if (first == '{') {
      read_document();
    } else {
      fail("expected an object, or a list of events");
    }
    if (scanner_.peek()) scanner_.fail_unexpected("end of input");
  }

 private:
  [[noreturn]] void fail(std::string_view what) const { throw InputError(fmt::format("{}: {}", source_, what)); }

  void read_document() {
    bool has_events = false;
    scanner_.expect('{', "object");
    if (!scanner_.take('}')) {
      do {
        const std::string key = read_key();
        if (!is_event_list(key)) {
          read_other(key);
          continue;
        }
        if (std::exchange(has_events, true)) fail("\"traceEvents\" is there twice");
        if (scanner_.peek() && scanner_.peek() != '[') fail("\"traceEvents\" is not a list");
        read_events("traceEvents", false);
      } while (scanner_.take(','));
      scanner_.expect('}', "object");
    }
    if (!has_events) fail("\"traceEvents\" is missing");
  }

  void read_other(std::string_view key) {
    const auto* const wanted = std::find_if(others_.keys.data(), others_.keys.data() + others_.keys.size(),
                                            [&](std::string_view each) { return is_string(key, each); });
    static_cast<void>(scanner_.peek());
    if (wanted == others_.keys.data() + others_.keys.size()) return static_cast<void>(scanner_.value());
    scanner_.mark();
    const auto slice = scanner_.value();
    others_.take(*wanted, scanner_.text(slice));
    scanner_.unmark();
  }

  [[nodiscard]] std::string read_key() {
    static_cast<void>(scanner_.peek());
    scanner_.mark();
    const auto slice = scanner_.key();
    std::string key(scanner_.text(slice));
    scanner_.unmark();
    return key;
  }
  [[nodiscard]] static bool is_event_list(std::string_view key) { return is_string(key, "traceEvents"); }

  void read_events(std::string_view name, bool may_lack_end) {
    scanner_.expect('[', "array");
    if (scanner_.take(']')) return;
    for (std::size_t index = 0; scanner_.peek() || !may_lack_end; ++index) {
      read_event(name, index);
      if (scanner_.take(',')) continue;
      if (scanner_.take(']') || (may_lack_end && !scanner_.peek())) return;
      scanner_.fail_unexpected("array");
    }
  }

  void read_event(std::string_view list, std::size_t index) {
    const auto first = scanner_.peek();
    if (!first) scanner_.fail_unexpected("value");
    if (first != '{') fail(fmt::format("{}[{}]: expected an event{}", list, index, first == '[' ? ", not a list" : ""));
    scanner_.mark();
    places_.clear();
    read_members(false);
    members_.clear();
    for (const Place& each : places_) {
      members_.push_back({scanner_.text(each.key), scanner_.text(each.value), each.in_args});
    }
    take_(TraceEvent(source_, list, index, members_));
    scanner_.unmark();
  }

  // Of an event, or of its args.
  void read_members(bool in_args) {
    scanner_.expect('{', "object");
    if (scanner_.take('}')) return;
    do {
      static_cast<void>(scanner_.peek());
      const auto key = scanner_.key();
      if (!in_args && scanner_.peek() == '{' && scanner_.text(key) == "\"args\"") {
        read_members(true);
      } else {
        if (places_.size() == members_max) fail(fmt::format("an event of more than {} values", members_max));
        const auto value = scanner_.value();
        places_.push_back({key, value, in_args});
      }
    } while (scanner_.take(','));
    scanner_.expect('}', "object");
  }

  // Of a member, as long as the text may still move.
  struct Place {
    JsonScanner::Slice key;
    JsonScanner::Slice value;
    bool in_args;
  };

  const std::string& source_;
  const std::function<void(const TraceEvent&)>& take_;
  const TraceMembers& others_;
  ByteInput input_;
  JsonScanner scanner_;
  std::vector<Place> places_;
  std::vector<TraceEvent::Member> members_;
};

}  // namespace

bool TraceEvent::is(std::string_view key, std::string_view text) const {
  const auto value = find(key);
  return value && is_string(*value, text);
}

std::string_view TraceEvent::json(std::string_view key) const {
  const auto value = find(key);
  if (!value) fail(key, "is missing");
  return *value;
}

std::string TraceEvent::text(std::string_view key) const {
  const std::string_view value = json(key);
  if (value.front() != '"') fail(key, fmt::format("expected a string, not {}", type_of(value)));
  auto text = decoded_string(value);
  if (!text) fail(key, fmt::format("{} has a backslash that means nothing", quote(value)));
  return *std::move(text);
}

std::int64_t TraceEvent::integer(std::string_view key, std::int64_t least, std::int64_t most) const {
  const std::string_view value = json(key);
  std::int64_t number = 0;
  const char* const end = value.data() + value.size();
  const auto [read_to, status] = std::from_chars(value.data(), end, number);
  if (status != std::errc{} || read_to != end || number < least || number > most) {
    const std::string shown = decoded_string(value).value_or(std::string(value));
    fail(key, fmt::format("expected a whole number from {} to {}, not {}", least, most, quote(shown)));
  }
  return number;
}

Span TraceEvent::span() const {
  const auto time = [&](std::string_view key) {
    const auto value = attoseconds(json(key));
    if (!value) fail(key, fmt::format("expected a number of microseconds, not {}", quote(json(key))));
    if (*value < -attoseconds_max || *value > attoseconds_max) fail(key, "more than 73 years");
    return *value;
  };
  const Int128 start = time("ts");
  const Int128 duration = time("dur");
  if (duration < 0) fail("dur", "a slice cannot end before it starts");
  if (rounded(start + duration) > run_time_max) fail("dur", "ends after more than 73 years");
  return {rounded(start), rounded(start + duration)};
}

Time TraceEvent::time(std::string_view key) const {
  const auto value = attoseconds(json(key));
  if (!value) fail(key, fmt::format("expected a number of microseconds, not {}", quote(json(key))));
  if (*value < -attoseconds_max || *value > attoseconds_max) fail(key, "more than 73 years");
  return rounded(*value);
}

std::optional<std::string_view> TraceEvent::find(std::string_view key) const {
  const bool in_args = key.starts_with(args_prefix);
  const std::string_view name = in_args ? key.substr(args_prefix.size()) : key;
  std::optional<std::string_view> found;
  for (const Member& member : members_) {
    if (member.in_args != in_args || !is_string(member.key, name)) continue;
    if (found) fail(key, "is there twice");
    found = member.value;
  }
  return found;
}

std::string TraceEvent::place() const { return fmt::format("{}[{}]", list_, index_); }

void TraceEvent::fail(std::string_view what) const {
  throw InputError(fmt::format("{}: {}: {}", source_, place(), what));
}

void TraceEvent::fail(std::string_view key, std::string_view what) const {
  throw InputError(fmt::format("{}: {}.{}: {}", source_, place(), key, what));
}

void read_trace_events(std::istream& in, const std::string& source, const std::function<void(const TraceEvent&)>& take,
                       const TraceMembers& members) {
  EventReader(in, source, take, members).run();
}

}  // namespace dualpipe
