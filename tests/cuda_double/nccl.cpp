// NCCL between the threads of one process, each of which stands for the process of a rank, on the GPU of gpu.h; two
// ranks may share that, as NCCL's may not. Nonblocking communicators alone. What is sent waits in memory of the host: a
// send never waits for its receive, and takes no time besides that of its bytes.
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/cuda_double/gpu.h"
#include "tests/cuda_double/run.h"

namespace dualpipe::test {
namespace {

struct Message {
  std::shared_ptr<std::vector<std::byte>> bytes;
  std::shared_ptr<Deferred> sent;
};

// What the ranks of a communicator share.
struct Meeting {
  std::mutex mutex;
  int ranks = 0;
  int joined = 0;
  std::map<std::pair<int, int>, std::deque<Message>> under_way;  // by sender and receiver
};

// By what is in their identifiers.
std::shared_ptr<Meeting> meeting_of(const ncclUniqueId& id, int ranks) {
  static std::mutex mutex;
  static auto& meetings = *new std::map<std::string, std::shared_ptr<Meeting>>;
  const std::lock_guard lock(mutex);
  std::shared_ptr<Meeting>& meeting = meetings[std::string(id.internal, sizeof(id.internal))];
  if (!meeting) meeting = std::make_shared<Meeting>();
  meeting->ranks = ranks;
  return meeting;
}

}  // namespace
}  // namespace dualpipe::test

using namespace dualpipe::test;

// One rank's communicator.
struct ncclComm {
  std::shared_ptr<Meeting> meeting;
  int rank = 0;
  std::shared_ptr<std::atomic<bool>> is_aborted = std::make_shared<std::atomic<bool>>(false);
  bool is_finalized = false;

  void send(void* data, std::size_t size, int peer, cudaStream_t stream) {
    const auto bytes = std::make_shared<std::vector<std::byte>>(size);
    const auto copy = [bytes, data] { std::memcpy(bytes->data(), data, bytes->size()); };
    const auto sent = defer_on(
        stream, "ncclSend", {{data, size, false}}, [] { return Point{}; }, copy);
    const std::lock_guard lock(meeting->mutex);
    meeting->under_way[{rank, peer}].push_back({bytes, sent});
  }

  // After its message was sent; or when the communicator is aborted.
  void receive(void* data, std::size_t size, int peer, cudaStream_t stream) {
    const auto message = std::make_shared<Message>();
    const auto arrived = [=, meeting = meeting, key = std::pair(peer, rank),
                          is_aborted = is_aborted]() -> std::optional<Point> {
      if (*is_aborted) return Point{};
      const std::lock_guard lock(meeting->mutex);
      std::deque<Message>& messages = meeting->under_way[key];
      if (messages.empty()) return std::nullopt;
      *message = std::move(messages.front());
      messages.pop_front();
      if (message->bytes->size() != size) {
        fault(fmt::format("a receive of {} bytes gets {}", size, message->bytes->size()));
      }
      return Point{0, {}, {message->sent}};
    };
    const auto copy = [=] {
      if (message->bytes) std::memcpy(data, message->bytes->data(), size);
    };
    defer_on(stream, "ncclRecv", {{data, size, true}}, arrived, copy);
  }

  [[nodiscard]] bool is_in_progress() const {
    const std::lock_guard lock(meeting->mutex);
    return meeting->joined < meeting->ranks;
  }

  [[nodiscard]] bool owes() const {
    const std::lock_guard lock(meeting->mutex);
    return std::ranges::any_of(meeting->under_way,
                               [&](const auto& each) { return each.first.second == rank && !each.second.empty(); });
  }
};

namespace {

struct Call {
  ncclComm* communicator = nullptr;
  bool is_send = false;
  void* data = nullptr;
  std::size_t size = 0;
  int peer = 0;
  cudaStream_t stream = nullptr;
};

thread_local int group_depth = 0;
thread_local std::vector<Call> group;

// All sends first: those of a group move side by side.
ncclResult_t run_group() {
  const std::vector<Call> calls = std::exchange(group, {});
  for (const auto& [communicator, is_send, data, size, peer, stream] : calls) {
    if (is_send) communicator->send(data, size, peer, stream);
  }
  for (const auto& [communicator, is_send, data, size, peer, stream] : calls) {
    if (!is_send) communicator->receive(data, size, peer, stream);
  }
  return calls.empty() ? ncclSuccess : ncclInProgress;
}

ncclResult_t call(ncclComm* communicator, bool is_send, void* data, std::size_t count, ncclDataType_t type, int peer,
                  cudaStream_t stream) {
  if (type != ncclUint8) fault("messages are bytes here");
  if (communicator->is_finalized) fault("a message of a communicator that is finalized");
  if (communicator->is_in_progress()) fault("a message of a communicator that is still in a call");
  if (peer < 0 || peer >= communicator->meeting->ranks) return ncclInvalidArgument;
  group.push_back({communicator, is_send, data, count, peer, stream});
  return group_depth > 0 ? ncclSuccess : run_group();
}

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclInvalidArgument ? "invalid argument" : "an error of the double";
}
const char* ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::mutex mutex;
  static int made = 0;
  const std::lock_guard lock(mutex);
  *id = {};
  fmt::format_to_n(id->internal, sizeof(id->internal), "{}", ++made);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* communicator, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->magic != 0xcafebeef || config->blocking != 0) fault("a communicator that blocks");
  if (rank < 0 || rank >= ranks) return ncclInvalidArgument;
  *communicator = new ncclComm{meeting_of(id, ranks), rank};
  const std::lock_guard lock((*communicator)->meeting->mutex);
  ++(*communicator)->meeting->joined;
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* result) {
  *result = communicator->is_in_progress() ? ncclInProgress : ncclSuccess;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (--group_depth < 0) fault("a group ends that has not begun");
  return group_depth > 0 ? ncclSuccess : run_group();
}

ncclResult_t ncclSend(const void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  return call(communicator, true, const_cast<void*>(data), count, type, peer, stream);
}
ncclResult_t ncclRecv(void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  return call(communicator, false, data, count, type, peer, stream);
}

ncclResult_t ncclCommFinalize(ncclComm_t communicator) {
  communicator->is_finalized = true;
  return ncclInProgress;
}
ncclResult_t ncclCommDestroy(ncclComm_t communicator) {
  if (!communicator->is_finalized) fault("a communicator is destroyed that is not finalized");
  if (communicator->owes()) fault("a communicator ends with messages under way");
  delete communicator;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t communicator) {
  *communicator->is_aborted = true;
  delete communicator;
  return ncclSuccess;
}

}  // extern "C"
