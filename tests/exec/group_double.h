// What behaves like gloo, between ranks that are threads of this process: a backend of LibTorch's own ProcessGroup.
//
// - Messages of two ranks are matched by their tags, those of one tag in order. A send takes what it sends when the
//   receive comes, and is done then.
// - Work::isCompleted() becomes true only in wait(). A wait that expires closes the connection: all that is under way
//   between the two, and comes after, fails. Work::abort() ends one wait, and leaves the connection as it is.
// - Misuse is taken down: a wait that expires, a second wait for one Work, messages of unlike sizes.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <tuple>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/process_group.h"

namespace dualpipe::test {

class GroupDouble {
 public:
  // `backend`: the name that it goes by.
  explicit GroupDouble(int ranks, std::string backend = "gloo");

  [[nodiscard]] int ranks() const { return ranks_; }
  // A rank's, with a store that all share.
  [[nodiscard]] c10::intrusive_ptr<c10d::ProcessGroup> group(int rank);

  // The process of this rank ends without a word: its connections are closed, and what it does from now on is for
  // nothing.
  void lose(int rank);

  // What a rank has sent and received, in order: "send 64 to 1", "receive 8 from 2"; without what is more than that.
  [[nodiscard]] std::vector<std::string> calls(int rank) const;
  [[nodiscard]] std::vector<std::string> misuse() const;
  // How many Works, each with the tensor that it moves, somebody still holds.
  [[nodiscard]] int works() const { return works_->load(); }

 private:
  class Backend;
  class Work;
  struct Message;
  using Way = std::tuple<int, int, int>;  // from, to, tag

  [[nodiscard]] c10::intrusive_ptr<c10d::Work> post(int from, int to, int tag, at::Tensor tensor, bool is_send);
  void match(const Way& way);
  void close(int rank, int peer, const std::string& reason);  // both ends
  [[nodiscard]] bool wait(Message& message, std::chrono::milliseconds timeout);

  int ranks_;
  std::string backend_;
  c10::intrusive_ptr<c10d::Store> store_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Way, std::deque<std::shared_ptr<Message>>> sends_;
  std::map<Way, std::deque<std::shared_ptr<Message>>> receives_;
  std::map<std::pair<int, int>, std::string> closed_;  // by sender and receiver: why
  std::set<int> lost_;
  std::map<int, std::vector<std::string>> calls_;
  std::vector<std::string> misuse_;
  // Shared with the Works: GroupBackend may keep one for longer than its group lives.
  std::shared_ptr<std::atomic<int>> works_ = std::make_shared<std::atomic<int>>(0);
};

// Runs this in a process for each rank of the group, and ends and closes its world. Returns what each threw, "":
// nothing.
[[nodiscard]] std::vector<std::string> in_group(GroupDouble& group, const std::function<void(World& world)>& run,
                                                const StoreOptions& options = {.timeout = std::chrono::seconds(10)});

}  // namespace dualpipe::test
