#include "dualpipe/exec/train/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <ostream>
#include <set>
#include <string_view>
#include <utility>

#include "dualpipe/exec/model/crc32.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/json_reader.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe::detail::train {

using detail::model::crc32;
using detail::model::crc32_text;
using detail::schedule::JsonValue;
using detail::schedule::quote;

namespace {

using nlohmann::json;
using Length = std::uint64_t;  // what a file begins with

static_assert(std::endian::native == std::endian::little, "tensors are written as they stand in memory");

constexpr auto metadata_key = "__metadata__";
constexpr auto header_checksum_key = "header_crc32";
constexpr auto tensor_checksums_key = "tensor_crc32";
constexpr std::string_view no_checksum = "00000000";  // as long as one
// What the header of a file of ours begins with; the digits of its checksum are next.
constexpr std::string_view header_begin = R"({"__metadata__":{"header_crc32":")";
constexpr Length header_length_max = 100'000'000;  // as in the reference implementation
constexpr std::size_t alignment = 8;               // of the data
constexpr auto byte_count_max = std::numeric_limits<std::int64_t>::max();

struct Type {
  std::string_view name;
  at::ScalarType dtype;
  std::int64_t size;
};
constexpr Type types[] = {{"F32", at::kFloat, sizeof(float)}, {"F64", at::kDouble, sizeof(double)}};

const Type& type_of(at::ScalarType dtype) {
  const auto* const type = std::ranges::find(types, dtype, &Type::dtype);
  assert(type != std::end(types));
  return *type;
}

// --- reading

std::string_view header_of(std::span<const std::byte> bytes, const std::string& source) {
  const auto not_one = [&](const std::string& why) {
    refuse(source, fmt::format("is no safetensors file, or was cut short: {}", why));
  };
  if (bytes.size() < sizeof(Length)) not_one(fmt::format("it has {} bytes", bytes.size()));
  Length length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > header_length_max || length > bytes.size() - sizeof length) {
    not_one(fmt::format("its header would have {} bytes, and the file has {}", length, bytes.size()));
  }
  return {reinterpret_cast<const char*>(bytes.data()) + sizeof length, length};
}

// Of the length, and of the header with zeros in the place of the digits.
std::string header_checksum(Length length, std::string_view header) {
  const std::string_view behind = header.substr(header_begin.size() + no_checksum.size());
  std::uint32_t sum = crc32(std::as_bytes(std::span(&length, 1)));
  for (const std::string_view part : {header_begin, no_checksum, behind}) {
    sum = crc32(std::as_bytes(std::span(part)), sum);
  }
  return crc32_text(sum);
}

// Returns it; nothing where the header has none.
std::string check_header(std::string_view header, const std::string& source) {
  if (!header.starts_with(header_begin) || header.size() < header_begin.size() + no_checksum.size()) return "";
  const std::string_view saved = header.substr(header_begin.size(), no_checksum.size());
  const std::string actual = header_checksum(header.size(), header);
  if (saved == actual) return actual;
  refuse(source, fmt::format("was damaged: its header has the checksum {}, and should have {}; use another copy of it",
                             actual, quote(saved)));
}

// Refuses what a parser would take silently: a name that is there twice; and what no header has: deep nesting.
json parse_header(std::string_view text, const std::string& source) {
  constexpr int depth_max = 3;
  std::set<std::string> names;
  const json::parser_callback_t inspect = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > depth_max) refuse(source, "the header is nested too deeply");
    if (event == json::parse_event_t::key && depth == 1 && !names.insert(value.get<std::string>()).second) {
      refuse(source, fmt::format("{} is in the header twice", quote(value.get<std::string>())));
    }
    return true;
  };
  try {
    return json::parse(text, inspect);
  } catch (const json::exception&) {  // what it says has raw bytes of the file
    refuse(source, "the header is no JSON; this is no safetensors file, or it was damaged");
  }
}

template <typename Number>
std::string not_finite_of(std::span<const std::byte> data) {
  const std::size_t count = data.size() / sizeof(Number);
  for (std::size_t i = 0; i < count; ++i) {
    Number number{};
    std::memcpy(&number, data.data() + i * sizeof(Number), sizeof(Number));
    if (!std::isfinite(number)) return fmt::format("{} at element {} of {}", std::abs(number), i, count);
  }
  return "";
}

// Where a tensor stands in the data.
struct Extent {
  std::int64_t begin;
  std::int64_t end;
  const std::string* name;
};

Extent extent_of(const JsonValue& entry, const std::string& name, std::size_t data_size) {
  const JsonValue offsets = entry.at("data_offsets");
  if (offsets.list_size() != 2) offsets.fail("expected two numbers, where the data begin and end");
  const std::int64_t begin = offsets[0].integer(0, byte_count_max);
  const std::int64_t end = offsets[1].integer(begin, byte_count_max);
  if (static_cast<std::size_t>(end) > data_size) {
    offsets.fail(fmt::format("end at {}, but there are {} bytes of data; the file was cut short", end, data_size));
  }
  return {begin, end, &name};
}

TensorView read_tensor(const JsonValue& entry, const Extent& extent, std::span<const std::byte> data) {
  const JsonValue dtype = entry.at("dtype");
  const auto* const type = std::ranges::find(types, std::string_view(dtype.text()), &Type::name);
  if (type == std::end(types)) dtype.fail(fmt::format("{} is not supported; F32 and F64 are", quote(dtype.text())));
  TensorView view;
  view.dtype = type->dtype;
  const JsonValue shape = entry.at("shape");
  const std::int64_t bytes = extent.end - extent.begin;
  bool is_empty = false;
  std::int64_t expected = type->size;
  for (std::size_t i = 0; i < shape.list_size(); ++i) {
    const std::int64_t size = view.shape.emplace_back(shape[i].integer(0, byte_count_max));
    is_empty = is_empty || size == 0;
    if (!is_empty && expected > byte_count_max / size) shape.fail("has more elements than a file can hold");
    if (!is_empty) expected *= size;
  }
  if (is_empty) expected = 0;
  if (expected != bytes) {
    entry.fail(fmt::format("its shape and type take {} bytes, but its data_offsets {}", expected, bytes));
  }
  view.data = data.subspan(static_cast<std::size_t>(extent.begin), static_cast<std::size_t>(bytes));
  return view;
}

// One after the other, from the first byte to the last.
void check_extents(std::vector<Extent> extents, std::size_t data_size, const std::string& source) {
  std::ranges::sort(extents, {}, [](const Extent& extent) { return std::pair(extent.begin, extent.end); });
  std::int64_t end = 0;
  for (const Extent& extent : extents) {
    if (extent.begin != end) {
      refuse(source, fmt::format("tensor {}: its data begin at byte {}, and those before it end at {}; the file was "
                                 "damaged",
                                 quote(*extent.name), extent.begin, end));
    }
    end = extent.end;
  }
  if (static_cast<std::size_t>(end) != data_size) {
    refuse(source, fmt::format("has {} bytes of data, but its tensors take {}; the file was damaged", data_size, end));
  }
}

void read_metadata(const json& value, SafeTensors& contents, const std::string& source) {
  if (!value.is_object()) refuse(source, "__metadata__ in the header is no JSON object");
  for (const auto& [key, item] : value.items()) {
    contents.metadata[key] = JsonValue(item, source, fmt::format("{}.{}", metadata_key, quote(key))).text();
  }
}

// They leave the metadata, and come to their tensors.
void give_checksums(SafeTensors& contents, const std::string& source) {
  contents.metadata.erase(header_checksum_key);
  const auto entry = contents.metadata.extract(tensor_checksums_key);
  std::string_view rest = entry ? std::string_view(entry.mapped()) : "";
  for (auto& [name, tensor] : contents.tensors) {
    std::uint32_t checksum = 0;
    const char* const end = rest.data() + std::min(rest.size(), no_checksum.size());
    const auto [stop, error] = std::from_chars(rest.data(), end, checksum, 16);
    if (error != std::errc{} || stop != end) {
      refuse(source, fmt::format("has no checksum of tensor {}; give a file that --save wrote", quote(name)));
    }
    tensor.checksum = checksum;
    rest.remove_prefix(std::min(rest.size(), no_checksum.size() + 1));
  }
}

// --- writing

std::string checksums_text(const SafeTensors& contents) {
  std::string text;
  for (const auto& [name, tensor] : contents.tensors) {
    if (!text.empty()) text += ' ';
    text += crc32_text(tensor.checksum.value());
  }
  return text;
}

std::string header_text(const SafeTensors& contents) {
  nlohmann::ordered_json header;
  nlohmann::ordered_json& metadata = header[metadata_key];
  metadata[header_checksum_key] = no_checksum;
  metadata[tensor_checksums_key] = checksums_text(contents);
  for (const auto& [key, value] : contents.metadata) metadata[key] = value;
  std::size_t offset = 0;
  for (const auto& [name, tensor] : contents.tensors) {
    const std::size_t end = offset + tensor.data.size();
    header[name] = {{"dtype", type_of(tensor.dtype).name}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + alignment - 1) / alignment * alignment, ' ');
  text.replace(header_begin.size(), no_checksum.size(), header_checksum(text.size(), text));
  return text;
}

}  // namespace

void refuse(const std::string& file, std::string_view why) { throw InputError(fmt::format("{}: {}", file, why)); }

TensorView view_of(const at::Tensor& tensor) {
  assert(tensor.is_contiguous());
  const at::Tensor on_host = tensor.is_cpu() ? tensor : tensor.detach().cpu();
  const std::span data(static_cast<const std::byte*>(on_host.const_data_ptr()), on_host.nbytes());
  return {tensor.scalar_type(), tensor.sizes().vec(), data, crc32(data), on_host};
}

bool is_sound(const TensorView& view) { return view.checksum == crc32(view.data); }

std::string not_finite_in(const TensorView& view) {
  return view.dtype == at::kDouble ? not_finite_of<double>(view.data) : not_finite_of<float>(view.data);
}

void write_safetensors(std::ostream& out, const SafeTensors& contents) {
  const auto write = [&out](const void* data, std::size_t size) {
    out.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  };
  const std::string header = header_text(contents);
  const Length length = header.size();
  write(&length, sizeof length);
  write(header.data(), header.size());
  for (const auto& [name, tensor] : contents.tensors) write(tensor.data.data(), tensor.data.size());
}

SafeTensors read_safetensors(std::span<const std::byte> bytes, const std::string& source) {
  const std::string_view text = header_of(bytes, source);
  const std::span<const std::byte> data = bytes.subspan(sizeof(Length) + text.size());
  SafeTensors contents;
  contents.checksum = check_header(text, source);
  const json header = parse_header(text, source);
  if (!header.is_object()) refuse(source, "the header is no JSON object; this is no safetensors file");
  std::vector<Extent> extents;
  for (const auto& [name, value] : header.items()) {
    if (name == metadata_key) {
      read_metadata(value, contents, source);
      continue;
    }
    const JsonValue entry(value, source, fmt::format("tensor {}", quote(name)));
    const auto place = contents.tensors.try_emplace(name).first;
    extents.push_back(extent_of(entry, place->first, data.size()));
    place->second = read_tensor(entry, extents.back(), data);
  }
  check_extents(std::move(extents), data.size(), source);
  if (!contents.checksum.empty()) give_checksums(contents, source);
  return contents;
}

}  // namespace dualpipe::detail::train
