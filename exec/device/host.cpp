#include <ATen/core/Tensor.h>

#include <utility>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/replay/clock.h"

namespace dualpipe {

using detail::replay::now;

namespace {

class Host final : public Device {
 public:
  [[nodiscard]] at::Device where() const override { return at::kCPU; }
  void begin_step() override {}
  void use(Stream) override {}
  [[nodiscard]] Stream used() const override { return {}; }
  [[nodiscard]] Event record_event() override { return {now(), nullptr}; }
  void wait(const Event&) override {}
  [[nodiscard]] at::Tensor adopt(at::Tensor tensor, const Event&) override { return tensor; }
  [[nodiscard]] at::Tensor take(at::Tensor tensor, Event&) override { return tensor; }
  [[nodiscard]] at::Tensor exchange(const at::Tensor& tensor) override { return tensor.clone(); }
  void finish() override {}
  [[nodiscard]] Time time_of(const Event& event) const override { return event.time; }
};

}  // namespace

Device& host_device() {
  static Host host;
  return host;
}

}  // namespace dualpipe
