#include "tests/exec/stream_device.h"

#include <ATen/core/Tensor.h>

#include <thread>
#include <utility>

#include "dualpipe/exec/replay/clock.h"

namespace dualpipe::test {

using detail::replay::now;

namespace {

thread_local StreamDevice* device_of_thread = nullptr;

}  // namespace

struct StreamDevice::Point {
  bool is_done = false;
  Time time = 0;
};

struct StreamDevice::Worker {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> tasks;
  bool is_idle = true;
  bool ends = false;
  std::thread thread;

  void run() {
    std::unique_lock lock(mutex);
    while (true) {
      changed.wait(lock, [&] { return !tasks.empty() || ends; });
      if (tasks.empty()) return;
      const auto task = std::move(tasks.front());
      tasks.pop_front();
      is_idle = false;
      lock.unlock();
      task();
      lock.lock();
      is_idle = true;
      changed.notify_all();
    }
  }
};

StreamDevice::StreamDevice() = default;

StreamDevice::~StreamDevice() {
  for (auto& [index, worker] : workers_) {
    {
      const std::lock_guard lock(worker->mutex);
      worker->ends = true;
    }
    worker->changed.notify_all();
    worker->thread.join();
  }
  if (device_of_thread == this) device_of_thread = nullptr;
}

StreamDevice* StreamDevice::of_thread() { return device_of_thread; }

void StreamDevice::begin_step() {
  finish();
  const std::lock_guard lock(mutex_);
  points_.clear();
}

void StreamDevice::use(Stream stream) {
  used_ = stream;
  device_of_thread = this;
}

void StreamDevice::put(Stream stream, std::function<void()> task) {
  std::unique_ptr<Worker>& worker = workers_[stream.index];
  if (!worker) {
    worker = std::make_unique<Worker>();
    worker->thread = std::thread([w = worker.get()] { w->run(); });
  }
  {
    const std::lock_guard lock(worker->mutex);
    worker->tasks.push_back(std::move(task));
  }
  worker->changed.notify_all();
}

Event StreamDevice::record_event() {
  Point* point = nullptr;
  {
    const std::lock_guard lock(mutex_);
    point = &points_.emplace_back();
  }
  if (used_.kind == Stream::Kind::message) {
    put(used_, [this, point] { signal(*point); });
  } else {
    signal(*point);
  }
  return {0, point};
}

void StreamDevice::signal(Point& point) {
  {
    const std::lock_guard lock(mutex_);
    point = {true, now()};
  }
  changed_.notify_all();
}

void StreamDevice::await_point(const Point& point) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return point.is_done; });
}

bool StreamDevice::is_done(const Event& event) const {
  if (event.handle == nullptr) return true;
  const std::lock_guard lock(mutex_);
  return static_cast<const Point*>(event.handle)->is_done;
}

void StreamDevice::wait(const Event& event) {
  if (event.handle == nullptr) return;
  const auto* const point = static_cast<const Point*>(event.handle);
  if (used_.kind == Stream::Kind::message) {
    put(used_, [this, point] { await_point(*point); });
  } else {
    await_point(*point);
  }
}

at::Tensor StreamDevice::adopt(at::Tensor tensor, const Event& ready) {
  wait(ready);
  return tensor;
}

at::Tensor StreamDevice::take(at::Tensor tensor, Event& ready) {
  wait(ready);
  return tensor;
}

void StreamDevice::finish() {
  for (auto& [index, worker] : workers_) {
    std::unique_lock lock(worker->mutex);
    worker->changed.wait(lock, [&w = *worker] { return w.tasks.empty() && w.is_idle; });
  }
}

Time StreamDevice::time_of(const Event& event) const {
  if (event.handle == nullptr) return event.time;
  const std::lock_guard lock(mutex_);
  return static_cast<const Point*>(event.handle)->time;
}

}  // namespace dualpipe::test
