// What behaves like a GPU, on the host: a thread per message stream, so that calls return before anything has moved. A
// stream runs what was put on it in order. The compute streams are the thread that calls.
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

class StreamDevice : public Device {
 public:
  StreamDevice();
  ~StreamDevice() override;

  [[nodiscard]] at::Device where() const override { return at::kCPU; }
  void begin_step() override;
  void use(Stream stream) override;
  [[nodiscard]] Stream used() const override { return used_; }
  [[nodiscard]] Event record_event() override;
  [[nodiscard]] bool is_done(const Event& event) const override;
  void wait(const Event& event) override;
  [[nodiscard]] at::Tensor adopt(at::Tensor tensor, const Event& ready) override;
  [[nodiscard]] at::Tensor take(at::Tensor tensor, Event& ready) override;
  [[nodiscard]] at::Tensor exchange(const at::Tensor& tensor) override { return tensor.clone(); }
  void finish() override;
  [[nodiscard]] Time time_of(const Event& event) const override;

  // Runs on a message stream after what is there.
  void put(Stream stream, std::function<void()> task);
  // That whose stream this thread uses.
  [[nodiscard]] static StreamDevice* of_thread();

 private:
  struct Point;
  struct Worker;
  void signal(Point& point);
  void await_point(const Point& point);

  Stream used_{};
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::deque<Point> points_;
  std::map<int, std::unique_ptr<Worker>> workers_;  // by index of the message stream
};

class StreamHardware final : public Hardware {
 public:
  [[nodiscard]] std::string description() const override { return "threads that behave like a GPU"; }
  [[nodiscard]] std::unique_ptr<Device> device(int, int, int) override { return std::make_unique<StreamDevice>(); }
};

}  // namespace dualpipe::test
