// A tensor in the memory of another tensor, with a function that decides when that memory goes back to its allocator.
// Private to devices.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>
#include <c10/core/TensorImpl.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <utility>

namespace dualpipe::detail::device {

using Release = std::function<void(at::Tensor)>;

// A tensor equal to `tensor`, in the same memory, and outside of its autograd graph. When the last reference to the
// result or to a view of it goes, on whichever thread, `release` is called with `tensor`. If it throws, `tensor` is
// freed.
[[nodiscard]] inline at::Tensor alias_with_release(at::Tensor tensor, Release release) {
  struct Alias {
    at::Tensor tensor;
    Release release;

    static void end(void* context) noexcept {
      const std::unique_ptr<Alias> alias(static_cast<Alias*>(context));
      try {
        alias->release(std::move(alias->tensor));
      } catch (const std::exception&) {  // the device has failed, as its rank will hear
      }
    }
  };
  if (!tensor.defined() || !tensor.has_storage()) return tensor;

  c10::StorageImpl& memory = *tensor.storage().unsafeGetStorageImpl();
  void* const data = memory.mutable_data_ptr().mutable_get();
  const std::size_t bytes = memory.nbytes();
  const at::Device device = tensor.device();
  const auto keys = c10::DispatchKeySet(tensor.options().computeDispatchKey());
  const auto type = tensor.dtype();
  const auto sizes = tensor.sizes().vec();
  const auto strides = tensor.strides().vec();
  const std::int64_t offset = tensor.storage_offset();

  c10::DataPtr aliased(data, new Alias{std::move(tensor), std::move(release)}, &Alias::end, device);
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, std::move(aliased));
  at::Tensor result = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, type);
  result.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
  return result;
}

}  // namespace dualpipe::detail::device
