// A device that does later what it is given: a double whose streams have a time of their own, and which knows what each
// of them can have seen (vector clocks, as a race detector has).
#pragma once

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/device/alias.h"
#include "dualpipe/exec/device/device.h"
#include "dualpipe/sim/costs/units.h"
#include "dualpipe/sim/schedule/op.h"

namespace dualpipe::test {

using detail::device::alias_with_release;

constexpr Time forward_time = 300;
constexpr Time input_gradient_time = 400;
constexpr Time weight_gradient_time = 350;
constexpr Time backward_time = input_gradient_time + weight_gradient_time;
inline Time duration_of(Kind kind) {
  return kind == Kind::forward          ? forward_time
         : kind == Kind::backward       ? backward_time
         : kind == Kind::input_gradient ? input_gradient_time
                                        : weight_gradient_time;
}

using Clock = std::vector<int>;  // by stream of all ranks: how much of its work has been done
inline void join(Clock& clock, const Clock& other) {
  for (std::size_t i = 0; i < clock.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

// What all ranks tell.
class Log {
 public:
  struct Write {
    std::size_t stream;
    int tick;
  };

  void flaw(const std::string& text) {
    const std::lock_guard lock(mutex_);
    flaws_.insert(text);
  }
  [[nodiscard]] std::string flaws() const { return fmt::format("{}", fmt::join(flaws_, "; ")); }

  void made(const void* data, Write write) {
    const std::lock_guard lock(mutex_);
    writes_[data] = write;
  }
  [[nodiscard]] bool is_seen(const void* data, const Clock& clock) {
    const std::lock_guard lock(mutex_);
    const Write& write = writes_.at(data);
    return clock[write.stream] >= write.tick;
  }

 private:
  std::mutex mutex_;
  std::set<std::string> flaws_;
  std::map<const void*, Write> writes_;  // the last, by address
};

class AsyncDevice;
struct Recorded {
  const AsyncDevice* device;
  int step;
  Clock clock;
  Time time;
};

class AsyncDevice final : public Device {
 public:
  enum class From : std::uint8_t { adopt, take };

  // It has as many streams as those of the other ranks, for so many stages, and the last one for messages.
  AsyncDevice(Log& log, std::size_t rank, std::size_t ranks, std::size_t stages_max, bool copies)
      : log_(log), first_(rank * (stages_max + 1)), copies_(copies), streams_(stages_max + 1) {
    for (StreamState& stream : streams_) stream.clock.assign(ranks * streams_.size(), 0);
  }

  [[nodiscard]] at::Device where() const override { return at::kCPU; }

  void begin_step() override {
    finish();
    ++step_;
    events_.clear();
  }
  void use(Stream stream) override {
    if (stream.kind == Stream::Kind::compute && stream.index + 1U >= streams_.size())
      log_.flaw("there is no such stream");
    used_ = stream;
  }
  [[nodiscard]] Stream used() const override { return used_; }

  [[nodiscard]] Event record_event() override {
    is_finished_ = false;
    events_.push_back({this, step_, stream().clock, stream().time});
    return {0, &events_.back()};
  }
  void wait(const Event& event) override {
    const Recorded* const recorded = checked(event);
    if (recorded == nullptr) return;
    join(stream().clock, recorded->clock);
    stream().time = std::max(stream().time, recorded->time);
  }
  [[nodiscard]] at::Tensor adopt(at::Tensor tensor, const Event& ready) override {
    return hand_over(std::move(tensor), ready, From::adopt);
  }
  [[nodiscard]] at::Tensor take(at::Tensor tensor, Event& ready) override {
    if (!copies_) return hand_over(std::move(tensor), ready, From::take);
    const Stream before = used_;
    use({Stream::Kind::message});
    wait(ready);
    read(tensor);
    copy_begun_ = record_event();
    at::Tensor copy = tensor.clone();
    work(copy_time);
    made(copy);
    ready = record_event();
    use(before);
    return hand_over(std::move(copy), ready, From::take);
  }
  [[nodiscard]] std::optional<Event> copy_begun() const override { return copy_begun_; }
  [[nodiscard]] at::Tensor exchange(const at::Tensor& tensor) override { return tensor.clone(); }

  // All that this thread gives to any stream from now on starts later.
  void finish() override {
    StreamState all = streams_.front();
    for (const StreamState& each : streams_) {
      join(all.clock, each.clock);
      all.time = std::max(all.time, each.time);
    }
    std::ranges::fill(streams_, all);
    is_finished_ = true;
  }
  [[nodiscard]] Time time_of(const Event& event) const override {
    if (!is_finished_) log_.flaw("a time is read before finish()");
    const Recorded* const recorded = checked(event);
    return recorded == nullptr ? 0 : recorded->time;
  }

  // --- for stages

  static constexpr Time copy_time = 20;

  // The ops of a unit are announced before the first of them runs.
  void announce(Op op) {
    if (running_ == announced_) {
      running_ = announced_ = 0;
      before_unit_ = own_clock();
      in_unit_.clear();
      stage_ = op.stage;
    }
    is_of_one_stage_ = op.stage == stage_;
    ++announced_;
  }
  void run(Kind kind) {
    ++running_;
    for (std::size_t i = 0; i < streams_.size() - 1; ++i) {
      if (stream().clock[first_ + i] < before_unit_[i]) log_.flaw("an op does not wait for what was before it");
    }
    for (const auto& [other, tick] : in_unit_) {
      const bool comes_after = stream().clock[other] >= tick;
      if (comes_after && !is_of_one_stage_) log_.flaw("the two of a pair are not side by side");
      if (!comes_after && is_of_one_stage_) log_.flaw("two ops of one stage run at a time, and it has one stream");
    }
    work(duration_of(kind));
    in_unit_.emplace_back(first_ + index(used_), stream().clock[first_ + index(used_)]);
  }
  void made(const at::Tensor& tensor) {
    log_.made(tensor.data_ptr(), {first_ + index(used_), stream().clock[first_ + index(used_)]});
  }
  void read(const at::Tensor& tensor) {
    if (!log_.is_seen(tensor.data_ptr(), stream().clock)) log_.flaw("a tensor is used before it is made");
  }
  void read(const at::Tensor& tensor, From from) {
    read(tensor);
    const auto found = handed_over_->find(tensor.data_ptr());
    if (found == handed_over_->end() || found->second != from) {
      log_.flaw(from == From::take ? "a message was not taken" : "what another stream made was not adopted");
    }
  }
  [[nodiscard]] std::size_t handed_over() const { return handed_over_->size(); }

 private:
  struct StreamState {
    Clock clock;
    Time time = 0;
  };

  [[nodiscard]] std::size_t index(Stream stream) const {
    return stream.kind == Stream::Kind::message ? streams_.size() - 1 : static_cast<std::size_t>(stream.index);
  }
  [[nodiscard]] StreamState& stream() { return streams_[index(used_)]; }
  [[nodiscard]] Clock own_clock() const {
    Clock clock;
    for (std::size_t i = 0; i < streams_.size(); ++i) clock.push_back(streams_[i].clock[first_ + i]);
    return clock;
  }
  void work(Time duration) {
    is_finished_ = false;
    ++stream().clock[first_ + index(used_)];
    stream().time += duration;
  }

  [[nodiscard]] const Recorded* checked(const Event& event) const {
    const auto* const recorded = static_cast<const Recorded*>(event.handle);
    if (recorded == nullptr) {
      log_.flaw("an event of no device");
    } else if (recorded->step != recorded->device->step_) {
      log_.flaw("an event of an earlier step");
    }
    return recorded;
  }
  at::Tensor hand_over(at::Tensor tensor, const Event& ready, From from) {
    if (const Recorded* const made = checked(ready); made != nullptr && !log_.is_seen(tensor.data_ptr(), made->clock)) {
      log_.flaw("what is handed over is not ready at its event");
    }
    wait(ready);
    const void* const data = tensor.data_ptr();
    handed_over_->emplace(data, from);
    return alias_with_release(std::move(tensor), [list = handed_over_, data](const at::Tensor&) { list->erase(data); });
  }

  Log& log_;
  const std::size_t first_;  // of its streams among all
  const bool copies_;
  std::vector<StreamState> streams_;
  Stream used_;
  std::optional<Event> copy_begun_;
  std::atomic<int> step_{0};
  std::deque<Recorded> events_;
  bool is_finished_ = true;
  std::shared_ptr<std::map<const void*, From>> handed_over_ = std::make_shared<std::map<const void*, From>>();
  std::size_t announced_ = 0;
  int stage_ = 0;  // of the unit's first op
  bool is_of_one_stage_ = true;
  std::size_t running_ = 0;
  Clock before_unit_;
  std::vector<std::pair<std::size_t, int>> in_unit_;
};

}  // namespace dualpipe::test
