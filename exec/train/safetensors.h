// The safetensors file format (github.com/huggingface/safetensors, "Format"), which most tools of the field can open:
//
//     8 bytes    little-endian: the length of the header
//     header     JSON: {"__metadata__": {"steps": "6"}, "head.norm.weight": {"dtype": "F32", "shape": [64],
//                "data_offsets": [0, 256]}, …}; offsets count from the end of the header
//     data       of all tensors, little-endian, each in row-major order, without gaps
//
// Private to exec/train.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace dualpipe {

// A tensor whose elements are somebody else's.
struct TensorView {
  at::ScalarType dtype = at::kFloat;  // or at::kDouble
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;
  at::Tensor copy;  // that `data` looks into, if it is of a tensor on another device
};

// Of a contiguous tensor. Where it is in the CPU's memory, it must outlive the view; else this copies it there.
[[nodiscard]] TensorView view_of(const at::Tensor& tensor);

struct SafeTensors {
  std::map<std::string, std::string> metadata;
  std::map<std::string, TensorView> tensors;  // by name
};

// The same contents are always the same bytes.
void write_safetensors(std::ostream& out, const SafeTensors& contents);

// `bytes`: a whole file, which the result looks into; `source`: its name. Trusts nothing in it. Throws InputError that
// names the source, the tensor if it is one, and what is wrong.
[[nodiscard]] SafeTensors read_safetensors(std::span<const std::byte> bytes, const std::string& source);

}  // namespace dualpipe
