#include "dualpipe/sim/report/trace_reader.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstdint>
#include <deque>
#include <istream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/json_input.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {

using detail::schedule::json_number_overflow;
using detail::schedule::json_syntax_error;
using detail::schedule::parse_json;
using detail::schedule::quote;

namespace {

using nlohmann::json;

constexpr std::size_t depth_max = 64;  // traces of other tools nest, too, and are to be called by their name

// What we keep of an event.
enum class Field : std::uint8_t { phase, name, category, pid, start, duration, op, rank, run, activations, memory };

struct FieldName {
  std::string_view key;
  bool in_args = false;
};
constexpr std::array<FieldName, 11> field_names = {{{"ph"},
                                                    {"name"},
                                                    {"cat"},
                                                    {"pid"},
                                                    {"ts"},
                                                    {"dur"},
                                                    {"op", true},
                                                    {"rank", true},
                                                    {"run", true},
                                                    {"peak_activations", true},
                                                    {"peak_memory_bytes", true}}};

// A string, or a number as it was written.
struct Scalar {
  bool is_number = false;
  std::string text;
};

// Values are looked at only when it is known that the event is ours.
class Event {
 public:
  Event(const std::string& source, std::size_t index) : source_(source), index_(index) {}

  void set(std::string_view key, bool in_args, Scalar value) {
    for (std::size_t i = 0; i < field_names.size(); ++i) {
      if (field_names[i].key != key || field_names[i].in_args != in_args) continue;
      if (fields_[i]) fail(static_cast<Field>(i), "is there twice");
      fields_[i] = std::move(value);
    }
  }

  [[nodiscard]] bool has(Field field) const { return fields_[index_of(field)].has_value(); }
  // Whether it is there, and is this text.
  [[nodiscard]] bool is(Field field, std::string_view text) const {
    const auto& value = fields_[index_of(field)];
    return value && !value->is_number && value->text == text;
  }

  // As it was written, of any type.
  [[nodiscard]] const std::string& raw(Field field) const { return at(field).text; }
  [[nodiscard]] const std::string& text(Field field) const {
    const Scalar& value = at(field);
    if (value.is_number) fail(field, "expected a string, not a number");
    return value.text;
  }

  [[nodiscard]] std::int64_t integer(Field field, std::int64_t least, std::int64_t most) const {
    const Scalar& value = at(field);
    std::int64_t number = 0;
    const char* const end = value.text.data() + value.text.size();
    const auto [read_to, status] = std::from_chars(value.text.data(), end, number);
    if (!value.is_number || status != std::errc{} || read_to != end || number < least || number > most) {
      fail(field, fmt::format("expected a whole number from {} to {}, not {}", least, most, quote(value.text)));
    }
    return number;
  }

  // Microseconds with at most three decimals, as nanoseconds.
  [[nodiscard]] Time time(Field field) const {
    const Scalar& value = at(field);
    const std::string_view whole = std::string_view(value.text).substr(0, value.text.find('.'));
    std::string digits(whole);
    if (whole.size() < value.text.size()) digits += value.text.substr(whole.size() + 1);
    const std::size_t decimals = digits.size() - whole.size();
    if (decimals < 3) digits.append(3 - decimals, '0');
    Time nanoseconds = 0;
    const char* const end = digits.data() + digits.size();
    const auto [read_to, status] = std::from_chars(digits.data(), end, nanoseconds);
    if (!value.is_number || decimals > 3 || status != std::errc{} || read_to != end) {
      fail(field, fmt::format("expected microseconds with at most three decimals, not {}", quote(value.text)));
    }
    if (nanoseconds < -run_time_max || nanoseconds > run_time_max) fail(field, "more than 73 years");
    return nanoseconds;
  }

  [[nodiscard]] std::string place() const { return fmt::format("traceEvents[{}]", index_); }
  [[noreturn]] void fail(std::string_view what) const {
    throw InputError(fmt::format("{}: {}: {}", source_, place(), what));
  }
  [[noreturn]] void fail(Field field, std::string_view what) const {
    const FieldName name = field_names[index_of(field)];
    throw InputError(fmt::format("{}: {}.{}{}: {}", source_, place(), name.in_args ? "args." : "", name.key, what));
  }

 private:
  static std::size_t index_of(Field field) { return static_cast<std::size_t>(field); }

  [[nodiscard]] const Scalar& at(Field field) const {
    const auto& value = fields_[index_of(field)];
    if (!value) fail(field, "is missing");
    return *value;
  }

  const std::string& source_;
  std::size_t index_;
  std::array<std::optional<Scalar>, field_names.size()> fields_;
};

// What the events tell: processes that are ranks, and their ops.
class Runs {
 public:
  explicit Runs(const std::string& source) : source_(source) {}

  void take(const Event& event) {
    if (event.is(Field::phase, "M") && event.is(Field::name, "process_name") && event.has(Field::rank)) {
      return add_rank(event);
    }
    if (!event.is(Field::phase, "X")) return;
    TraceRank& rank = rank_of(event);
    if (event.is(Field::category, "compute")) add_op(event, rank);
  }

  [[nodiscard]] std::vector<TraceRun> result() && {
    if (runs_.empty()) fail_not_ours("none of its processes is a rank");
    std::vector<TraceRun> runs;
    for (auto& [label, ranks] : runs_) {
      TraceRun& run = runs.emplace_back(TraceRun{label, {}});
      for (auto& [number, rank] : ranks) {
        if (number != std::ssize(run.ranks)) fail_missing(static_cast<int>(std::ssize(run.ranks)));
        run.ranks.push_back(std::move(rank));
      }
    }
    return runs;
  }

 private:
  struct Run {
    std::string label;
    std::map<int, TraceRank> ranks;
  };

  [[noreturn]] void fail_not_ours(std::string_view why) const {
    throw InputError(fmt::format("{}: not a trace of dualpipe-sim or dualpipe-run: {}", source_, why));
  }
  [[noreturn]] void fail_missing(int rank) const {
    throw InputError(fmt::format(
        "{}: rank {} is missing; a trace that is read back has all ranks (leave out --trace-ranks)", source_, rank));
  }

  void add_rank(const Event& event) {
    const std::string label = event.has(Field::run) ? event.text(Field::run) : "";
    const auto number = static_cast<int>(event.integer(Field::rank, 0, stage_count_max - 1));
    const auto run = numbers_.try_emplace(label, runs_.size()).first->second;
    if (run == runs_.size()) runs_.push_back({label, {}});
    const auto [rank, is_new] = runs_[run].ranks.try_emplace(number);
    if (!is_new) event.fail(fmt::format("rank {} is there twice", number));
    if (!processes_.emplace(event.raw(Field::pid), &rank->second).second) {
      event.fail(Field::pid, "is that of another rank");
    }
    rank->second.peak.activations = static_cast<int>(event.integer(Field::activations, 0, INT32_MAX));
    rank->second.peak.memory = event.integer(Field::memory, 0, INT64_MAX);
  }

  // In our traces a rank is named before its slices.
  [[nodiscard]] TraceRank& rank_of(const Event& event) const {
    const auto rank = event.has(Field::pid) ? processes_.find(event.raw(Field::pid)) : processes_.end();
    if (rank == processes_.end()) fail_not_ours(fmt::format("{} is of a process that is no rank", event.place()));
    return *rank->second;
  }

  static void add_op(const Event& event, TraceRank& rank) {
    const Cell cell = cell_of(event);
    const Time start = event.time(Field::start);
    const Time duration = event.time(Field::duration);
    if (duration < 0) event.fail(Field::duration, "a slice cannot end before it starts");
    if (!rank.spans.empty() && start < rank.spans.back().end) {
      event.fail(Field::start,
                 fmt::format("{} starts before {} has ended", event.raw(Field::op), to_text(rank.ops.back())));
    }
    if (start + duration > run_time_max) event.fail(Field::duration, "ends after more than 73 years");
    const Span span{start, start + duration};
    rank.ops.push_back(cell.first);
    rank.spans.push_back(span);
    if (!cell.second) return;
    rank.ops.back().with_next = true;
    rank.ops.push_back(*cell.second);
    rank.spans.push_back(span);
  }

  [[nodiscard]] static Cell cell_of(const Event& event) {
    const std::string& text = event.text(Field::op);
    try {
      const Cell cell = parse_cell(text);
      if (is_compute(cell.first.kind)) return cell;
    } catch (const InputError& error) {
      event.fail(Field::op, error.what());
    }
    event.fail(Field::op, fmt::format("{} is not computed", text));
  }

  const std::string& source_;
  std::deque<Run> runs_;                                   // in the order of the trace; addresses stay
  std::map<std::string, std::size_t> numbers_;             // of the runs, by label
  std::unordered_map<std::string, TraceRank*> processes_;  // by pid
};

// The events of the parser: passes each event of the trace on. Its functions are named by the library.
class TraceParser {
 public:
  TraceParser(const std::string& source, Runs& runs) : source_(source), runs_(runs) {}

  void check_complete() const {
    if (!seen_events_) throw InputError(fmt::format("{}: \"traceEvents\" is missing", source_));
  }

  bool null() { return scalar({}); }
  bool boolean(bool /*value*/) { return scalar({}); }
  bool number_integer(json::number_integer_t value) { return scalar({true, fmt::format_int(value).str()}); }
  bool number_unsigned(json::number_unsigned_t value) { return scalar({true, fmt::format_int(value).str()}); }
  bool number_float(json::number_float_t /*value*/, const std::string& text) { return scalar({true, text}); }
  bool binary(json::binary_t& /*value*/) { return scalar({}); }  // not in JSON text
  bool string(std::string& value) { return scalar({false, std::move(value)}); }

  bool start_object(std::size_t /*size*/) {
    if (is_event_list()) fail("\"traceEvents\" is not a list");
    switch (level()) {
      case Level::outside:
        break;
      case Level::events:
        event_.emplace(source_, count_++);
        break;
      default:
        if (!is_args()) skip();
    }
    return open();
  }
  bool start_array(std::size_t /*size*/) {
    switch (level()) {
      case Level::outside:
        fail("expected an object");
      case Level::document:
        if (!is_event_list()) skip();
        if (is_event_list()) begin_events();
        break;
      case Level::events:
        fail(fmt::format("traceEvents[{}]: expected an event, not a list", count_));
      default:
        skip();
    }
    return open();
  }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(std::string& key) {
    if (level() == Level::document) top_key_ = std::move(key);
    if (level() == Level::event) event_key_ = std::move(key);
    if (level() == Level::args) args_key_ = std::move(key);
    return true;
  }

  bool parse_error(std::size_t /*position*/, const std::string& last_token, const json::exception& error) {
    if (error.id == json_number_overflow) fail(fmt::format("the number {} is too large", quote(last_token)));
    throw InputError(json_syntax_error(source_, error.what(), last_token));
  }

 private:
  // What the parser is in: {"traceEvents": [{"args": {…}}]}, or something to be passed over.
  enum class Level : std::uint8_t { outside, document, events, event, args, skipped };

  [[nodiscard]] Level level() const {
    if (skipped_from_) return Level::skipped;
    return static_cast<Level>(depth_);
  }
  [[nodiscard]] bool is_event_list() const { return level() == Level::document && top_key_ == "traceEvents"; }
  [[nodiscard]] bool is_args() const { return level() == Level::event && event_key_ == "args"; }

  void begin_events() {
    if (seen_events_) fail("\"traceEvents\" is there twice");
    seen_events_ = true;
  }

  // What is opened now is of no interest.
  void skip() {
    if (!skipped_from_) skipped_from_ = depth_;
  }
  bool open() {
    if (++depth_ > depth_max) fail("nested too deeply");
    return true;
  }
  bool close() {
    if (level() == Level::event) runs_.take(*event_);
    if (--depth_ == skipped_from_) skipped_from_.reset();
    return true;
  }

  bool scalar(Scalar value) {
    switch (level()) {
      case Level::outside:
        fail("expected an object");
      case Level::document:
        if (is_event_list()) fail("\"traceEvents\" is not a list");
        break;
      case Level::events:
        fail(fmt::format("traceEvents[{}]: expected an event", count_));
      case Level::event:
        event_->set(event_key_, false, std::move(value));
        break;
      case Level::args:
        event_->set(args_key_, true, std::move(value));
        break;
      case Level::skipped:
        break;
    }
    return true;
  }

  [[noreturn]] void fail(std::string_view what) const { throw InputError(fmt::format("{}: {}", source_, what)); }

  const std::string& source_;
  Runs& runs_;
  std::size_t depth_ = 0;                    // of open lists and objects
  std::optional<std::size_t> skipped_from_;  // the depth around what is passed over
  std::string top_key_, event_key_, args_key_;
  bool seen_events_ = false;
  std::size_t count_ = 0;  // of events
  std::optional<Event> event_;
};

}  // namespace

std::vector<TraceRun> read_chrome_trace(std::istream& in, const std::string& source) {
  Runs runs(source);
  TraceParser parser(source, runs);
  parse_json(in, source, parser);
  parser.check_complete();
  return std::move(runs).result();
}

}  // namespace dualpipe
