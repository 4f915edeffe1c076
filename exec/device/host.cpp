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
  void use(Lane) override {}
  [[nodiscard]] Lane used() const override { return {}; }
  [[nodiscard]] Mark mark() override { return {now(), nullptr}; }
  void wait(const Mark&) override {}
  [[nodiscard]] at::Tensor adopt(at::Tensor tensor, const Mark&) override { return tensor; }
  [[nodiscard]] at::Tensor take(at::Tensor tensor, Mark&) override { return tensor; }
  [[nodiscard]] at::Tensor exchange(const at::Tensor& tensor) override { return tensor.clone(); }
  void finish() override {}
  [[nodiscard]] Time time_of(const Mark& mark) const override { return mark.time; }
};

}  // namespace

Device& host_device() {
  static Host host;
  return host;
}

}  // namespace dualpipe
