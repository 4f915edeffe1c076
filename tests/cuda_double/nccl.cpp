// NCCL between the threads of one process, each of which stands for the process of a rank, on the GPU of gpu.h; two
// ranks may share that, as NCCL's may not. What is sent waits in memory of the host: a send never waits for its
// receive, and takes no time besides that of its bytes.
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "tests/cuda_double/gpu.h"
#include "tests/cuda_double/run.h"
#include "tests/exec/nccl_core.h"

namespace dualpipe::test {
namespace {

class Communicators final : public NcclCore {
 public:
  [[nodiscard]] static Communicators& all() {
    static Communicators& communicators = *new Communicators;  // outlives all that use it when the process ends
    return communicators;
  }

 private:
  // All sends first: those of a group move side by side.
  void launch(const std::shared_ptr<Group>& group) override {
    const auto stream = std::any_cast<cudaStream_t>(group->stream);
    for (const auto& each : group->transfers) {
      if (each->is_send) send(each, stream);
    }
    post(group);
    for (const auto& each : group->transfers) {
      if (!each->is_send) receive(group, each, stream);
    }
  }
  void misused(const std::string& how) override { fault(how); }

  static void send(const std::shared_ptr<Transfer>& transfer, cudaStream_t stream) {
    transfer->content.resize(transfer->bytes);
    const auto copy = [transfer] { std::memcpy(transfer->content.data(), transfer->data, transfer->bytes); };
    transfer->carried = defer_on(
        stream, "ncclSend", {{transfer->data, transfer->bytes, false}}, [] { return Point{}; }, copy);
  }

  // After its message was sent; or when the communicator is aborted.
  void receive(const std::shared_ptr<Group>& group, const std::shared_ptr<Transfer>& transfer, cudaStream_t stream) {
    const auto sent = std::make_shared<std::shared_ptr<Transfer>>();
    const auto arrived = [=, this]() -> std::optional<Point> {
      const std::lock_guard lock(mutex_);
      if (is_aborted(*group)) return Point{};
      if (!transfer->is_matched) return std::nullopt;
      *sent = transfer->sent;
      return Point{0, {}, {std::static_pointer_cast<Deferred>((*sent)->carried)}};
    };
    const auto copy = [=] {
      if (*sent) std::memcpy(transfer->data, (*sent)->content.data(), transfer->bytes);
    };
    defer_on(stream, "ncclRecv", {{transfer->data, transfer->bytes, true}}, arrived, copy);
  }
};

ncclResult_t add(ncclComm_t communicator, bool is_send, void* data, std::size_t count, ncclDataType_t type, int peer,
                 cudaStream_t stream) {
  if (type != ncclUint8) fault("messages are bytes here");
  Communicators::all().add(communicator, {data, count, peer, is_send}, stream);
  return ncclSuccess;
}

}  // namespace
}  // namespace dualpipe::test

using namespace dualpipe::test;

extern "C" {

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclInvalidArgument ? "invalid argument" : "an error of the double";
}
const char* ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  *id = {};
  const std::string drawn = Communicators::all().unique_id();
  std::memcpy(id->internal, drawn.data(), drawn.size());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* communicator, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->magic != 0xcafebeef || config->blocking != 0) fault("a communicator that blocks");
  if (rank < 0 || rank >= ranks) return ncclInvalidArgument;
  *communicator = static_cast<ncclComm_t>(Communicators::all().init(id.internal, rank, ranks));
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* result) {
  *result = Communicators::all().is_done(communicator) ? ncclSuccess : ncclInProgress;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  Communicators::all().group_start();
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  Communicators::all().group_end();
  return ncclInProgress;
}

ncclResult_t ncclSend(const void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  return add(communicator, true, const_cast<void*>(data), count, type, peer, stream);
}
ncclResult_t ncclRecv(void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  return add(communicator, false, data, count, type, peer, stream);
}

ncclResult_t ncclCommFinalize(ncclComm_t communicator) {
  Communicators::all().finalize(communicator);
  return ncclInProgress;
}
ncclResult_t ncclCommDestroy(ncclComm_t communicator) {
  Communicators::all().destroy(communicator);
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t communicator) {
  Communicators::all().abort(communicator);
  return ncclSuccess;
}

}  // extern "C"
