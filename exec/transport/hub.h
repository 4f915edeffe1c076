// Where the ranks of one process hand tensors to each other, and to ranks of other processes. Private to
// exec/transport.
//
//     rank 0 ──send──▶ Hub ──────────▶ mailbox of rank 1 ──wait──▶ rank 1       in this process: the tensor itself
//                       │ ▲
//                       ▼ │ deliver
//                       Wire ⇄ Hubs of other processes                          its bytes
//
// What ranks reduce comes together in the process that holds the first stage of the group, in a meeting; what belongs
// to ranks of other processes comes there, and goes back to them, over the wire.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/agreement.h"
#include "dualpipe/exec/transport/note.h"
#include "dualpipe/exec/transport/parcel.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/exec/transport/wait.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe::detail::transport {

class Hub {
 public:
  // `spins`: each rank has a core to itself, and may look out for a message in a loop. `wire`: null if all ranks are
  // here; else the one that delivers what comes for them.
  Hub(const Placement& placement, const TransportOptions& options, std::shared_ptr<Verdict> verdict, bool spins,
      Wire* wire);
  ~Hub();
  Hub(const Hub&) = delete;
  Hub& operator=(const Hub&) = delete;

  void send(Op message, Tensors tensors, const Mark& ready);
  [[nodiscard]] Received wait(Op message);
  // Nothing if it did not come so soon; the message can be waited for again.
  [[nodiscard]] std::optional<Received> wait_for(Op message, std::chrono::nanoseconds patience);
  void reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors);
  [[nodiscard]] double sum(int rank, double value);
  void abort(const std::string& reason);

  // For the wire: between which ranks a parcel goes; the forms of what it holds, so that it can be taken in; and the
  // parcel, complete. All throw std::runtime_error that says what it is where no rank of this run would have sent it.
  struct Route {
    int from = 0;
    int to = 0;
  };
  [[nodiscard]] Route route_of(const Parcel& parcel) const;
  [[nodiscard]] Forms forms_of(const Parcel& parcel);
  void deliver(Parcel parcel);
  [[nodiscard]] int ranks() const { return placement_.ranks; }
  // Another process has aborted the run: the verdict says so. Wakes all who wait.
  void wake();

 private:
  struct Group;
  using GroupKey = std::pair<bool, std::vector<int>>;  // whether it is sum()'s, and its stages

  [[nodiscard]] bool is_of_message(Op receive) const;
  [[nodiscard]] Route route_of_sum(const Parcel& parcel, const Note& note) const;
  [[nodiscard]] int rank_of(int stage) const { return placement_.rank_of[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] Mailbox& mailbox_of(int rank) { return mailboxes_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] Box& box_of(Op receive);
  [[nodiscard]] bool apart(int rank, int other) const { return wire_ != nullptr && wire_->apart(rank, other); }
  [[nodiscard]] Waiting waiting() const;

  [[nodiscard]] Group& group_of(const GroupKey& key);
  [[nodiscard]] std::optional<Tensors> bring(Group& group, std::size_t index, const Tensors& own);
  [[nodiscard]] std::optional<Tensors> sums_from_afar(Group& group, std::size_t index, const Tensors& own);
  void send_sums(const Group& group, const Tensors& sums);
  [[nodiscard]] Tensors add(const Group& group, const std::vector<std::optional<Tensors>>& parts) const;
  void check_alike(const Group& group, const Tensors& first, std::size_t index, const Tensors& other) const;
  [[nodiscard]] std::string side(const Group& group, std::size_t index) const;
  [[nodiscard]] std::string absent(const Group& group, int rank) const;

  Placement placement_;
  TransportOptions options_;
  std::shared_ptr<Verdict> verdict_;
  Wire* wire_;
  std::function<void()> progress_;
  bool spins_;
  Agreement agreement_;
  std::vector<Box> boxes_;          // of each stage, for its input and for the gradient of its output
  std::vector<Mailbox> mailboxes_;  // by rank
  std::vector<int> first_stages_;   // by rank
  std::mutex groups_mutex_;
  std::map<GroupKey, std::unique_ptr<Group>> groups_;
};

// The transports of these ranks, by rank; null for the others.
[[nodiscard]] std::vector<std::unique_ptr<Transport>> transports_of(std::shared_ptr<Hub> hub, int ranks,
                                                                    std::span<const int> here);

}  // namespace dualpipe::detail::transport
