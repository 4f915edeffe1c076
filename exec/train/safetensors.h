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
// So every byte of a file is under a checksum, and whoever needs only some of the tensors reads and checks only these.
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

// A tensor that does not own its elements.
struct TensorView {
  at::ScalarType dtype = at::kFloat;  // or at::kDouble
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;        // at any address, aligned or not
  std::optional<std::uint32_t> checksum;  // that `data` should have; nothing where the file does not say
  at::Tensor holder;                      // that `data` refers to, kept as long as the view; none where it is of a file
};

// A view of a contiguous tensor of float32 or float64, which must not change while the view is used. One that is not in
// the CPU's memory is copied there.
[[nodiscard]] TensorView view_of(const at::Tensor& tensor);

// Whether `data` have the checksum; false where there is none.
[[nodiscard]] bool is_sound(const TensorView& view);
// The first element that is a NaN or infinite, for people: "nan at element 3 of 64"; empty if there is none.
[[nodiscard]] std::string not_finite_in(const TensorView& view);

struct SafeTensors {
  std::map<std::string, std::string> metadata;  // but for the checksums
  std::map<std::string, TensorView> tensors;    // by name
  // Of a file that was read: the checksum of its header, which includes the checksums of the tensors, and so stands for
  // the whole file. Empty where it has none.
  std::string checksum;
};

// The same contents are always the same bytes. Every tensor has its checksum.
void write_safetensors(std::ostream& out, const SafeTensors& contents);

// `bytes`: a whole file, which the result refers to, and of which nothing is taken for granted; `source`: its name.
// Throws InputError that names the source, the tensor if one is the reason, and what is wrong. It checks the checksum
// of the header; those of the tensors are checked by whoever reads these (is_sound()).
[[nodiscard]] SafeTensors read_safetensors(std::span<const std::byte> bytes, const std::string& source);

}  // namespace dualpipe::detail::train
