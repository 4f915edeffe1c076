// What behaves like GPUs that NCCL connects, on the host: a thread per message lane for each rank, so that calls return
// before anything has moved.
//
// - A lane runs what was put on it in order. The compute lanes are the thread that calls.
// - A group ends as a unit. In it, messages of one peer are matched in order, those of different peers in any.
// - A nonblocking call is not done when it returns: a group is on its lane only when state() has said so, and two ranks
//   that exchange something for the first time wait for each other there.
// - What is being received holds garbage until the group has ended; what is being sent is read late.
// - Misuse is taken down: calls outside of a group, on a communicator that is in progress or gone, on the lane of
// another,
//   messages of unlike sizes, a second abort.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/transport/nccl_api.h"

namespace dualpipe::test {

class LaneDevice : public Device {
 public:
  LaneDevice();
  ~LaneDevice() override;

  [[nodiscard]] at::Device where() const override { return at::kCPU; }
  void begin_step() override;
  void use(Lane lane) override;
  [[nodiscard]] Lane used() const override { return used_; }
  [[nodiscard]] Mark mark() override;
  [[nodiscard]] bool is_done(const Mark& mark) const override;
  void wait(const Mark& mark) override;
  [[nodiscard]] at::Tensor adopt(at::Tensor tensor, const Mark& ready) override;
  [[nodiscard]] at::Tensor take(at::Tensor tensor, Mark& ready) override;
  [[nodiscard]] at::Tensor exchange(const at::Tensor& tensor) override { return tensor.clone(); }
  void finish() override;
  [[nodiscard]] Time time_of(const Mark& mark) const override;

  // Runs on a message lane after what is there.
  void put(Lane lane, std::function<void()> task);
  // That whose lane this thread uses.
  [[nodiscard]] static LaneDevice* of_thread();

 private:
  struct Event;
  struct Worker;
  void signal(Event& event);
  void await(const Event& event);

  Lane used_{};
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::deque<Event> events_;
  std::map<int, std::unique_ptr<Worker>> workers_;  // by index of the message lane
};

class LaneHardware final : public Hardware {
 public:
  [[nodiscard]] std::string description() const override { return "threads that behave like a GPU"; }
  [[nodiscard]] std::unique_ptr<Device> device(int, int, int) override { return std::make_unique<LaneDevice>(); }
};

// For all ranks of a process.
class NcclDouble final : public Nccl {
 public:
  NcclDouble();
  ~NcclDouble() override;

  [[nodiscard]] std::string version() const override { return "a double"; }
  [[nodiscard]] c10::DeviceType device_type() const override { return c10::DeviceType::CPU; }
  [[nodiscard]] std::string unique_id() override;
  [[nodiscard]] Communicator init(const std::string& unique_id, int rank, int ranks, int ctas_max) override;
  [[nodiscard]] State state(Communicator communicator) override;
  void group_start() override;
  void send(Communicator communicator, const void* data, std::size_t bytes, int peer) override;
  void receive(Communicator communicator, void* data, std::size_t bytes, int peer) override;
  void group_end() override;
  void finalize(Communicator communicator) override;
  void destroy(Communicator communicator) override;
  void abort(Communicator communicator) override;

  // The communicators of this rank report an error from now on.
  void fail(int rank, const std::string& error);

  // What a rank has called, in order: "init 0", "0: send 8 to 1, receive 8 from 2", "abort 1", …; 0 and 1 are its
  // communicators in the order in which it made them.
  [[nodiscard]] std::vector<std::string> calls(int rank) const;
  [[nodiscard]] std::vector<std::string> misuse() const;

 private:
  struct Member;
  struct Transfer;
  struct Group;
  struct Fabric;

  [[nodiscard]] Member& member(Communicator communicator, const char* call);
  void add(Communicator communicator, Transfer transfer, const char* call);
  [[nodiscard]] bool is_connected(const Member& member, const Group& group) const;
  void run(const std::shared_ptr<Group>& group);
  void match(Fabric& fabric, int from, int to);
  void note_misuse(const std::string& text);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int ids_ = 0;
  std::map<std::string, std::unique_ptr<Fabric>> fabrics_;  // by unique id
  std::vector<std::unique_ptr<Member>> members_;
  std::map<int, std::vector<std::string>> calls_;
  std::vector<std::string> misuse_;
};

}  // namespace dualpipe::test
