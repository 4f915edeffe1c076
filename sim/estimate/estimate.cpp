#include "dualpipe/sim/estimate/estimate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "dualpipe/sim/estimate/measured.h"
#include "dualpipe/sim/estimate/work.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/op.h"

namespace dualpipe {

using detail::estimate::Amount;
using detail::estimate::PartWork;
using detail::estimate::PassWork;

namespace {

constexpr double gradient_bytes = 4;    // fp32
constexpr double optimizer_bytes = 12;  // Adam: fp32 master weights and two moments
constexpr double parameter_bytes = 2;

using Unit = EstimatedFigure::Unit;

void check_efficiency(std::string_view name, double value) {
  if (value > 0 && value <= 1) return;
  throw InputError(fmt::format("{} is {}; it must be above 0 and at most 1", name, value));
}

void check_divides(std::string_view what, std::int64_t amount, std::string_view by, std::int64_t parts) {
  if (amount % parts == 0) return;
  throw InputError(fmt::format("{} {} cannot be split evenly over {} {}", amount, what, parts, by));
}

void check_request(const EstimateRequest& request) {
  const TransformerShape& model = request.model;
  check(model);
  const auto check_size = [](std::string_view name, std::int64_t size, std::int64_t most) {
    if (size >= 1 && size <= most) return;
    throw InputError(fmt::format("{} is {}; it must be from 1 to {}", name, size, most));
  };
  check_size("the sequence", request.sequence, 100'000'000);
  check_size("the micro-batch", request.micro_batch, 1'000'000);
  for (const auto& [name, size] : {std::pair("the tensor-parallel size", request.tensor),
                                   {"the context-parallel size", request.context},
                                   {"the data-parallel size", request.data},
                                   {"the expert-parallel size", request.expert}}) {
    check_size(name, size, 1'000'000);
  }
  check_divides("heads", model.heads, "ranks of tensor parallelism", request.tensor);
  check_divides("tokens of a sequence", request.sequence, "ranks of context and tensor parallelism",
                std::int64_t{request.context} * request.tensor);
  if (request.expert > 1) {
    if (model.experts == 0) throw InputError("the model has no experts; leave the expert-parallel size out");
    check_divides("experts", model.experts, "ranks of expert parallelism", request.expert);
    check_divides("ranks of data and context parallelism", std::int64_t{request.data} * request.context,
                  "ranks of expert parallelism", request.expert);
  }
  if (request.mfu) check_efficiency("the MFU", *request.mfu);
  check_efficiency("the efficiency of matrix products", request.matmul_efficiency);
  check_efficiency("the efficiency of the memory", request.memory_efficiency);
  if (request.precision == MatmulPrecision::fp8 && accelerator(request.gpu).flops_8bit == 0) {
    throw InputError(fmt::format("{} has no fp8; take bf16", request.gpu));
  }
}

class Estimator {
 public:
  explicit Estimator(const EstimateRequest& request)
      : request_(request), gpu_(accelerator(request.gpu)), works_(request) {
    peak_ = request.precision == MatmulPrecision::fp8 ? gpu_.flops_8bit : gpu_.flops_16bit;
  }

  [[nodiscard]] EstimatedPart part(std::string name, int count, const PartWork& work, const ParameterCount& parameters,
                                   bool recomputes) const {
    EstimatedPart part{std::move(name), count, {}, {}};
    StageCosts& costs = part.costs;
    add_parameters(part, parameters);
    add_passes(part, work);
    costs.activation = rounded(work.activation.value);
    costs.weight_stash = rounded(work.stash.value);
    costs.message = rounded(work.message.value);
    add(part, "M_B", work.activation, Unit::bytes);
    add(part, "M_W", work.stash, Unit::bytes);
    if (costs.message > 0) add(part, "message", work.message, Unit::bytes);
    if (request_.recompute && recomputes) {
      costs.recompute = costs.forward;
      costs.recompute_activation = std::min(costs.activation, rounded(work.input.value));
      add(part, "recomputed", {static_cast<double>(costs.recompute), "F again before B or I"}, Unit::time);
      add(part, "M_B, recomputed", work.input, Unit::bytes);
    }
    return part;
  }

  [[nodiscard]] const detail::estimate::Works& works() const { return works_; }
  [[nodiscard]] const Accelerator& gpu() const { return gpu_; }

 private:
  static std::int64_t rounded(double value) { return std::llround(value); }

  static void add(EstimatedPart& part, std::string name, Amount amount, Unit unit) {
    part.figures.push_back({std::move(name), amount.value, unit, std::move(amount.formula)});
  }

  // On one rank.
  void add_parameters(EstimatedPart& part, const ParameterCount& count) const {
    const double dense = static_cast<double>(count.dense) / request_.tensor + static_cast<double>(count.replicated);
    const double expert = static_cast<double>(count.expert) / request_.tensor / request_.expert;
    const double copies = std::max(1.0, static_cast<double>(request_.data) * request_.context / request_.expert);
    const double all_copies = static_cast<double>(request_.data) * request_.context;
    std::string formula = fmt::format("{} / t + {}", count.dense, count.replicated);
    if (count.expert > 0) formula += fmt::format(" + {} / (t e)", count.expert);
    add(part, "parameters", {dense + expert, formula}, Unit::parameters);
    part.costs.parameters = rounded(parameter_bytes * (dense + expert));
    part.costs.gradients = rounded(gradient_bytes * (dense + expert));
    part.costs.optimizer = rounded(optimizer_bytes * (dense / all_copies + expert / copies));
    add(part, "parameter bytes", {static_cast<double>(part.costs.parameters), "2 each"}, Unit::bytes);
    add(part, "gradient bytes", {static_cast<double>(part.costs.gradients), "4 each, fp32"}, Unit::bytes);
    add(part, "optimizer bytes",
        {static_cast<double>(part.costs.optimizer), "12 each, fp32 weights and Adam's two moments, / (d c)"},
        Unit::bytes);
  }

  void add_passes(EstimatedPart& part, const PartWork& work) const {
    const std::pair<const char*, const PassWork&> passes[] = {
        {"F", work.forward}, {"I", work.input_gradient}, {"W", work.weight_gradient}};
    Time times[3] = {};
    for (std::size_t i = 0; i < 3; ++i) {
      const char* const name = passes[i].first;
      const PassWork& pass = passes[i].second;
      times[i] = time_of(pass);
      const auto add_amount = [&](const char* what, const Amount& amount, Unit unit) {
        if (amount.value > 0) add(part, fmt::format("{} {}", name, what), amount, unit);
      };
      add_amount("linear", pass.linear, Unit::flops);
      add_amount("attention", pass.attention, Unit::flops);
      if (!request_.mfu) {
        add_amount("memory", pass.traffic, Unit::bytes);
        add_amount("sent in the node", pass.sent_in_node, Unit::bytes);
        add_amount("sent over the network", pass.sent_over_network, Unit::bytes);
      }
      add(part, name, {static_cast<double>(times[i]), time_formula(pass)}, Unit::time);
    }
    part.costs.forward = times[0];
    part.costs.input_gradient = times[1];
    part.costs.weight_gradient = times[2];
    part.costs.backward = times[1] + times[2];
  }

  [[nodiscard]] Time time_of(const PassWork& pass) const {
    const double flops = pass.linear.value + pass.attention.value;
    double seconds = flops / (peak_ * request_.mfu.value_or(request_.matmul_efficiency));
    if (!request_.mfu) {
      seconds += pass.traffic.value / (gpu_.memory_bandwidth * request_.memory_efficiency);
      seconds += pass.sent_in_node.value > 0 ? pass.sent_in_node.value / node_bandwidth() : 0;
      seconds += pass.sent_over_network.value / gpu_.network_bandwidth;
    }
    if (seconds * 1e9 > static_cast<double>(time_max)) throw InputError("a pass would take more than a day");
    return rounded(seconds * 1e9);
  }

  // Of the largest group in a node that exchanges.
  [[nodiscard]] double node_bandwidth() const {
    int most = request_.tensor;
    for (const int ranks : {request_.context, request_.expert}) {
      if (request_.tensor * ranks <= gpu_.per_node) most = std::max(most, ranks);
    }
    return gpu_.bandwidth_among(std::max(2, most));
  }

  [[nodiscard]] std::string time_formula(const PassWork& pass) const {
    std::string text;
    const auto add_term = [&](bool is_there, const std::string& term) {
      if (is_there) text += (text.empty() ? "" : " + ") + term;
    };
    const double efficiency = request_.mfu.value_or(request_.matmul_efficiency);
    add_term(pass.linear.value + pass.attention.value > 0, fmt::format("FLOPs / ({:g} x {})", peak_, efficiency));
    if (request_.mfu) return text.empty() ? "no FLOPs" : text;
    add_term(pass.traffic.value > 0,
             fmt::format("bytes / ({:g} x {})", gpu_.memory_bandwidth, request_.memory_efficiency));
    add_term(pass.sent_in_node.value > 0, fmt::format("sent / {:g}", node_bandwidth()));
    add_term(pass.sent_over_network.value > 0, fmt::format("sent / {:g}", gpu_.network_bandwidth));
    return text.empty() ? "nothing to do" : text;
  }

  const EstimateRequest& request_;
  const Accelerator& gpu_;
  detail::estimate::Works works_;
  double peak_ = 0;
};

double flops_of(const PartWork& work) {
  double flops = 0;
  for (const PassWork* pass : {&work.forward, &work.input_gradient, &work.weight_gradient}) {
    flops += pass->linear.value + pass->attention.value;
  }
  return flops;
}

}  // namespace

Estimate estimate(const EstimateRequest& request) {
  check_request(request);
  Estimate result;
  result.request = request;
  const TransformerShape& model = request.model;
  result.parameters = parameters_of(model);
  result.active_parameters = active_parameters_of(model);
  result.tokens = static_cast<double>(request.sequence) * static_cast<double>(request.micro_batch);
  const Estimator estimator(request);
  const double ranks = static_cast<double>(request.tensor) * request.context;
  const auto add = [&](std::string name, std::int64_t count, const PartWork& work, const ParameterCount& parameters,
                       bool recomputes) {
    if (count == 0) return;
    result.parts.push_back(estimator.part(std::move(name), static_cast<int>(count), work, parameters, recomputes));
    result.flops += flops_of(work) * static_cast<double>(count) * ranks;
  };
  const detail::estimate::Works& works = estimator.works();
  const std::int64_t dense = model.experts > 0 ? std::min(model.dense_layers, model.layers) : model.layers;
  add("embedding", 1, works.embedding(), parameters_of_embedding(model), false);
  add(model.experts > 0 ? "dense layer" : "layer", dense, works.layer(false), parameters_of_layer(model, false), true);
  if (model.experts > 0) {
    add("expert layer", model.layers - dense, works.layer(true), parameters_of_layer(model, true), true);
  }
  add("head", 1, works.head(), parameters_of_head(model), false);
  for (const EstimatedPart& part : result.parts) {
    result.costs.parts.insert(result.costs.parts.end(), static_cast<std::size_t>(part.count), part.costs);
  }
  result.costs.parts.back().message = 0;
  if (request.measured) detail::estimate::take_measured(result.costs.parts, request);
  result.costs.model = CommunicationModel::links;
  result.costs.bandwidth = estimator.gpu().network_bandwidth;
  result.costs.latency = 10'000;  // a message over the network starts some microseconds late
  check(result.costs);
  return result;
}

}  // namespace dualpipe
