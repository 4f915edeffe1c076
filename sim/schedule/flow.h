// What flows between the stages of a chain: which stage makes the input of an op, which one uses its result, and
// whether that is on another rank, so that a message carries it.
//
//   what flows   made by    used by                                 carried by
//   activation   F          F of the next stage                     SEND_F and RECV_F
//   gradient     B or I     B or I of the previous stage            SEND_B and RECV_B
//
// W reads what its own I has left, and makes nothing for another stage. What is asked here may be asked of F, B, I and
// W and of messages alone.
#pragma once

#include <cassert>
#include <cstdint>
#include <optional>

#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe {

// Whether it makes, uses or carries an activation; else a gradient.
[[nodiscard]] constexpr bool is_forward(Kind kind) {
  return kind == Kind::forward || kind == Kind::send_forward || kind == Kind::receive_forward;
}

// A stage at the other end of what flows.
struct FlowEnd {
  std::uint16_t stage = 0;
  std::uint16_t rank = 0;  // that holds it
  bool is_remote = false;  // on another rank than the stage it was asked for

  friend bool operator==(const FlowEnd&, const FlowEnd&) = default;
};

namespace detail::schedule {

// Of an op's stage; none at the end of its chain.
[[nodiscard]] inline std::optional<FlowEnd> neighbour_of(Op op, bool next, const Placement& placement) {
  const std::optional<int> stage = next ? placement.next(op.stage) : placement.previous(op.stage);
  if (!stage) return std::nullopt;
  const std::uint16_t rank = placement.rank_of[static_cast<std::size_t>(*stage)];
  return FlowEnd{static_cast<std::uint16_t>(*stage), rank, rank != placement.rank_of[op.stage]};
}

}  // namespace detail::schedule

// Who makes the input of an F, B or I; none where that is no stage: at the beginning of a chain the data, at its end
// the loss. None for W.
[[nodiscard]] inline std::optional<FlowEnd> producer_of(Op op, const Placement& placement) {
  if (op.kind == Kind::weight_gradient) return std::nullopt;
  return detail::schedule::neighbour_of(op, op.kind != Kind::forward, placement);
}

// Who uses the result of an F, B or I; none where nobody does. None for W.
[[nodiscard]] inline std::optional<FlowEnd> consumer_of(Op op, const Placement& placement) {
  if (op.kind == Kind::weight_gradient) return std::nullopt;
  return detail::schedule::neighbour_of(op, op.kind == Kind::forward, placement);
}

// The message that brings the input of an F, B or I, and the one that takes its result away, where these are remote.
[[nodiscard]] constexpr Op receive_for(Op op) {
  return {op.micro_batch, op.stage, is_forward(op.kind) ? Kind::receive_forward : Kind::receive_backward, false};
}
[[nodiscard]] constexpr Op send_of(Op op) {
  return {op.micro_batch, op.stage, is_forward(op.kind) ? Kind::send_forward : Kind::send_backward, false};
}

// The op at a message's own end: it makes what is sent, or needs what is received. B stands for B or I.
[[nodiscard]] constexpr Op op_of(Op message) {
  return {message.micro_batch, message.stage, is_forward(message.kind) ? Kind::forward : Kind::backward, false};
}

// The stage at the other end of a message; none where no stage is there.
[[nodiscard]] inline std::optional<FlowEnd> other_end_of(Op message, const Placement& placement) {
  return is_send(message.kind) ? consumer_of(op_of(message), placement) : producer_of(op_of(message), placement);
}

// The op at the other end of a message: the receive of a send, the send of a receive. There must be a stage.
[[nodiscard]] inline Op peer_of(Op message, const Placement& placement) {
  const auto end = other_end_of(message, placement);
  assert(end && "a message crosses a chain's end");
  const Op at_end{message.micro_batch, end->stage, message.kind, false};
  return is_send(message.kind) ? receive_for(at_end) : send_of(at_end);
}

// The stage whose output a message is, or is the gradient of: its size is that of this stage's messages.
[[nodiscard]] inline int output_stage_of(Op message, const Placement& placement) {
  const bool own_output = message.kind == Kind::send_forward || message.kind == Kind::receive_backward;
  return own_output ? message.stage : other_end_of(message, placement).value().stage;
}

// A number that an F has in common with SEND_F and RECV_F of its stage and micro-batch, a B or I with SEND_B and
// RECV_B; another for each stage and micro-batch.
[[nodiscard]] constexpr std::uint64_t key_of(Op op) {
  return (std::uint64_t{op.stage} << 33U) | (std::uint64_t{op.micro_batch} << 1U) | (is_forward(op.kind) ? 1U : 0U);
}

}  // namespace dualpipe
