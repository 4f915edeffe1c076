// Stands for the CUDA module where there is no GPU: a module of its own, with a device that is the host. What else it
// does, DUALPIPE_DOUBLE says.
#include <ATen/core/Tensor.h>

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

#include "dualpipe/exec/cuda/module.h"
#include "dualpipe/exec/replay/clock.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

using detail::cuda::cuda_module_version;
using detail::cuda::CudaModule;
using detail::replay::now;

namespace {

bool is_told(std::string_view behaviour) {
  const char* const told = std::getenv("DUALPIPE_DOUBLE");
  return told != nullptr && told == behaviour;
}

class DoubleDevice final : public Device {
 public:
  [[nodiscard]] at::Device where() const override { return at::kCPU; }
  void begin_step() override {}
  void use(Stream stream) override { used_ = stream; }
  [[nodiscard]] Stream used() const override { return used_; }
  [[nodiscard]] Event record_event() override { return {now(), this}; }
  void wait(const Event&) override {}
  [[nodiscard]] at::Tensor adopt(at::Tensor tensor, const Event&) override { return tensor; }
  [[nodiscard]] at::Tensor take(at::Tensor tensor, Event&) override { return tensor; }
  [[nodiscard]] at::Tensor exchange(const at::Tensor& tensor) override { return tensor.clone(); }
  void finish() override {
    if (is_told("too few")) throw std::runtime_error("the device failed");
  }
  [[nodiscard]] Time time_of(const Event& event) const override { return event.time; }

 private:
  Stream used_;
};

class DoubleHardware final : public Hardware {
 public:
  explicit DoubleHardware(const CudaOptions& options) : options_(options) {}

  [[nodiscard]] std::string description() const override {
    std::string text = options_.copy ? "a double that copies" : "a double";
    if (options_.local) text += ", " + std::to_string(options_.local->number) + " by " + options_.local->variable;
    return text;
  }
  [[nodiscard]] std::unique_ptr<Device> device(int index, int ranks, int) override {
    if (is_told("too few") && index > 0) throw InputError("too few for " + std::to_string(ranks) + " ranks");
    return std::make_unique<DoubleDevice>();
  }
  [[nodiscard]] EventCost event_cost() override { return {1, 2}; }

 private:
  CudaOptions options_;
};

std::unique_ptr<Hardware> make_hardware(const CudaOptions& options) {
  if (is_told("no GPU")) throw InputError("there is no GPU");
  return std::make_unique<DoubleHardware>(options);
}

}  // namespace

extern "C" const CudaModule* dualpipe_cuda_module() {
  static CudaModule module;
  module.version = cuda_module_version + (is_told("other version") ? 1 : 0);
  module.hardware = &make_hardware;
  return &module;
}

}  // namespace dualpipe
