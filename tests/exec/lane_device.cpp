#include "tests/exec/lane_device.h"

#include <ATen/core/Tensor.h>

#include <thread>
#include <utility>

#include "dualpipe/exec/replay/clock.h"

namespace dualpipe::test {

using detail::replay::now;

namespace {

thread_local LaneDevice* device_of_thread = nullptr;

}  // namespace

struct LaneDevice::Event {
  bool is_done = false;
  Time time = 0;
};

struct LaneDevice::Worker {
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

LaneDevice::LaneDevice() = default;

LaneDevice::~LaneDevice() {
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

LaneDevice* LaneDevice::of_thread() { return device_of_thread; }

void LaneDevice::begin_step() {
  finish();
  const std::lock_guard lock(mutex_);
  events_.clear();
}

void LaneDevice::use(Lane lane) {
  used_ = lane;
  device_of_thread = this;
}

void LaneDevice::put(Lane lane, std::function<void()> task) {
  std::unique_ptr<Worker>& worker = workers_[lane.index];
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

Mark LaneDevice::mark() {
  Event* event = nullptr;
  {
    const std::lock_guard lock(mutex_);
    event = &events_.emplace_back();
  }
  if (used_.kind == Lane::Kind::message) {
    put(used_, [this, event] { signal(*event); });
  } else {
    signal(*event);
  }
  return {0, event};
}

void LaneDevice::signal(Event& event) {
  {
    const std::lock_guard lock(mutex_);
    event = {true, now()};
  }
  changed_.notify_all();
}

void LaneDevice::await(const Event& event) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return event.is_done; });
}

bool LaneDevice::is_done(const Mark& mark) const {
  if (mark.event == nullptr) return true;
  const std::lock_guard lock(mutex_);
  return static_cast<const Event*>(mark.event)->is_done;
}

void LaneDevice::wait(const Mark& mark) {
  if (mark.event == nullptr) return;
  const auto* const event = static_cast<const Event*>(mark.event);
  if (used_.kind == Lane::Kind::message) {
    put(used_, [this, event] { await(*event); });
  } else {
    await(*event);
  }
}

at::Tensor LaneDevice::adopt(at::Tensor tensor, const Mark& ready) {
  wait(ready);
  return tensor;
}

at::Tensor LaneDevice::take(at::Tensor tensor, Mark& ready) {
  wait(ready);
  return tensor;
}

void LaneDevice::finish() {
  for (auto& [index, worker] : workers_) {
    std::unique_lock lock(worker->mutex);
    worker->changed.wait(lock, [&w = *worker] { return w.tasks.empty() && w.is_idle; });
  }
}

Time LaneDevice::time_of(const Mark& mark) const {
  if (mark.event == nullptr) return mark.time;
  const std::lock_guard lock(mutex_);
  return static_cast<const Event*>(mark.event)->time;
}

}  // namespace dualpipe::test
