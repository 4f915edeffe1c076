#include "dualpipe/exec/cuda/nccl.h"

#include <c10/cuda/CUDAStream.h>
#include <fmt/format.h>
#include <nccl.h>

#include <algorithm>
#include <cstring>
#include <source_location>
#include <string>

namespace dualpipe::detail::cuda {
namespace {

ncclComm_t handle_of(Nccl::Communicator communicator) { return static_cast<ncclComm_t>(communicator); }

// A nonblocking call that is under way has not failed.
void check(ncclResult_t result, ncclComm_t communicator = nullptr,
           const std::source_location& place = std::source_location::current()) {
  if (result == ncclSuccess || result == ncclInProgress) return;
  const char* const detail = ncclGetLastError(communicator);
  throw NcclError(fmt::format("NCCL: {}{}{} ({})", ncclGetErrorString(result),
                              detail == nullptr || *detail == '\0' ? "" : ": ", detail == nullptr ? "" : detail,
                              place.function_name()));
}

class RealNccl final : public Nccl {
 public:
  [[nodiscard]] c10::DeviceType device_type() const override { return c10::DeviceType::CUDA; }

  [[nodiscard]] std::string unique_id() override {
    ncclUniqueId id{};
    check(ncclGetUniqueId(&id));
    return {id.internal, sizeof(id.internal)};
  }

  [[nodiscard]] Communicator init(const std::string& unique_id, int rank, int ranks, int ctas_max) override {
    ncclUniqueId id{};
    if (unique_id.size() != sizeof(id.internal)) throw NcclError("NCCL: the identifier of another version");
    std::memcpy(id.internal, unique_id.data(), sizeof(id.internal));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.splitShare = 0;
    config.minCTAs = 1;
    config.maxCTAs = ctas_max;
    ncclComm_t communicator = nullptr;
    check(ncclCommInitRankConfig(&communicator, ranks, id, rank, &config));
    return communicator;
  }

  [[nodiscard]] State state(Communicator communicator) override {
    ncclResult_t state = ncclSuccess;
    check(ncclCommGetAsyncError(handle_of(communicator), &state), handle_of(communicator));
    check(state, handle_of(communicator));
    return state == ncclInProgress ? State::in_progress : State::done;
  }

  void group_start() override { check(ncclGroupStart()); }
  void send(Communicator communicator, const void* data, std::size_t bytes, int peer) override {
    check(ncclSend(data, bytes, ncclUint8, peer, handle_of(communicator), stream()), handle_of(communicator));
  }
  void receive(Communicator communicator, void* data, std::size_t bytes, int peer) override {
    check(ncclRecv(data, bytes, ncclUint8, peer, handle_of(communicator), stream()), handle_of(communicator));
  }
  void group_end() override { check(ncclGroupEnd()); }

  void finalize(Communicator communicator) override {
    check(ncclCommFinalize(handle_of(communicator)), handle_of(communicator));
  }
  void destroy(Communicator communicator) override { check(ncclCommDestroy(handle_of(communicator))); }
  void abort(Communicator communicator) override { check(ncclCommAbort(handle_of(communicator))); }

 private:
  // Of the stream that this thread uses.
  [[nodiscard]] static cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }
};

}  // namespace

std::shared_ptr<Nccl> make_nccl() { return std::make_shared<RealNccl>(); }

}  // namespace dualpipe::detail::cuda
