// What behaves like a GPU, on the host: a thread per message lane, so that calls return before anything has moved. A
// lane runs what was put on it in order. The compute lanes are the thread that calls.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "dualpipe/exec/device/device.h"

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

}  // namespace dualpipe::test
