// LibTorch's library of CUDA kernels, by those of the CPU: a tensor of the GPU is looked at as one of the host, since
// the memory of the GPU of gpu.h is that.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Copy.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/native/TensorIterator.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/cuda_double/run.h"

// Not in its header; LibTorch's hooks set it.
namespace c10::cuda::_internal {
C10_CUDA_API void setHasPrimaryContext(bool (*function)(c10::DeviceIndex));
}

namespace dualpipe::test {
namespace {

using torch::jit::Stack;

c10::Allocator* memory() { return c10::cuda::CUDACachingAllocator::get(); }

constexpr c10::DispatchKeySet keys(c10::DispatchKey::CUDA);

// The bytes between its first and its last element.
Access access_of(const at::Tensor& tensor, bool writes) {
  if (tensor.numel() == 0) return {};
  std::int64_t last = 0;
  for (std::int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
  return {tensor.const_data_ptr(), static_cast<std::size_t>(last + 1) * tensor.itemsize(), writes};
}

at::Tensor on_host(const at::Tensor& tensor) {
  void* const data = tensor.numel() == 0 ? nullptr : const_cast<void*>(tensor.const_data_ptr());
  return at::from_blob(data, tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU).requires_grad(false));
}

// One call of an operator.
class Call {
 public:
  Call(const c10::OperatorHandle& op, Stack& stack) : op_(op), stack_(stack) {}

  void run() {
    const auto& schema = op_.schema();
    const std::size_t first = stack_.size() - schema.arguments().size();
    for (std::size_t i = 0; i < schema.arguments().size(); ++i) {
      stack_[first + i] = host_value(stack_[first + i], schema.arguments()[i]);
    }
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
    run_on(stream, schema.name().c_str(), accesses_, [&] {
      const at::AutoDispatchBelowADInplaceOrView below;
      op_.callBoxed(stack_);
    });
    const std::size_t results = stack_.size() - schema.returns().size();
    for (std::size_t i = results; i < stack_.size(); ++i) stack_[i] = gpu_value(stack_[i], stream);
  }

 private:
  struct Given {
    at::Tensor gpu;
    at::Tensor host;
  };

  // What is only written, a kernel may first make larger, which memory that it does not own cannot be.
  at::Tensor host_tensor(const at::Tensor& tensor, const c10::Argument& argument) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    if (argument.is_out()) {
      return given_.emplace_back(Given{tensor, at::empty({0}, tensor.options().device(at::kCPU))}).host;
    }
    accesses_.push_back(access_of(tensor, argument.alias_info() != nullptr && argument.alias_info()->isWrite()));
    return given_.emplace_back(Given{tensor, on_host(tensor)}).host;
  }

  c10::IValue host_value(const c10::IValue& value, const c10::Argument& argument) {
    if (value.isTensor()) return host_tensor(value.toTensor(), argument);
    if (value.isDevice() && value.toDevice().is_cuda()) return at::Device(at::kCPU);
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& each : value.toTensorVector()) list.push_back(host_tensor(each, argument));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& each : value.toOptionalTensorVector()) {
        list.push_back(each ? std::optional(host_tensor(*each, argument)) : std::nullopt);
      }
      return list;
    }
    return value;
  }

  // One of those that were given, a view of one, or a new one.
  at::Tensor gpu_tensor(const at::Tensor& tensor, cudaStream_t stream) {
    if (!tensor.defined()) return tensor;
    for (const Given& each : given_) {
      if (tensor.is_same(each.host)) {
        if (tensor.const_data_ptr() == each.gpu.const_data_ptr()) return each.gpu;
        if (tensor.sizes() != each.gpu.sizes()) each.gpu.resize_(tensor.sizes());
        return copied(tensor, each.gpu, stream);
      }
      if (tensor.is_alias_of(each.host)) {
        return each.gpu.as_strided(tensor.sizes(), tensor.strides(),
                                   tensor.storage_offset() + each.gpu.storage_offset());
      }
    }
    return copied(tensor, at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kCUDA)),
                  stream);
  }

  at::Tensor copied(const at::Tensor& tensor, const at::Tensor& result, cudaStream_t stream) {
    const std::vector<Access> written = {access_of(result, true)};
    run_on(stream, op_.schema().name().c_str(), written, [&] { on_host(result).copy_(tensor); });
    return result;
  }

  c10::IValue gpu_value(const c10::IValue& value, cudaStream_t stream) {
    if (value.isTensor()) return gpu_tensor(value.toTensor(), stream);
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> list;
    for (const at::Tensor& each : value.toTensorVector()) list.push_back(gpu_tensor(each, stream));
    return list;
  }

  const c10::OperatorHandle& op_;
  Stack& stack_;
  std::vector<Access> accesses_;
  std::vector<Given> given_;
};

void run_on_host(const c10::OperatorHandle& op, Stack* stack) { Call(op, *stack).run(); }

// Memory, and views of it.

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, memory(), keys, c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, memory(), keys, c10::dtype_or_default(type));
}

const at::Tensor& resize(const at::Tensor& tensor, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  impl.set_sizes_contiguous(size);
  const std::size_t bytes = static_cast<std::size_t>(tensor.numel() + tensor.storage_offset()) * tensor.itemsize();
  c10::StorageImpl& storage = *tensor.storage().unsafeGetStorageImpl();
  if (storage.nbytes() >= bytes) return tensor;
  TORCH_CHECK(storage.nbytes() == 0, "the double of CUDA makes no tensor larger that has elements");
  storage.set_data_ptr_noswap(memory()->allocate(bytes));
  storage.set_nbytes(bytes);
  return tensor;
}

at::Scalar local_scalar(const at::Tensor& tensor) { return tensor.cpu().item(); }

// LibTorch's attention for CUDA has kernels of its own; the one that is put together of others is not among them.
std::int64_t attention_by_parts(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                const std::optional<at::Tensor>&, double, bool, std::optional<double>, bool) {
  return 0;  // at::SDPBackend::math
}

// The host waits for what it gets, and for what is not pinned.
void copy(at::TensorIterator& iterator, bool non_blocking) {
  const at::Tensor to = iterator.tensor(0);
  const at::Tensor from = iterator.tensor(1);
  std::vector<Access> accesses;
  if (from.is_cuda()) accesses.push_back(access_of(from, false));
  if (to.is_cuda()) accesses.push_back(access_of(to, true));
  const auto host = [](const at::Tensor& tensor) { return tensor.is_cuda() ? on_host(tensor) : tensor; };
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
  run_on(stream.stream(), "copy_", accesses, [&] { host(to).copy_(host(from)); });
  if (!to.is_cuda() || (!from.is_cuda() && !non_blocking)) stream.synchronize();
}

struct Hooks final : at::CUDAHooksInterface {
  Hooks() = default;
  explicit Hooks(at::CUDAHooksArgs) {}

  void init() const override {
    c10::cuda::_internal::setHasPrimaryContext([](c10::DeviceIndex) { return true; });
    c10::cuda::CUDACachingAllocator::init(c10::cuda::device_count());
  }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return c10::cuda::device_count(); }
  int getNumGPUs() const override { return c10::cuda::device_count(); }
  void setCurrentDevice(c10::DeviceIndex device) const override { c10::cuda::set_device(device); }
  c10::DeviceIndex getCurrentDevice() const override { return c10::cuda::current_device(); }
  c10::DeviceIndex current_device() const override { return c10::cuda::current_device(); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override { return c10::cuda::ExchangeDevice(device); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return c10::cuda::MaybeExchangeDevice(device);
  }
  at::Device getDeviceFromPtr(void*) const override { return {at::kCUDA, 0}; }
  void deviceSynchronize(c10::DeviceIndex) const override { c10::cuda::device_synchronize(); }
};

}  // namespace
}  // namespace dualpipe::test

namespace at {
using CUDAHooks = dualpipe::test::Hooks;  // by this name it is looked for
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

namespace at::native {
REGISTER_CUDA_DISPATCH(copy_stub, &dualpipe::test::copy)
}  // namespace at::native

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&dualpipe::test::run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", &dualpipe::test::empty);
  library.impl("empty_strided", &dualpipe::test::empty_strided);
  library.impl("resize_", &dualpipe::test::resize);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("view", &at::native::view);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("unfold", &at::native::unfold);
  library.impl("_local_scalar_dense", &dualpipe::test::local_scalar);
  library.impl("_fused_sdp_choice", &dualpipe::test::attention_by_parts);
}
