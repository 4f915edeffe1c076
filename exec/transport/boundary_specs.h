// What the messages between two neighbouring stages look like, where the receiver has to know it beforehand: the first
// one of a boundary and direction says it, and all others are the same. Private to exec/transport.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <span>
#include <utility>

#include "dualpipe/exec/transport/tensor_spec.h"
#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe::detail::transport {

// As one rank knows them.
class BoundarySpecs {
 public:
  explicit BoundarySpecs(const Placement& placement) : placement_(placement) {}

  // Before each message that the rank sends, a SEND op. Returns whether it is the first of its boundary and direction.
  // Throws std::runtime_error naming both sides if it is not like the first.
  bool check(Op send, std::span<const at::Tensor> tensors);

  // What the first message for a RECV op of the rank looks like, and with it all of its boundary and direction.
  void learn(Op receive, TensorSpecs specs) {
    known_.insert_or_assign(boundary_of(receive), Known{std::move(specs), receive});
  }
  [[nodiscard]] bool knows(Op receive) const { return known_.contains(boundary_of(receive)); }
  // Only of what it knows.
  [[nodiscard]] const TensorSpecs& of(Op receive) const { return known_.at(boundary_of(receive)).specs; }

 private:
  struct Known {
    TensorSpecs specs;
    Op first;
  };
  // A message stands for all of its boundary and direction.
  [[nodiscard]] static Op boundary_of(Op message) { return {0, message.stage, message.kind, false}; }

  const Placement& placement_;
  std::map<Op, Known> known_;
};

}  // namespace dualpipe::detail::transport
