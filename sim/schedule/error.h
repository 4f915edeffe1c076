// The errors that a user can cause. Each message names the place (file and line, rank, op or option), what is wrong
// there, and the remedy. Our own bugs are assertions, never one of these.
#pragma once

#include <stdexcept>
#include <string>

namespace dualpipe {

// A file, a text or a number that cannot be taken as it is.
class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A shape (ranks, micro-batches, chunks) that a schedule cannot have. Names the rule and the nearest shapes that work.
class ShapeError : public InputError {
 public:
  using InputError::InputError;
};

}  // namespace dualpipe
