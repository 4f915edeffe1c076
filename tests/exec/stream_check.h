// A device that runs everything at once, on the host, and finds out what would go wrong on one with streams: it follows
// which op touches which tensor on which stream, as a race detector follows threads (vector clocks, one component for
// each stream), through a hook that LibTorch has for profilers.
//
// A tensor that was made on one stream may be touched on another only as what adopt() has returned, and only after a
// wait for an event behind what made it. What was made before the step needs no adoption, as it outlives it; what is
// settled (finish()) may be touched anywhere.
#pragma once

#include <ATen/record_function.h>

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "dualpipe/exec/device/device.h"

namespace dualpipe::test {

// One per thread at a time, which it watches as long as it lives.
class StreamCheck : public Device {
 public:
  StreamCheck();
  ~StreamCheck() override;

  // What would have gone wrong, and the crossings that were seen to be in order.
  [[nodiscard]] const std::vector<std::string>& races() const { return races_; }
  [[nodiscard]] int crossings() const { return crossings_; }

  [[nodiscard]] at::Device where() const override { return at::kCPU; }
  void begin_step() override;
  void use(Stream stream) override { used_ = stream; }
  [[nodiscard]] Stream used() const override { return used_; }
  [[nodiscard]] Event record_event() override;
  void wait(const Event& event) override;
  [[nodiscard]] at::Tensor adopt(at::Tensor tensor, const Event& ready) override;
  [[nodiscard]] at::Tensor take(at::Tensor tensor, Event& ready) override;
  [[nodiscard]] at::Tensor exchange(const at::Tensor& tensor) override;
  void finish() override;
  [[nodiscard]] Time time_of(const Event& event) const override { return event.time; }

 private:
  static constexpr std::size_t streams = 3 * 8;
  using Clock = std::array<int, streams>;

  struct Known {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;  // so that no other has its address
    Stream maker;
    Clock made{};  // what a stream must have seen
    bool adopted = false;
  };

  [[nodiscard]] static std::size_t index_of(Stream stream);
  [[nodiscard]] Clock& clock() { return clocks_[index_of(used_)]; }
  [[nodiscard]] Known* find(const at::Tensor& tensor);
  void remember(const at::Tensor& tensor, Stream maker, const Clock& made, bool adopted);
  void touch(const at::Tensor& tensor, const char* op);
  void made(const at::Tensor& tensor, bool in_place);

  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& op);
  static void end(const at::RecordFunction& op, at::ObserverContext* context);

  at::CallbackHandle callback_;
  Stream used_;
  std::array<Clock, streams> clocks_{};
  Clock before_step_{};
  Clock settled_{};
  std::deque<Clock> events_;
  std::map<const c10::StorageImpl*, Known> known_;
  std::vector<std::string> races_;
  int crossings_ = 0;
};

}  // namespace dualpipe::test
