#include "dualpipe/sim/estimate/work.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace dualpipe::detail::estimate {
namespace {

constexpr double element = 2;  // bytes

double real(std::int64_t value) { return static_cast<double>(value); }

Amount sum(const Amount& a, const Amount& b) {
  if (b.value == 0) return a;
  return {a.value + b.value, a.formula.empty() ? b.formula : a.formula + " + " + b.formula};
}

}  // namespace

Works::Works(const EstimateRequest& request) : request_(request), model_(request.model) {
  tokens_ = real(request.sequence) * real(request.micro_batch) / (real(request.tensor) * real(request.context));
  hidden_ = real(model_.hidden);
  queries_ = real(model_.heads * model_.query_size());
  attention_out_ = real(model_.heads * model_.size_of_value());
  const std::int64_t key_value_heads = model_.is_latent() ? model_.heads : model_.key_value_heads;
  keys_ = real(key_value_heads * model_.query_size());
  values_ = real(key_value_heads * model_.size_of_value());
}

Amount Works::of_tokens(double per_token, std::string formula) const {
  return {tokens_ * per_token, fmt::format("s b / (t c) x ({})", formula)};
}

// Of the MLPs that a token goes through, together.
double Works::active_intermediate(bool has_experts) const {
  if (!has_experts) return real(model_.intermediate);
  return real(model_.experts_per_token * model_.expert_intermediate + model_.shared_intermediate);
}

void Works::add_linears(PartWork& work, bool has_experts) const {
  double weights = 0;
  double biased = 0;  // outputs whose bias has a gradient
  for (const Linear& each : linears_of(model_, has_experts)) {
    const double times = real(each.is_expert ? each.per_token : 1);
    weights += times * real(each.in) * real(each.out);
    if (each.has_bias) biased += times * real(each.out);
  }
  const Amount flops = of_tokens(2 * weights, fmt::format("2 x {:.0f} weights", weights));
  work.forward.linear = work.input_gradient.linear = work.weight_gradient.linear = flops;
  if (biased > 0) {
    work.weight_gradient.traffic =
        of_tokens(element * biased, fmt::format("2 x {:.0f} gradients, for the biases", biased));
  }
}

void Works::add_attention(PartWork& work) const {
  const double s = real(request_.sequence);
  const double seen = request_.flash_attention ? (s + 1) / 2 : s;
  const double flops = 2 * (queries_ + attention_out_) * seen;
  work.forward.attention = of_tokens(flops, fmt::format("2 x ({:.0f} + {:.0f}) x {}", queries_, attention_out_,
                                                        request_.flash_attention ? "(s + 1) / 2" : "s"));
  const double scores = 2 * queries_ * seen;
  work.input_gradient.attention = request_.flash_attention
                                      ? of_tokens(2 * flops + scores, "twice that of F, and the scores once more")
                                      : of_tokens(2 * flops, "twice that of F");
}

// Reads and writes of each kernel, with the usual ones fused: bias and activation, bias, dropout and residual.
void Works::add_traffic(PartWork& work, bool has_experts) const {
  const double f = active_intermediate(has_experts);
  const double scores = real(model_.heads) * real(request_.sequence);  // of a token, without flash attention
  const double rotated = model_.positions > 0 ? 0 : queries_ + keys_;
  // Two norms, two residual sums; the activation.
  double forward = 8 * hidden_ + (model_.dropout ? 14 : 12) * hidden_ + (model_.gated ? 6 : 4) * f + 4 * rotated;
  double backward = 12 * hidden_ + (model_.dropout ? 22 : 12) * hidden_ + (model_.gated ? 10 : 6) * f + 4 * rotated;
  std::string forward_text = fmt::format("{}h + {}f", model_.dropout ? 22 : 20, model_.gated ? 6 : 4);
  std::string backward_text = fmt::format("{}h + {}f", model_.dropout ? 34 : 24, model_.gated ? 10 : 6);
  if (rotated > 0) forward_text += " + 4(q + k)";
  if (rotated > 0) backward_text += " + 4(q + k)";
  const double read = queries_ + keys_ + values_;
  if (request_.flash_attention) {
    forward += element * (read + attention_out_);
    backward += element * (2 * read + 3 * attention_out_);
    forward_text += " + 2(q + k + 2v)";
    backward_text += " + 4(q + k + v) + 6v";
  } else {
    // The scores are written, and read by the softmax, by dropout, and by the product with the values; and the heads
    // are put side by side.
    forward += 4 * attention_out_ + (model_.dropout ? 13 : 8) * scores;
    backward += 4 * attention_out_ + (model_.dropout ? 19 : 14) * scores;
    forward_text += fmt::format(" + 4v + {}as", model_.dropout ? 13 : 8);
    backward_text += fmt::format(" + 4v + {}as", model_.dropout ? 19 : 14);
  }
  if (has_experts) {  // to the experts' order and back
    const double moved = real(model_.experts_per_token) * hidden_;
    forward += 6 * moved + 2 * hidden_;
    backward += 6 * moved + 2 * hidden_;
    forward_text += " + (6k' + 2)h";
    backward_text += " + (6k' + 2)h";
  }
  work.forward.traffic = of_tokens(forward, forward_text);
  work.input_gradient.traffic = of_tokens(backward, backward_text);
}

void Works::add_sent(PartWork& work, bool has_experts) const {
  const double t = real(request_.tensor);
  const double c = real(request_.context);
  if (request_.tensor > 1) {
    // Two gathers and two scatters, of the tokens that all ranks of it have.
    const Amount each = of_tokens(4 * (t - 1) * element * hidden_, "4 (t - 1) x 2h");
    work.forward.sent_in_node = work.input_gradient.sent_in_node = each;
  }
  if (request_.context > 1) {
    // Keys and values go round while attention runs; what does not fit behind it is not known here, and all is counted.
    const Amount ring = of_tokens((c - 1) * element * (keys_ + values_), "(c - 1) x 2(k + v)");
    const bool in_node = request_.tensor * request_.context <= accelerator(request_.gpu).per_node;
    Amount PassWork::*const sent = in_node ? &PassWork::sent_in_node : &PassWork::sent_over_network;
    work.forward.*sent = sum(work.forward.*sent, ring);
    work.input_gradient.*sent = sum(work.input_gradient.*sent, {2 * ring.value, "twice that of F"});
  }
  if (has_experts && request_.expert > 1) {
    const double e = real(request_.expert);
    const Amount exchanged = of_tokens(2 * real(model_.experts_per_token) * (e - 1) / e * element * hidden_,
                                       "2 k' (e - 1) / e x 2h, to the experts and back");
    const bool in_node = request_.tensor * request_.expert <= accelerator(request_.gpu).per_node;
    Amount PassWork::*const sent = in_node ? &PassWork::sent_in_node : &PassWork::sent_over_network;
    work.forward.*sent = sum(work.forward.*sent, exchanged);
    work.input_gradient.*sent = sum(work.input_gradient.*sent, exchanged);
  }
}

void Works::add_kept(PartWork& work, bool has_experts) const {
  // Inputs of both norms, and what stands behind masks of dropout.
  double kept = 4 * hidden_ + (model_.dropout ? 2 : 0) * hidden_;
  double inputs = 0;   // of weight matrices, each once
  double outputs = 0;  // whose gradients W reads
  for (const Linear& each : linears_of(model_, has_experts)) {
    const double times = real(each.is_expert ? each.per_token : 1);
    if (!each.shares_input) inputs += times * real(each.in);
    outputs += times * real(each.out);
  }
  // Attention reads Q, K and V; the activation its inputs.
  const double f = active_intermediate(has_experts);
  const double attention = queries_ + keys_ + values_;
  const double latent = model_.is_latent() ? real(model_.query_rank + model_.key_value_rank + model_.position_size) : 0;
  kept += element * (inputs + attention + latent + (model_.gated ? 2 : 1) * f);
  std::string text = fmt::format("{}h + 2 x ({:.0f} inputs of products + {:.0f} of attention + {:.0f} of the MLP)",
                                 model_.dropout ? 6 : 4, inputs, attention + latent, (model_.gated ? 2 : 1) * f);
  if (has_experts) {  // outputs of the experts, for the router's gradient, and its probabilities in fp32
    kept += element * real(model_.experts_per_token) * hidden_ + 4 * real(model_.experts);
    text += " + 2k'h + 4e'";
  }
  if (request_.flash_attention) {
    kept += 4 * real(model_.heads);
    text += " + 4a";
  } else {
    const double scores = real(model_.heads) * real(request_.sequence);
    kept += (model_.dropout ? 5 : 2) * scores;
    text += model_.dropout ? " + 5as" : " + 2as";
  }
  work.activation = of_tokens(kept, text);
  work.stash = of_tokens(element * (inputs + outputs),
                         fmt::format("2 x ({:.0f} inputs + {:.0f} gradients of outputs)", inputs, outputs));
  work.input = of_tokens(element * hidden_, "2h");
  work.message = of_tokens(element * hidden_, "2h");
}

PartWork Works::layer(bool has_experts) const {
  PartWork work;
  add_linears(work, has_experts);
  add_attention(work);
  add_traffic(work, has_experts);
  add_sent(work, has_experts);
  add_kept(work, has_experts);
  return work;
}

PartWork Works::embedding() const {
  PartWork work;
  work.forward.traffic = of_tokens(2 * element * hidden_, "4h: rows read and written");
  work.weight_gradient.traffic = of_tokens(10 * hidden_, "10h: gradients added to rows in fp32");
  const double kept = 8 + (model_.dropout ? 1 : 0) * hidden_;
  work.activation = of_tokens(kept, model_.dropout ? "8 + h" : "8: the tokens");
  work.stash = of_tokens(element * hidden_, "2h: the gradient");
  work.message = work.stash;
  work.message.formula = of_tokens(0, "2h").formula;
  work.input = work.activation;
  return work;
}

PartWork Works::head() const {
  PartWork work;
  const double vocabulary = real(model_.vocabulary);
  const Amount flops = of_tokens(2 * hidden_ * vocabulary, "2 h V");
  work.forward.linear = work.input_gradient.linear = work.weight_gradient.linear = flops;
  work.forward.traffic = of_tokens(4 * hidden_ + 14 * vocabulary, "4h + 14V: the norm; logits to fp32, their softmax");
  work.input_gradient.traffic = of_tokens(6 * hidden_ + 6 * vocabulary, "6h + 6V");
  if (request_.tensor > 1) {
    const double t = real(request_.tensor);
    work.forward.sent_in_node = work.input_gradient.sent_in_node =
        of_tokens((t - 1) * element * hidden_, "(t - 1) x 2h");
  }
  work.activation = of_tokens(4 * hidden_ + 4 * vocabulary, "4h + 4V");
  work.stash = of_tokens(element * (hidden_ + vocabulary), "2h + 2V");
  work.input = of_tokens(element * hidden_, "2h");
  return work;
}

}  // namespace dualpipe::detail::estimate
