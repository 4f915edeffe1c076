// How large the messages of a training are. Private to exec/train.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <string>
#include <utility>

#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/transport.h"

namespace dualpipe::detail::train {

// A Transport that takes note of how large the messages are.
class MeasuredTransport : public Transport {
 public:
  // `stages`: those of the rank are written.
  MeasuredTransport(Transport& transport, std::span<StageBytes> stages) : transport_(transport), stages_(stages) {}

  void begin(const Program& program, Device& device) override { transport_.begin(program, device); }
  void end_batch() override { transport_.end_batch(); }
  void confirm() override { transport_.confirm(); }
  void send(Op message, Tensors tensors, const Mark& ready) override {
    if (message.kind == Kind::send_forward) {
      Bytes& bytes = stages_[message.stage].message = 0;
      for (const at::Tensor& each : tensors) bytes += static_cast<Bytes>(each.nbytes());
    }
    transport_.send(message, std::move(tensors), ready);
  }
  void post_receive(Op message) override { transport_.post_receive(message); }
  [[nodiscard]] Received wait(Op message) override { return transport_.wait(message); }
  void reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors) override {
    transport_.reduce(stages, stage, tensors);
  }
  [[nodiscard]] double sum(double value) override { return transport_.sum(value); }
  void abort(const std::string& reason) override { transport_.abort(reason); }

 private:
  Transport& transport_;
  std::span<StageBytes> stages_;
};

}  // namespace dualpipe::detail::train
