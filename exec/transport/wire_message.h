// What processes send each other. Private to exec/transport.
//
//     header   its length; kind, op, ranks, time, note, and the shape and type of each tensor
//     content  the bytes of each tensor that is defined, one after the other
//
// On its way a message is these bytes, and nothing else: a copy, so that its tensors may be changed as soon as it is
// sent.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/exec/transport/wait.h"
#include "dualpipe/sim/schedule/op.h"

namespace dualpipe::detail::transport {

// The stages whose tensors are summed.
struct SumGroup {
  bool is_sum = false;      // of a Transport::sum(); else of a reduce()
  std::vector<int> stages;  // in ascending order; of a sum() the first stage of each rank, in the order of the ranks

  friend auto operator<=>(const SumGroup&, const SumGroup&) = default;
};

struct WireMessage {
  enum class Kind : std::int32_t {
    // Between ranks, with tensors:
    message,  // of a SEND op
    part,     // what a stage brings to a sum
    sums,     // what a rank gets from it
    // Between processes, nothing but a note:
    gather,     // parts of an all_gather
    roll_call,  // a question whether a process has come to an all_gather,
    presence,   // and its answer; note: whether it has
    abort,      // the run ends: why
    records,    // what a failed process has done
    ending,     // a process is at its end, and why
    farewell,   // process 0 has heard the endings; note: whether of all
    ping,       // a question for the time of process 0,
    pong,       // and its answer
  };

  Kind kind = Kind::message;
  Op receive{};            // message: the RECV op
  std::int32_t rank = 0;   // that gets a message or sums, or sends a part
  std::int32_t index = 0;  // part: of the stage in its group; gather, roll_call, presence: which all_gather of the run
  std::int32_t run = 0;    // which of the sender's runs it belongs to
  Clock::time_point sent{};
  SumGroup group{};  // part, sums
  std::string note{};
  Tensors tensors{};
};

// Without its length.
[[nodiscard]] std::string header_of(const WireMessage& message);
// The message of a header: its tensors are made, on the host, and wait for their content. Throws std::runtime_error
// where the bytes are no header, or describe tensors that nobody can have, or more of them than this host has memory:
// before anything is made.
[[nodiscard]] WireMessage message_of_header(std::string_view header);

// The whole message. message_of() throws std::runtime_error where the bytes are of none.
[[nodiscard]] std::string bytes_of(const WireMessage& message);
[[nodiscard]] WireMessage message_of(std::string_view bytes);

// The way to the ranks of other processes.
class RemoteLink {
 public:
  RemoteLink() = default;
  RemoteLink(const RemoteLink&) = delete;
  RemoteLink& operator=(const RemoteLink&) = delete;
  virtual ~RemoteLink() = default;

  // Whether two ranks are in different processes.
  [[nodiscard]] virtual bool are_apart(int rank, int other) const = 0;
  // Never waits.
  virtual void send(int to_rank, WireMessage message) = 0;
  // As Engine::progress().
  virtual void progress() = 0;
  // Tells the other processes that the run has been aborted, and why.
  virtual void abort(const std::string& reason) = 0;

  // Lives as long as somebody waits for a message.
  class Watch {
   public:
    explicit Watch(RemoteLink* link) : link_(link) {
      if (link_ != nullptr) ++link_->watches_;
    }
    ~Watch() {
      if (link_ != nullptr) --link_->watches_;
    }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    RemoteLink* link_;
  };
  [[nodiscard]] bool is_watched() const { return watches_.load(std::memory_order_relaxed) > 0; }

 private:
  std::atomic<int> watches_{0};
};

}  // namespace dualpipe::detail::transport
