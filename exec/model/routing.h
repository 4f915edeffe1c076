// Which token goes to which experts. No shape depends on that, so that the host need not know it: each expert has
// places for so many tokens (GShard, arXiv:2006.16668, section 2.2; Switch Transformers, arXiv:2101.03961,
// section 2.2). The first choices of all tokens get their places first, then the second choices; a choice that comes
// too late gets none.
//
//     2 experts, 2 places each                  expert 0      expert 1
//     token 0: first choice 0, second 1         0             2  ← first choices
//     token 1: first choice 0, second 1         1             0  ← the second choice of 0
//     token 2: first choice 1, second 0                            1's and 2's second choices have no place
//
// All is gathered, forward and backward: no two threads of a GPU add to one number, and the bits are always the same.
// Private to the models.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace dualpipe::detail::model {

// With T tokens, of which each chooses K experts, and S slots, the places of all experts.
struct Routing {
  at::Tensor weights;     // [K, T]: of what the chosen expert makes of the token; 0 where it has no place
  at::Tensor slot;        // [K, T] of int64: expert * capacity + place; S where there is none
  at::Tensor assignment;  // [S] of int64: choice * T + token; K * T where the slot is empty
};

// Places of each expert: `factor` times those that tokens take which go to all experts alike, rounded up; at least 1,
// and no more than there are tokens.
[[nodiscard]] std::int64_t expert_capacity(double factor, std::int64_t tokens, std::int64_t top_k,
                                           std::int64_t experts);

// `logits`: [T, experts], of which the `top_k` largest are chosen. Their softmax, normalised over the chosen, is the
// weights, by which gradients reach the logits; computed in no less than float32.
[[nodiscard]] Routing route(const at::Tensor& logits, std::int64_t top_k, std::int64_t capacity);

// [T, hidden] to [S, hidden]. An empty slot gets some token: what an expert makes of it is never read.
[[nodiscard]] at::Tensor dispatch(const at::Tensor& tokens, const Routing& routing);

// [S, hidden] to [T, hidden]: the weighted sum of what the experts made of each token.
[[nodiscard]] at::Tensor combine(const at::Tensor& slots, const Routing& routing);

}  // namespace dualpipe::detail::model
