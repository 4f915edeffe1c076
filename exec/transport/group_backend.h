// Ranks that a process group of LibTorch's (c10d::ProcessGroup) connects, which somebody else has made. Private to
// exec/transport.
//
//     host (gloo)    a Work for each tensor; streams are told apart by their tags
//     GPU (nccl, …)  one coalesced Work for each group, for which the device's stream waits; one stream,
//                    since there are no tags
//
// gloo's Work is not what c10d's header says:
//
// 1. isCompleted() becomes true only in wait(). So the rank's thread waits for what it receives, and another thread for
//    what was sent, so that it is released.
// 2. A wait that expires closes the connection to the peer, and with it the group. So no wait here expires: the
//    transport's watchdog ends it by Work::abort(). After that the group can be used again, if what was aborted is
//    kept.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/ordered_backend.h"

namespace c10d {
class ProcessGroup;
}  // namespace c10d

namespace dualpipe::detail::transport {

[[nodiscard]] std::string text_of(c10d::ProcessGroup& group);  // "process group 'pipeline'"

class GroupBackend final : public OrderedBackend {
 public:
  // The messages of stream i have the tag `first_tag` + i, which nobody else uses in this group.
  GroupBackend(c10::intrusive_ptr<c10d::ProcessGroup> group, int first_tag);
  ~GroupBackend() override;

  [[nodiscard]] std::string_view name() const override { return "the process group"; }
  void begin(at::Device where) override;
  [[nodiscard]] std::size_t streams() const override { return is_on_host_ ? 2 : 1; }
  void connect(std::size_t /*stream*/) override {}  // it is connected
  [[nodiscard]] bool is_ready(std::size_t stream) override;
  [[nodiscard]] std::shared_ptr<Work> put(std::size_t stream, std::span<const Transfer> transfers) override;
  void check() override;
  void cancel() override;
  void close(std::chrono::nanoseconds timeout) override;

 private:
  class HostWork;
  using Sent = std::pair<std::shared_ptr<HostWork>, std::size_t>;  // a transfer of it

  static void keep_with(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                        std::vector<std::shared_ptr<HostWork>> works);
  [[nodiscard]] std::shared_ptr<Work> put_on_host(std::size_t stream, std::span<const Transfer> transfers);
  void put_on_device(std::span<const Transfer> transfers, at::DeviceType type);
  void await_sent();

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  int first_tag_;
  bool is_on_host_ = true;

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::vector<std::shared_ptr<HostWork>> under_way_;
  std::deque<Sent> sent_;
  std::size_t unsent_ = 0;  // of these, and the one that is waited for
  std::string failure_;
  bool is_cancelled_ = false;
  bool is_ending_ = false;
  std::thread awaiting_;  // what was sent
};

}  // namespace dualpipe::detail::transport
