// What the passes of a part do on one rank: FLOPs, and bytes that are read, written, sent and kept. Private to
// sim/estimate.
#pragma once

#include <string>

#include "dualpipe/sim/estimate/estimate.h"

namespace dualpipe::detail::estimate {

struct Amount {
  double value = 0;
  std::string formula = {};
};

struct PassWork {
  Amount linear;             // FLOPs
  Amount attention;          // FLOPs
  Amount traffic;            // bytes that are read and written by what is no matrix product
  Amount sent_in_node;       // bytes
  Amount sent_over_network;  // bytes
};

struct PartWork {
  PassWork forward, input_gradient, weight_gradient;
  // Bytes.
  Amount activation;  // M_B
  Amount stash;       // M_W
  Amount input;       // of M_B, what is kept where the forward runs again
  Amount message;
};

class Works {
 public:
  explicit Works(const EstimateRequest& request);  // it outlives this, and was checked

  [[nodiscard]] PartWork embedding() const;
  [[nodiscard]] PartWork layer(bool has_experts) const;
  [[nodiscard]] PartWork head() const;

 private:
  [[nodiscard]] Amount of_tokens(double per_token, std::string formula) const;
  void add_linears(PartWork& work, bool has_experts) const;
  void add_attention(PartWork& work) const;
  void add_traffic(PartWork& work, bool has_experts) const;
  void add_sent(PartWork& work, bool has_experts) const;
  void add_kept(PartWork& work, bool has_experts) const;
  [[nodiscard]] double active_intermediate(bool has_experts) const;

  const EstimateRequest& request_;
  const TransformerShape& model_;
  double tokens_ = 0;  // of a micro-batch, on a rank: s b / (t c)
  double hidden_ = 0;
  double queries_ = 0;  // of all heads
  double keys_ = 0;
  double values_ = 0;         // as attention reads them, of the key-value heads
  double attention_out_ = 0;  // of all heads
};

}  // namespace dualpipe::detail::estimate
