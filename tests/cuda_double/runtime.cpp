// What LibTorch's streams and allocator, and exec/cuda, call of CUDA's runtime and, for green contexts, of its driver,
// over the GPU of gpu.h. Behaves as the CUDA Runtime API and Driver API say.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/cuda_double/gpu.h"
#include "tests/cuda_double/run.h"

namespace dualpipe::test {
namespace {

constexpr int greatest_priority = -5;
constexpr unsigned multiprocessor_unit = 8;

struct DoubleEvent {
  bool knows_time = false;
  bool is_recorded = false;
  Point point;
};

struct DoubleContext {
  int multiprocessors = 0;
};

Gpu& gpu() { return Gpu::only(); }

Stream& stream_of(cudaStream_t stream) {
  return stream == nullptr ? gpu().default_stream() : *reinterpret_cast<Stream*>(stream);
}
DoubleEvent& event_of(cudaEvent_t event) { return *reinterpret_cast<DoubleEvent*>(event); }

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t error(cudaError_t status) { return last_error = status; }

CUresult device_get(CUdevice* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult error_string(CUresult, const char** text) {
  *text = "an error of the double";
  return CUDA_SUCCESS;
}

CUresult device_resource(CUdevice, CUdevResource* resource, CUdevResourceType type) {
  if (type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
  *resource = {};
  resource->type = type;
  resource->sm = {Gpu::multiprocessors, multiprocessor_unit, multiprocessor_unit};
  return CUDA_SUCCESS;
}

// As many groups as asked for and there are, of at least so many multiprocessors, in units.
CUresult split(CUdevResource* groups, unsigned* count, const CUdevResource* input, CUdevResource* rest, unsigned,
               unsigned least) {
  const unsigned size = (std::max(least, 1U) + multiprocessor_unit - 1) / multiprocessor_unit * multiprocessor_unit;
  *count = std::min(*count, input->sm.smCount / size);
  for (unsigned i = 0; i < *count; ++i) {
    groups[i] = *input;
    groups[i].sm.smCount = size;
  }
  if (rest != nullptr) {
    *rest = *input;
    rest->sm.smCount = input->sm.smCount - *count * size;
  }
  return CUDA_SUCCESS;
}

CUresult describe(CUdevResourceDesc* description, CUdevResource* resources, unsigned count) {
  if (count != 1) return CUDA_ERROR_INVALID_VALUE;
  *description = reinterpret_cast<CUdevResourceDesc>(new CUdevResource(*resources));
  return CUDA_SUCCESS;
}

CUresult make_context(CUgreenCtx* context, CUdevResourceDesc description, CUdevice, unsigned flags) {
  if (flags != CU_GREEN_CTX_DEFAULT_STREAM) return CUDA_ERROR_INVALID_VALUE;
  const auto* const resource = reinterpret_cast<const CUdevResource*>(description);
  *context = reinterpret_cast<CUgreenCtx>(new DoubleContext{static_cast<int>(resource->sm.smCount)});
  return CUDA_SUCCESS;
}

CUresult make_stream_in(CUstream* stream, CUgreenCtx context, unsigned flags, int priority) {
  if ((flags & CU_STREAM_NON_BLOCKING) == 0) return CUDA_ERROR_INVALID_VALUE;
  const int parts = reinterpret_cast<const DoubleContext*>(context)->multiprocessors;
  *stream = reinterpret_cast<CUstream>(&gpu().make_stream(parts, std::clamp(priority, greatest_priority, 0)));
  return CUDA_SUCCESS;
}

void* driver_function(std::string_view name) {
  static const std::map<std::string_view, void*> functions = {
      {"cuDeviceGet", reinterpret_cast<void*>(&device_get)},
      {"cuGetErrorString", reinterpret_cast<void*>(&error_string)},
      {"cuDeviceGetDevResource", reinterpret_cast<void*>(&device_resource)},
      {"cuDevSmResourceSplitByCount", reinterpret_cast<void*>(&split)},
      {"cuDevResourceGenerateDesc", reinterpret_cast<void*>(&describe)},
      {"cuGreenCtxCreate", reinterpret_cast<void*>(&make_context)},
      {"cuGreenCtxStreamCreate", reinterpret_cast<void*>(&make_stream_in)},
  };
  const auto found = functions.find(name);
  return found == functions.end() ? nullptr : found->second;
}

void copy(void* to, const void* from, std::size_t count, Stream& stream) {
  std::vector<Access> accesses;
  if (gpu().owns(from)) accesses.push_back({from, count, false});
  if (gpu().owns(to)) accesses.push_back({to, count, true});
  gpu().run(stream, "a copy", accesses, [&] { std::memcpy(to, from, count); });
}

}  // namespace

void run_on(cudaStream_t stream, const char* name, std::span<const Access> accesses, const Work& work) {
  gpu().run(stream_of(stream), name, accesses, work);
}

std::shared_ptr<Deferred> defer_on(cudaStream_t stream, const char* name, std::vector<Access> accesses, Readiness ready,
                                   Work work) {
  return gpu().defer(stream_of(stream), name, std::move(accesses), std::move(ready), std::move(work));
}

}  // namespace dualpipe::test

using namespace dualpipe::test;

extern "C" {

// The device and the driver.

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : error(cudaErrorInvalidDevice); }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "double of CUDA on the host");
  properties->totalGlobalMem = Gpu::bytes;
  properties->major = 9;
  properties->multiProcessorCount = Gpu::multiprocessors;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->warpSize = 32;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = greatest_priority;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  *function = driver_function(name);
  *found = *function == nullptr ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    default:
      return "cudaError";
  }
}
const char* cudaGetErrorString(cudaError_t status) { return cudaGetErrorName(status); }

// Memory.

cudaError_t cudaMalloc(void** data, std::size_t size) {
  *data = gpu().allocate(size);
  return *data == nullptr ? error(cudaErrorMemoryAllocation) : cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  gpu().await_all();
  if (data != nullptr) gpu().free(data);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** data, std::size_t size, unsigned) { return cudaMalloc(data, size); }
cudaError_t cudaFreeHost(void* data) { return cudaFree(data); }
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = gpu().free_bytes();
  *total = Gpu::bytes;
  return cudaSuccess;
}

// The host waits for copies of its pageable memory, on a GPU that is staged.
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t count, cudaMemcpyKind kind, cudaStream_t stream) {
  copy(to, from, count, stream_of(stream));
  if (kind == cudaMemcpyDeviceToHost && !gpu().owns(to)) return cudaStreamSynchronize(stream);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t count, cudaMemcpyKind) {
  copy(to, from, count, gpu().default_stream());
  return cudaStreamSynchronize(nullptr);
}

// Streams.

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  if (flags != cudaStreamNonBlocking) fault("a stream that waits for the default one, which is not here");
  *stream = reinterpret_cast<cudaStream_t>(
      &gpu().make_stream(Gpu::multiprocessors, std::clamp(priority, greatest_priority, 0)));
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  gpu().await(gpu().end_of(stream_of(stream)));
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return gpu().is_reached(gpu().end_of(stream_of(stream))) ? cudaSuccess : error(cudaErrorNotReady);
}
cudaError_t cudaDeviceSynchronize() {
  gpu().await_all();
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (!event_of(event).is_recorded) fault("a stream waits for an event that nobody has recorded: it does not wait");
  gpu().wait(stream_of(stream), event_of(event).point);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

// Events.

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = reinterpret_cast<cudaEvent_t>(new DoubleEvent{(flags & cudaEventDisableTiming) == 0, false, {}});
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete &event_of(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event_of(event).point = gpu().end_of(stream_of(stream));
  event_of(event).is_recorded = true;
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return gpu().is_reached(event_of(event).point) ? cudaSuccess : error(cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  gpu().await(event_of(event).point);
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  for (const DoubleEvent* each : {&event_of(start), &event_of(end)}) {
    if (!each->knows_time || !each->is_recorded) return error(cudaErrorInvalidResourceHandle);
    if (!gpu().is_reached(each->point)) return error(cudaErrorNotReady);
  }
  const dualpipe::Time time = *gpu().time_of(event_of(end).point) - *gpu().time_of(event_of(start).point);
  *milliseconds = static_cast<float>(time) / 1e6F;
  return cudaSuccess;
}

// What LibTorch's library refers to, and nothing here calls.

#define DUALPIPE_NOT_THERE(name, ...) \
  cudaError_t name(__VA_ARGS__) { fault(#name " is not there"); }
DUALPIPE_NOT_THERE(cudaDeviceCanAccessPeer, int*, int, int)
DUALPIPE_NOT_THERE(cudaDeviceEnablePeerAccess, int, unsigned)
DUALPIPE_NOT_THERE(cudaDeviceGetDefaultMemPool, cudaMemPool_t*, int)
DUALPIPE_NOT_THERE(cudaFreeAsync, void*, cudaStream_t)
DUALPIPE_NOT_THERE(cudaGraphNodeGetDependencies, cudaGraphNode_t, cudaGraphNode_t*, cudaGraphEdgeData*, std::size_t*)
DUALPIPE_NOT_THERE(cudaIpcCloseMemHandle, void*)
DUALPIPE_NOT_THERE(cudaIpcGetMemHandle, cudaIpcMemHandle_t*, void*)
DUALPIPE_NOT_THERE(cudaIpcOpenMemHandle, void**, cudaIpcMemHandle_t, unsigned)
DUALPIPE_NOT_THERE(cudaMallocAsync, void**, std::size_t, cudaStream_t)
DUALPIPE_NOT_THERE(cudaMemPoolGetAttribute, cudaMemPool_t, cudaMemPoolAttr, void*)
DUALPIPE_NOT_THERE(cudaMemPoolSetAccess, cudaMemPool_t, const cudaMemAccessDesc*, std::size_t)
DUALPIPE_NOT_THERE(cudaMemPoolSetAttribute, cudaMemPool_t, cudaMemPoolAttr, void*)
DUALPIPE_NOT_THERE(cudaMemPoolTrimTo, cudaMemPool_t, std::size_t)
DUALPIPE_NOT_THERE(cudaMemcpyPeerAsync, void*, int, const void*, int, std::size_t, cudaStream_t)
DUALPIPE_NOT_THERE(cudaStreamGetCaptureInfo, cudaStream_t, cudaStreamCaptureStatus*, unsigned long long*, cudaGraph_t*,
                   const cudaGraphNode_t**, const cudaGraphEdgeData**, std::size_t*)

}  // extern "C"
