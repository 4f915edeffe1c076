// Values as bytes, as they stand in memory, for other processes that run the same build. Private to exec.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace dualpipe::detail::transport {

template <typename T>
concept Plain = std::is_trivially_copyable_v<T>;

class Packer {
 public:
  // `expected`: so many bytes can be put before they have to move. Most messages have fewer than 256.
  explicit Packer(std::size_t expected = 256) { bytes_.reserve(expected); }

  template <Plain T>
  void put(const T& value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  template <Plain T>
  void put(const std::vector<T>& values) {
    put(values.size());
    bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
  void put(const std::string& text) {
    put(text.size());
    bytes_ += text;
  }
  void put_bytes(std::string_view bytes) { bytes_ += bytes; }  // as they are
  [[nodiscard]] std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// Gives back, in the same order, what was put. Throws std::runtime_error where there is less, or something else.
class Unpacker {
 public:
  explicit Unpacker(std::string_view bytes) : rest_(bytes) {}

  template <Plain T>
  void get(T& value) {
    const auto bytes = next(1, sizeof(T));
    std::memcpy(&value, bytes.data(), sizeof(T));
  }
  void get(bool& value) {  // none but these two bytes are one
    const auto byte = get<std::uint8_t>();
    if (byte > 1) throw std::runtime_error("another process sent something else than was expected");
    value = byte == 1;
  }
  template <Plain T>
  void get(std::vector<T>& values) {
    std::size_t count = 0;
    get(count);
    const auto bytes = next(count, sizeof(T));
    values.resize(count);
    if (count > 0) std::memcpy(values.data(), bytes.data(), bytes.size());
  }
  void get(std::string& text) { text = get_text(); }
  // As long as the bytes are there.
  [[nodiscard]] std::string_view get_text() { return next(get<std::size_t>(), 1); }
  [[nodiscard]] std::string_view get_bytes(std::size_t count) { return next(count, 1); }  // as they are
  template <typename T>
  [[nodiscard]] T get() {
    T value{};
    get(value);
    return value;
  }
  [[nodiscard]] bool at_end() const { return rest_.empty(); }
  void expect_end() const {
    if (!at_end()) throw std::runtime_error("another process sent more than was expected");
  }

 private:
  std::string_view next(std::size_t count, std::size_t size) {
    if (count > rest_.size() / size) throw std::runtime_error("another process sent less than was expected");
    const auto bytes = rest_.substr(0, count * size);
    rest_.remove_prefix(bytes.size());
    return bytes;
  }

  std::string_view rest_;
};

}  // namespace dualpipe::detail::transport
