#include "dualpipe/exec/train/safetensors.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "dualpipe/exec/model/crc32.h"
#include "tests/exec/legs.h"
#include "tests/scratch.h"

namespace dualpipe::test {

using detail::model::crc32;
using detail::model::crc32_text;
using detail::train::is_sound;
using detail::train::not_finite_in;
using detail::train::SafeTensors;
using detail::train::TensorView;
using detail::train::view_of;

namespace {

std::uint32_t crc32_of(const std::string& text) { return crc32(std::as_bytes(std::span(text))); }

struct Example {
  at::Tensor doubles = at::tensor({0.5, -0.0, 5e-324, 1e300}).view({2, 1, 2});
  at::Tensor floats = at::tensor({1.5F, -2.25F, 0.1F});
  at::Tensor scalar = at::full({}, 3.0F);
  at::Tensor none = at::empty({2, 0}, at::kDouble);
  SafeTensors contents{
      {{"key", "a value with \"quotes\", \\ and \n"}, {"", ""}},
      {{"z", view_of(doubles)}, {"a b", view_of(floats)}, {"m", view_of(none)}, {"\u00b5", view_of(scalar)}},
      {}};
};

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_safetensors)

// --- the checksum

// The check value of the catalogue of CRCs (Greg Cook's "CRC-32/ISO-HDLC"), and values of Python's zlib.crc32.
BOOST_AUTO_TEST_CASE(crc32_is_that_of_zlib) {
  BOOST_TEST(crc32_of("123456789") == 0xcbf43926U);
  BOOST_TEST(crc32_of("") == 0U);
  BOOST_TEST(crc32_of("a") == 0xe8b7be43U);
  BOOST_TEST(crc32_of("The quick brown fox jumps over the lazy dog") == 0x414fa339U);
  BOOST_TEST(crc32_of(std::string(1000, '\0')) == 0x060b1780U);
  BOOST_TEST(crc32_text(0x1fU) == "0000001f");
}

// In whatever pieces, from whatever address on.
BOOST_AUTO_TEST_CASE(crc32_of_pieces_is_that_of_the_whole) {
  std::string text;
  for (int i = 0; i < 200; ++i) text += static_cast<char>(37 * i);
  const auto bytes = std::as_bytes(std::span(text));
  const auto bit_by_bit = [](std::span<const std::byte> of) {
    std::uint32_t state = 0xffffffffU;
    for (const std::byte byte : of) {
      state ^= std::to_integer<std::uint32_t>(byte);
      for (int bit = 0; bit < 8; ++bit) state = (state >> 1U) ^ ((state & 1U) != 0 ? 0xedb88320U : 0U);
    }
    return ~state;
  };
  for (std::size_t begin = 0; begin < 40; ++begin) {
    const auto from = bytes.subspan(begin);
    for (std::size_t size = 0; size < 80; ++size) {
      const std::uint32_t first = crc32(from.first(size));
      BOOST_TEST(first == bit_by_bit(from.first(size)));
      BOOST_TEST(crc32(from.subspan(size), first) == bit_by_bit(from));
    }
  }
}

// As another program would find out what stands in the file.
BOOST_AUTO_TEST_CASE(checksums_stand_where_the_header_says) {
  const Example example;
  std::string text = text_of(example.contents);
  const std::string begin = R"({"__metadata__":{"header_crc32":")";
  BOOST_TEST(text.substr(8, begin.size()) == begin);
  const std::string digits = text.substr(8 + begin.size(), 8);
  const std::string behind = R"(","tensor_crc32":")";
  BOOST_TEST(text.substr(8 + begin.size() + 8, behind.size()) == behind);
  const auto floats = std::span(static_cast<const std::byte*>(example.floats.const_data_ptr()), 12U);
  const std::string of_floats = text.substr(8 + begin.size() + 8 + behind.size(), 8);  // "a b" is the first name
  BOOST_TEST(of_floats == crc32_text(crc32(floats)));
  std::uint64_t length = 0;
  std::memcpy(&length, text.data(), sizeof length);
  text.replace(8 + begin.size(), 8, "00000000");
  BOOST_TEST(digits == crc32_text(crc32_of(text.substr(0, 8 + length))));
  BOOST_TEST(read(text_of(example.contents)).checksum == digits);
}

BOOST_AUTO_TEST_CASE(a_file_of_another_tool_has_no_checksums) {
  std::string header = R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})";
  const std::uint64_t length = header.size();
  const std::string bytes =
      std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + std::string(8, '\0');
  const SafeTensors contents = read(bytes);
  BOOST_TEST(contents.checksum == "");
  BOOST_TEST(!is_sound(contents.tensors.at("a")));
}

BOOST_AUTO_TEST_CASE(what_is_not_finite_is_found) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  BOOST_TEST(not_finite_in(view_of(at::tensor({1.0, -0.0, 5e-324, 1.7e308}))) == "");
  BOOST_TEST(not_finite_in(view_of(at::tensor({1.0, nan, infinity}))) == "nan at element 1 of 3");
  BOOST_TEST(not_finite_in(view_of(at::tensor({1.0, 2.0, -infinity}))) == "inf at element 2 of 3");
  BOOST_TEST(not_finite_in(view_of(at::tensor({static_cast<float>(nan)}))) == "nan at element 0 of 1");
  BOOST_TEST(not_finite_in(view_of(at::tensor({3.4e38F, 1e-45F}))) == "");
  BOOST_TEST(not_finite_in(view_of(at::empty({0, 3}))) == "");
}

// --- files that cannot be read

BOOST_AUTO_TEST_CASE(files_that_were_cut_short) {
  const std::string whole = text_of(Example().contents);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const std::string cut = whole.substr(0, size);
    BOOST_TEST(refusal([&] { (void)read(cut); }).starts_with("it: "), "cut after " << size << " bytes");
  }
  BOOST_TEST(refusal([&] { (void)read(whole + '\0'); }).find("the file was damaged") != std::string::npos);
}

// Each bit of the file, the checksums included.
BOOST_AUTO_TEST_CASE(a_flipped_bit_is_noticed) {
  const std::string whole = text_of(Example().contents);
  std::size_t refused = 0;
  std::size_t unsound = 0;
  for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::string changed = whole;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << (bit % 8)));
    try {
      const SafeTensors contents = read(changed);
      const auto is_damaged = [](const auto& each) { return !is_sound(each.second); };
      const bool is_noticed = contents.checksum.empty() || std::ranges::any_of(contents.tensors, is_damaged);
      BOOST_TEST(is_noticed, "bit " << bit);
      ++unsound;
    } catch (const InputError&) {
      ++refused;
    }
  }
  BOOST_TEST(refused > 8 * 300U);
  BOOST_TEST(unsound >= 8 * (4 * 8 + 3 * 4 + 4U));
}

std::string with_header(const std::string& header, std::size_t data_size = 0) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + std::string(data_size, 'x');
}

BOOST_AUTO_TEST_CASE(files_made_to_mislead) {
  const auto refused = [](const std::string& header, std::size_t data_size = 8) {
    const std::string bytes = with_header(header, data_size);
    return refusal([&] { (void)read(bytes); });
  };
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}   )") == "");
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [2, 0, 99999999999, 99999999999], "data_offsets": [0, 0]}})",
                     0) == "");
  BOOST_TEST(refused("[]") == "it: the header is no JSON object; this is no safetensors file");
  BOOST_TEST(refused("{").find("is no JSON") != std::string::npos);
  BOOST_TEST(refused(R"({"__metadata__": 3})").find("__metadata__") != std::string::npos);
  BOOST_TEST(refused(R"({"__metadata__": {"steps": 3}})").find("__metadata__.'steps': expected a string") !=
             std::string::npos);
  BOOST_TEST(refused("{\"a\": " + std::string(100000, '[') + std::string(100000, ']') + "}").find("too deeply") !=
             std::string::npos);
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                         "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}})") ==
             "it: 'a' is in the header twice");
  BOOST_TEST(refused(R"({"a": 3})") == "it: tensor 'a': expected an object, not number");
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [2]}})") == "it: tensor 'a': \"data_offsets\" is missing");
  BOOST_TEST(refused(R"({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}})") ==
             "it: tensor 'a'.dtype: 'BF16' is not supported; F32 and F64 are");
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}})").find("shape[0]: expected") !=
             std::string::npos);
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}})") ==
             "it: tensor 'a': its shape and type take 12 bytes, but its data_offsets 8");
  // 2^32 * 2^32 * 4 is 0, but for the bits that are lost.
  BOOST_TEST(refused(R"({"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}})", 0) ==
             "it: tensor 'a'.shape: has more elements than a file can hold");
  for (const auto* const offsets : {"[0, 16]", "[0, 18446744073709551615]", "[8, 0]", "[-8, 0]", "[0]", "[0, 4, 8]"}) {
    const std::string header = fmt::format(R"({{"a": {{"dtype": "F32", "shape": [2], "data_offsets": {}}}}})", offsets);
    BOOST_TEST(refused(header).find("'a'.data_offsets") != std::string::npos, offsets);
  }
  const auto two = [&](const char* first, const char* second) {
    return refused(fmt::format(R"({{"a": {{"dtype": "F32", "shape": [1], "data_offsets": {}}},
                                    "b": {{"dtype": "F32", "shape": [1], "data_offsets": {}}}}})",
                               first, second),
                   12);
  };
  BOOST_TEST(two("[0, 4]", "[2, 6]").find("tensor 'b': its data begin at byte 2, and those before it end at 4") !=
             std::string::npos);
  BOOST_TEST(two("[0, 4]", "[0, 4]").find("tensor 'b'") != std::string::npos);
  BOOST_TEST(two("[8, 12]", "[0, 4]").find("tensor 'a'") != std::string::npos);  // a gap
  BOOST_TEST(two("[4, 8]", "[0, 4]").find("12 bytes of data, but its tensors take 8") != std::string::npos);
  std::string huge = with_header("{}");
  huge.replace(0, 8, "\xff\xff\xff\xff\xff\xff\xff\xff");
  BOOST_TEST(refusal([&] { (void)read(huge); }).find("its header would have") != std::string::npos);
}

// --- the format

BOOST_AUTO_TEST_CASE(what_is_written_is_read_back) {
  const Example example;
  const SafeTensors& contents = example.contents;
  const std::string text = text_of(contents);
  const SafeTensors back = read(text);
  BOOST_TEST((back.metadata == contents.metadata));
  BOOST_TEST(back.tensors.size() == 4U);
  for (const auto& [name, tensor] : contents.tensors) {
    const TensorView& other = back.tensors.at(name);
    BOOST_TEST((other.dtype == tensor.dtype && other.shape == tensor.shape));
    BOOST_TEST(std::ranges::equal(other.data, tensor.data), name);
    BOOST_TEST(is_sound(other), name);
  }
  BOOST_TEST((text_of(back) == text));
  std::uint64_t length = 0;
  std::memcpy(&length, text.data(), sizeof length);
  BOOST_TEST(length % 8 == 0U);
  BOOST_TEST(text.size() == 8 + length + 4 * 8 + 3 * 4 + 4);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
