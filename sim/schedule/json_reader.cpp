#include "dualpipe/sim/schedule/json_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/json_input.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe::detail::schedule {
namespace {

using nlohmann::json;

constexpr std::size_t value_count_max = std::size_t{1} << 21U;  // twelve for each of the most stages, and room

// The events of the parser: builds the document, and passes on what is streamed. Its functions are named by the
// library.
class DocumentReader {
 public:
  DocumentReader(const std::string& source, const JsonFormat& format, const JsonStream& stream)
      : source_(source), format_(format), stream_(stream) {}

  [[nodiscard]] json take() {
    if (format_.name.empty()) return std::move(document_);
    const JsonValue top(document_, source_);
    static_cast<void>(top.at("format"));  // their values were checked as they came by
    static_cast<void>(top.at("version"));
    if (!stream_.key.empty() && !streamed_) top.fail(fmt::format("\"{}\" is missing", stream_.key));
    return std::move(document_);
  }

  bool null() { return scalar(nullptr); }
  bool boolean(bool value) { return scalar(value); }
  bool number_integer(json::number_integer_t value) { return scalar(value); }
  bool number_unsigned(json::number_unsigned_t value) { return scalar(value); }
  bool number_float(json::number_float_t value, const std::string& /*text*/) { return scalar(value); }
  bool binary(json::binary_t& /*value*/) { return scalar(nullptr); }  // not in JSON text
  bool string(std::string& value) {
    if (streaming()) {
      pass_on(JsonStream::Event::text, value);
      next_index();
      return true;
    }
    return scalar(std::move(value));
  }

  bool start_object(std::size_t /*size*/) {
    if (streaming()) fail("expected an op or a list, not an object");
    if (is_streamed_key()) fail("expected a list");
    open(json::object());
    return true;
  }
  bool end_object() { return close(); }

  bool key(std::string& key) {
    Level& level = levels_.back();
    level.key = key;
    if (level.value->contains(key) || (is_streamed_key() && streamed_)) fail("is there twice");
    if (levels_.size() == 1) check_top_level_key(key);
    return true;
  }

  bool start_array(std::size_t /*size*/) {
    if (streaming()) {
      pass_on(JsonStream::Event::open, {});
      levels_.push_back({nullptr, {}, 0});
    } else if (is_streamed_key()) {
      streamed_ = true;
      levels_.push_back({nullptr, {}, 0});
    } else {
      open(json::array());
    }
    return true;
  }
  bool end_array() {
    if (!streaming()) return close();
    levels_.pop_back();
    if (streaming()) pass_on(JsonStream::Event::close, {});
    next_index();
    return true;
  }

  bool parse_error(std::size_t /*position*/, const std::string& last_token, const json::exception& error) {
    if (error.id == json_number_overflow) fail(fmt::format("the number {} is too large", quote(last_token)));
    throw InputError(json_syntax_error(source_, error.what(), last_token));
  }

 private:
  // A list or object that is not closed yet.
  struct Level {
    json* value;        // none in what is streamed
    std::string key;    // of an object: the last one read
    std::size_t index;  // of a list: of the element to come
  };

  [[nodiscard]] bool is_streamed_key() const {
    return levels_.size() == 1 && !stream_.key.empty() && levels_[0].key == stream_.key;
  }
  [[nodiscard]] bool streaming() const { return !levels_.empty() && levels_.back().value == nullptr; }

  [[noreturn]] void fail(std::string_view what) const {
    const json none;
    JsonValue(none, source_, path()).fail(what);
  }

  // "ops[3][17]"
  [[nodiscard]] std::string path() const {
    std::string path;
    for (const Level& level : levels_) {
      if (level.value != nullptr && level.value->is_object()) {
        path += fmt::format("{}{}", path.empty() ? "" : ".", is_plain(level.key) ? level.key : quote(level.key));
      } else {
        path += fmt::format("[{}]", level.index);
      }
    }
    return path;
  }

  [[nodiscard]] static bool is_plain(std::string_view key) {
    const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
    return !key.empty() && key.size() <= 40 && std::ranges::all_of(key, letter);
  }

  void pass_on(JsonStream::Event event, std::string_view text) const {
    try {
      stream_.on_event(event, text);
    } catch (const InputError& error) {
      fail(error.what());
    }
  }

  void next_index() {
    if (!levels_.empty()) ++levels_.back().index;
  }

  template <typename Value>
  bool scalar(Value&& value) {
    if (streaming()) fail(fmt::format("expected an op or a list, not {}", json(value).dump()));
    if (levels_.empty()) fail("expected an object");
    json* const inserted = insert(json(std::forward<Value>(value)));
    if (levels_.size() == 1) check_header(*inserted);
    next_index();
    return true;
  }

  json* insert(json value) {
    if (++values_ > value_count_max) fail(fmt::format("more than {} values", value_count_max));
    if (levels_.empty()) return &(document_ = std::move(value));
    const Level& level = levels_.back();
    if (level.value->is_object()) return &((*level.value)[level.key] = std::move(value));
    level.value->push_back(std::move(value));
    return &level.value->back();
  }

  void open(json empty) {
    if (levels_.empty() && !empty.is_object()) fail("expected an object");
    if (levels_.size() == format_.depth_max) fail("nested too deeply");
    json* const inserted = insert(std::move(empty));
    levels_.push_back({inserted, {}, 0});
  }

  bool close() {
    levels_.pop_back();
    next_index();
    return true;
  }

  // Early, so that a file of another format or version is told so, and not that some key in it is unknown.
  void check_header(const json& value) const {
    if (format_.name.empty()) return;
    const JsonValue here(value, source_, path());
    if (levels_[0].key == "format" && here.text() != format_.name) {
      here.fail(fmt::format("{} is another format; expected {}", quote(here.text()), quote(format_.name)));
    }
    if (levels_[0].key == "version" && here.integer(1, INT64_MAX) > format_.version) {
      here.fail(fmt::format("made by a newer version: this one reads up to {}", format_.version));
    }
    if (is_streamed_key()) here.fail("expected a list");
  }

  void check_top_level_key(const std::string& key) const {
    if (format_.name.empty()) return;
    if (std::ranges::find(format_.keys, key) == format_.keys.end()) {
      fail(fmt::format("unknown key; {} has {}", quote(format_.name), fmt::join(format_.keys, ", ")));
    }
  }

  const std::string& source_;
  const JsonFormat& format_;
  const JsonStream& stream_;
  json document_;
  std::vector<Level> levels_;
  std::size_t values_ = 0;
  bool streamed_ = false;
};

}  // namespace

void JsonValue::fail(std::string_view what) const {
  throw InputError(path_.empty() ? fmt::format("{}: {}", source_, what)
                                 : fmt::format("{}: {}: {}", source_, path_, what));
}

std::int64_t JsonValue::integer(std::int64_t least, std::int64_t most) const {
  const auto expected = [&] { return fmt::format("expected a whole number from {} to {}", least, most); };
  std::int64_t result = 0;
  if (value_->is_number_unsigned() && value_->get<std::uint64_t>() > INT64_MAX) fail(expected());
  if (value_->is_number_integer()) {
    result = value_->get<std::int64_t>();
  } else if (value_->is_number_float()) {  // 5e9 is a whole number, too
    constexpr double exact_max = 9007199254740992.0;
    const double number = value_->get<double>();
    if (!(std::abs(number) <= exact_max) || std::trunc(number) != number) fail(expected());
    result = static_cast<std::int64_t>(number);
  } else {
    fail(fmt::format("{}, not {}", expected(), value_->type_name()));
  }
  if (result < least || result > most) fail(fmt::format("{}, not {}", expected(), result));
  return result;
}

std::uint64_t JsonValue::unsigned_integer() const {
  if (!value_->is_number_unsigned()) fail("expected a whole number from 0 to 2^64 - 1");
  return value_->get<std::uint64_t>();
}

double JsonValue::number() const {
  if (!value_->is_number()) fail(fmt::format("expected a number, not {}", value_->type_name()));
  return value_->get<double>();
}

bool JsonValue::boolean() const {
  if (!value_->is_boolean()) fail(fmt::format("expected true or false, not {}", value_->type_name()));
  return value_->get<bool>();
}

bool JsonValue::is_null() const { return value_->is_null(); }

const std::string& JsonValue::text() const {
  if (!value_->is_string()) fail(fmt::format("expected a string, not {}", value_->type_name()));
  return value_->get_ref<const std::string&>();
}

std::size_t JsonValue::list_size() const {
  if (!value_->is_array()) fail(fmt::format("expected a list, not {}", value_->type_name()));
  return value_->size();
}

JsonValue JsonValue::operator[](std::size_t index) const {
  return {(*value_)[index], source_, fmt::format("{}[{}]", path_, index)};
}

JsonValue JsonValue::at(std::string_view key) const {
  auto found = find(key);
  if (!found) fail(fmt::format("\"{}\" is missing", key));
  return *std::move(found);
}

std::optional<JsonValue> JsonValue::find(std::string_view key) const {
  if (!value_->is_object()) fail(fmt::format("expected an object, not {}", value_->type_name()));
  const auto found = value_->find(std::string(key));
  if (found == value_->end()) return std::nullopt;
  return JsonValue(*found, source_, fmt::format("{}{}{}", path_, path_.empty() ? "" : ".", key));
}

void JsonValue::allow_keys(std::span<const std::string_view> keys) const {
  if (!value_->is_object()) fail(fmt::format("expected an object, not {}", value_->type_name()));
  for (const auto& [key, value] : value_->items()) {
    if (std::ranges::find(keys, key) == keys.end()) {
      fail(fmt::format("unknown key {}; known are {}", quote(key), fmt::join(keys, ", ")));
    }
  }
}

json read_json_document(std::istream& in, const std::string& source, const JsonFormat& format,
                        const JsonStream& stream) {
  DocumentReader reader(source, format, stream);
  parse_json(in, source, reader);
  return reader.take();
}

}  // namespace dualpipe::detail::schedule
