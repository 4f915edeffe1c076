// The shapes and types of the messages between neighbouring stages, where a receiver has to know them before a message
// comes: the first message of each boundary and direction says them, and all that follow have to be the same; among
// micro-batches of one form, where there are several. Private to exec/transport.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/tensor_spec.h"
#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe::detail::transport {

// What one rank knows of them.
class BoundarySpecs {
 public:
  // `forms`: as MessageForms::of_place.
  explicit BoundarySpecs(const Placement& placement, std::vector<std::uint32_t> forms = {})
      : placement_(placement), forms_(std::move(forms)) {}

  // To be called before each message that the rank sends. Returns whether it is the first of its boundary and
  // direction. Throws std::runtime_error naming both sides if it is not like the first.
  bool check(Op send, std::span<const at::Tensor> tensors);

  // `specs`: of the first message for a RECV op of the rank, and so of all of its boundary and direction.
  void learn(Op receive, TensorSpecs specs) {
    known_.insert_or_assign(boundary_of(receive), Known{std::move(specs), receive});
  }
  [[nodiscard]] bool knows(Op receive) const { return known_.contains(boundary_of(receive)); }
  // Only where it knows() them.
  [[nodiscard]] const TensorSpecs& of(Op receive) const { return known_.at(boundary_of(receive)).specs; }

 private:
  struct Known {
    TensorSpecs specs;
    Op first;
  };
  // The same for all messages of a boundary and direction, and a form.
  [[nodiscard]] Op boundary_of(Op message) const { return {form_of(message), message.stage, message.kind, false}; }
  [[nodiscard]] std::uint32_t form_of(Op message) const;

  const Placement& placement_;
  std::vector<std::uint32_t> forms_;
  std::map<Op, Known> known_;
};

}  // namespace dualpipe::detail::transport
