// The safetensors file format (github.com/huggingface/safetensors, "Format"), which most tools of the field can open:
//
//     8 bytes    little-endian: the length of the header
//     header     JSON: {"__metadata__": {"steps": "6"}, "head.norm.weight": {"dtype": "F32", "shape": [64],
//                "data_offsets": [0, 256]}, …}; offsets count from the end of the header
//     data       of all tensors, little-endian, each in row-major order, without gaps
//
// The format has no checksum. Ours stand in the metadata, which other tools leave alone: CRC-32 (exec/model/crc32.h),
// as 8 hexadecimal digits each. The metadata come first in the header, and these first among them:
//
//     "header_crc32"    of all up to the data, with zeros in the place of its own digits
//     "tensor_crc32"    of the data of each tensor, with a space between; in the order of their names, byte by byte
//
// So every byte of a file is under one of them; and who needs some of the tensors reads, and checks, these alone.
//
// Private to exec/train.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dualpipe::detail::train {

// Throws InputError: the file, and why it is refused.
[[noreturn]] void refuse(const std::string& file, std::string_view why);

// A tensor whose elements are somebody else's.
struct TensorView {
  at::ScalarType dtype = at::kFloat;  // or at::kDouble
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;        // at any address, also where no number may lie
  std::optional<std::uint32_t> checksum;  // that `data` should have; nothing: the file that it is of does not say
  at::Tensor copy;                        // that `data` looks into, if it is of a tensor on another device
};

// Of a contiguous tensor of float32 or float64, which must not change any more. Where it is in the CPU's memory, it
// must outlive the view; else this copies it there.
[[nodiscard]] TensorView view_of(const at::Tensor& tensor);

// Whether `data` have the checksum; false where there is none.
[[nodiscard]] bool is_sound(const TensorView& view);
// The first element that is a NaN or infinite, for people: "nan at element 3 of 64"; empty if there is none.
[[nodiscard]] std::string not_finite_in(const TensorView& view);

struct SafeTensors {
  std::map<std::string, std::string> metadata;  // but for the checksums
  std::map<std::string, TensorView> tensors;    // by name
  // Of a file that was read: that of its header, and so of all that it says, the tensors' checksums included; empty: it
  // has none.
  std::string checksum;
};

// The same contents are always the same bytes. Every tensor has its checksum.
void write_safetensors(std::ostream& out, const SafeTensors& contents);

// `bytes`: a whole file, which the result looks into; `source`: its name. Trusts nothing in it. Throws InputError that
// names the source, the tensor if it is one, and what is wrong: also where the header has another checksum than it
// says. The tensors' are left to who reads them (is_sound()).
[[nodiscard]] SafeTensors read_safetensors(std::span<const std::byte> bytes, const std::string& source);

}  // namespace dualpipe::detail::train
