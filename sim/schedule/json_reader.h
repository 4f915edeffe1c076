// What the readers of our JSON files share: a document that is checked while it is read, and values that know their
// place in the file, for errors. Private to sim, and exec/train/safetensors.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace dualpipe::detail::schedule {

// One of our file formats: a top-level object with "format" and "version".
struct JsonFormat {
  std::string_view name = {};                   // empty: an object of somebody else, with any keys
  int version = 0;                              // the newest that we read
  std::span<const std::string_view> keys = {};  // all that the top-level object may have
  std::size_t depth_max = 4;                    // of objects and lists within one another
};

// A list that may be too long to be held in memory. Its strings, and the ends of its inner lists, are reported one
// after another instead.
struct JsonStream {
  enum class Event : std::uint8_t { open, close, text };

  std::string_view key;                                              // of the top-level object
  std::function<void(Event event, std::string_view text)> on_event;  // throws InputError; the place is added to it
};

// A value and its place: file "costs.json", path "stages[3].forward_ns". The document and the file's name must outlive
// it.
class JsonValue {
 public:
  JsonValue(const nlohmann::json& value, std::string_view source, std::string path = {})
      : value_(&value), source_(source), path_(std::move(path)) {}

  [[noreturn]] void fail(std::string_view what) const;

  // Each throws InputError where the value is of another type or out of range.
  [[nodiscard]] std::int64_t integer(std::int64_t least, std::int64_t most) const;
  [[nodiscard]] std::uint64_t unsigned_integer() const;
  [[nodiscard]] double number() const;
  [[nodiscard]] bool boolean() const;
  [[nodiscard]] bool is_null() const;
  [[nodiscard]] const std::string& text() const;
  [[nodiscard]] std::size_t list_size() const;
  [[nodiscard]] JsonValue operator[](std::size_t index) const;  // of a list

  // Of an object.
  [[nodiscard]] JsonValue at(std::string_view key) const;  // throws where there is none
  [[nodiscard]] std::optional<JsonValue> find(std::string_view key) const;
  void allow_keys(std::span<const std::string_view> keys) const;  // throws at any other

 private:
  const nlohmann::json* value_;
  std::string_view source_;
  std::string path_;
};

// Reads one document up to the end of the input. Nesting, sizes and the number of values have bounds, so that a file
// that was made to exhaust the memory fails early. Syntax, encoding, doubled keys, format and version are checked. The
// list that `stream` names is reported to it, and is not part of the result.
[[nodiscard]] nlohmann::json read_json_document(std::istream& in, const std::string& source, const JsonFormat& format,
                                                const JsonStream& stream = {});

}  // namespace dualpipe::detail::schedule
