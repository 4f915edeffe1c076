// A model, and what it is to run on, as people say it.
#pragma once

#include <string>

#include "dualpipe/sim/estimate/estimate.h"

namespace dualpipe {

// Values stay text until they are used: a wrong one is bad input, not wrong usage. Empty: not given.
struct EstimateOptions {
  std::string config;  // a file; or
  std::string style, layers, hidden, heads, key_value_heads, head_size, intermediate, vocabulary;

  std::string sequence, micro_batch;
  std::string tensor, context, expert, data;
  std::string gpu = "h100";
  std::string dtype = "bf16";
  std::string attention = "flash";
  std::string recompute = "none";
  std::string mfu, matmul_efficiency, memory_efficiency;

  // Throws InputError, and UsageError where a config file and sizes that it has are given.
  [[nodiscard]] EstimateRequest request() const;

 private:
  [[nodiscard]] TransformerShape model(std::int64_t sequence_length) const;
};

}  // namespace dualpipe
