// An op: one thing that one rank does. Its text form is PyTorch's (torch.distributed.pipelining, `_Action`), and this
// is the only place that writes or reads it:
//
//   3B7                     stage 3, pass B, micro-batch 7
//   0SEND_F2  1RECV_F2      stage 0 sends the activation of micro-batch 2, stage 1 receives it: a message is named by
//                           the stage at its own end
//   2REDUCE_GRAD            no micro-batch
//   (0F7;3B5)OVERLAP_F_B    an F&B pair: two ops of the list, the first with `with_next`
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace dualpipe {

enum class Kind : std::uint8_t {
  forward,           // F
  backward,          // B, the full backward: input and weight gradients. (The zero-bubble papers write B for I.)
  input_gradient,    // I
  weight_gradient,   // W
  send_forward,      // the stage's output goes to the next stage of its chain
  receive_forward,   // the stage's input comes from the previous one
  send_backward,     // the gradient of the stage's input goes to the previous stage
  receive_backward,  // the gradient of its output comes from the next one
  unshard,           // PyTorch FSDP: parameters are gathered; carried, free of cost
  reshard,           // and dropped again
  reduce_gradients,  // gradients are summed over all stages that share the weights
};

inline constexpr int kind_count = 11;

struct Op {
  std::uint32_t micro_batch = 0;  // within its chain; 0 for kinds without one
  std::uint16_t stage = 0;        // over the whole placement
  Kind kind = Kind::forward;
  bool with_next = false;  // it is one unit with the op after it: an F&B pair, or messages of one batch

  friend auto operator<=>(const Op&, const Op&) = default;
};
static_assert(sizeof(Op) == 8, "a step of 16 million ops has to fit into the memory of a laptop");

inline constexpr std::uint32_t stage_count_max = 65'535;  // so that the number of stages fits into 16 bits, too
inline constexpr std::uint32_t micro_batch_count_max = 1U << 24U;
inline constexpr std::size_t op_count_max = std::size_t{1} << 28U;  // 2 GiB of ops

[[nodiscard]] constexpr bool is_compute(Kind kind) { return kind <= Kind::weight_gradient; }
[[nodiscard]] constexpr bool is_send(Kind kind) { return kind == Kind::send_forward || kind == Kind::send_backward; }
[[nodiscard]] constexpr bool is_receive(Kind kind) {
  return kind == Kind::receive_forward || kind == Kind::receive_backward;
}
[[nodiscard]] constexpr bool has_micro_batch(Kind kind) { return kind < Kind::unshard; }
[[nodiscard]] constexpr bool is_backward_half(Kind kind) {
  return kind == Kind::backward || kind == Kind::input_gradient;
}

// "F", "SEND_F", "REDUCE_GRAD", …
[[nodiscard]] std::string_view name(Kind kind);

// One op, `with_next` left out: "3B7".
[[nodiscard]] std::string to_text(Op op);
// The cell that starts at ops[0]: "3B7", or the whole pair.
[[nodiscard]] std::string cell_text(std::span<const Op> ops);

// A cell: one op, or the two of a pair.
struct Cell {
  Op first;
  std::optional<Op> second;
};

// Reads exactly one cell, nothing before or after it. Throws InputError that says what was expected instead.
[[nodiscard]] Cell parse_cell(std::string_view text);

}  // namespace dualpipe
