// What processes send each other. Private to exec/transport.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "dualpipe/exec/transport/wait.h"
#include "dualpipe/sim/schedule/op.h"

namespace dualpipe::detail::transport {

struct Parcel {
  enum class Kind : std::int32_t {
    // Between ranks, with tensors:
    message,  // of a SEND op; the first of its boundary and direction is described in the note
    part,     // what a stage brings to a reduction; note: the group, and what the tensors look like
    sums,     // what a rank gets from it; the same note
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
  std::string note{};
  Tensors content{};
};

// Becomes true once the tensors of a parcel may be changed again.
using Departed = std::shared_ptr<const std::atomic<bool>>;

// The way to ranks of other processes.
class Wire {
 public:
  Wire() = default;
  Wire(const Wire&) = delete;
  Wire& operator=(const Wire&) = delete;
  virtual ~Wire() = default;

  // Whether two ranks are in different processes.
  [[nodiscard]] virtual bool apart(int rank, int other) const = 0;
  // Never waits.
  virtual Departed send(int to_rank, Parcel parcel) = 0;
  // Moves what is under way. To be called by who waits; it goes on without, only later.
  virtual void progress() = 0;
  // Tells the other processes.
  virtual void abort(const std::string& reason) = 0;

  // While one lives, somebody waits.
  class Watch {
   public:
    explicit Watch(Wire* wire) : wire_(wire) {
      if (wire_ != nullptr) ++wire_->watches_;
    }
    ~Watch() {
      if (wire_ != nullptr) --wire_->watches_;
    }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    Wire* wire_;
  };
  [[nodiscard]] bool is_watched() const { return watches_.load(std::memory_order_relaxed) > 0; }

 private:
  std::atomic<int> watches_{0};
};

}  // namespace dualpipe::detail::transport
