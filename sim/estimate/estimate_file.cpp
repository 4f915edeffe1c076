#include "dualpipe/sim/estimate/estimate_file.h"

#include <array>
#include <nlohmann/json.hpp>
#include <ostream>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

#include "dualpipe/sim/costs/costs_file.h"
#include "dualpipe/sim/costs/costs_json.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/input_file.h"
#include "dualpipe/sim/schedule/json_reader.h"

namespace dualpipe {

using detail::schedule::JsonValue;

namespace detail::estimate {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr std::array sizes{std::pair{"layers", &TransformerShape::layers},
                           std::pair{"hidden", &TransformerShape::hidden},
                           std::pair{"heads", &TransformerShape::heads},
                           std::pair{"key_value_heads", &TransformerShape::key_value_heads},
                           std::pair{"head_size", &TransformerShape::head_size},
                           std::pair{"intermediate", &TransformerShape::intermediate},
                           std::pair{"vocabulary", &TransformerShape::vocabulary},
                           std::pair{"positions", &TransformerShape::positions},
                           std::pair{"experts", &TransformerShape::experts},
                           std::pair{"experts_per_token", &TransformerShape::experts_per_token},
                           std::pair{"expert_intermediate", &TransformerShape::expert_intermediate},
                           std::pair{"shared_intermediate", &TransformerShape::shared_intermediate},
                           std::pair{"dense_layers", &TransformerShape::dense_layers},
                           std::pair{"query_rank", &TransformerShape::query_rank},
                           std::pair{"key_value_rank", &TransformerShape::key_value_rank},
                           std::pair{"no_position_size", &TransformerShape::no_position_size},
                           std::pair{"position_size", &TransformerShape::position_size},
                           std::pair{"value_size", &TransformerShape::value_size}};
constexpr std::array flags{std::pair{"gated", &TransformerShape::gated},
                           std::pair{"layer_norm", &TransformerShape::layer_norm},
                           std::pair{"tied_embeddings", &TransformerShape::tied_embeddings},
                           std::pair{"query_key_value_bias", &TransformerShape::query_key_value_bias},
                           std::pair{"output_bias", &TransformerShape::output_bias},
                           std::pair{"mlp_bias", &TransformerShape::mlp_bias},
                           std::pair{"query_key_norm", &TransformerShape::query_key_norm},
                           std::pair{"router_bias", &TransformerShape::router_bias},
                           std::pair{"dropout", &TransformerShape::dropout}};
constexpr std::array ranks{std::pair{"tensor", &EstimateRequest::tensor},
                           std::pair{"context", &EstimateRequest::context}, std::pair{"data", &EstimateRequest::data},
                           std::pair{"expert", &EstimateRequest::expert}};
constexpr std::array measured_ranks{
    std::pair{"tensor", &MeasuredParts::tensor}, std::pair{"context", &MeasuredParts::context},
    std::pair{"data", &MeasuredParts::data}, std::pair{"expert", &MeasuredParts::expert}};
constexpr std::array<std::string_view, 3> precision_names{"bf16", "fp16", "fp8"};

// What is as it is without being said is left out.
OrderedJson model_json(const TransformerShape& model) {
  OrderedJson json{{"name", model.name}};
  for (const auto& [key, member] : sizes) {
    if (model.*member != 0) json[key] = model.*member;
  }
  for (const auto& [key, member] : flags) {
    if (model.*member != TransformerShape{}.*member) json[key] = model.*member;
  }
  return json;
}

// Its parts as a costs file has them.
OrderedJson measured_json(const MeasuredParts& measured) {
  OrderedJson json{{"microbatch", measured.micro_batch}};
  for (const auto& [key, member] : measured_ranks) json[key] = measured.*member;
  json["parts"] = costs::costs_json(ModelCosts{{}, measured.parts, {}})["parts"];
  return json;
}

OrderedJson request_json(const EstimateRequest& request) {
  OrderedJson json{
      {"model", model_json(request.model)}, {"sequence", request.sequence}, {"microbatch", request.micro_batch}};
  for (const auto& [key, member] : ranks) json[key] = request.*member;
  json["gpu"] = request.gpu;
  json["dtype"] = precision_names[static_cast<std::size_t>(request.precision)];
  json["flash_attention"] = request.flash_attention;
  json["recompute"] = request.recompute;
  if (request.mfu) json["mfu"] = *request.mfu;
  json["matmul_efficiency"] = request.matmul_efficiency;
  json["memory_efficiency"] = request.memory_efficiency;
  if (request.measured) json["measured"] = measured_json(*request.measured);
  return json;
}

TransformerShape model_of(const JsonValue& object) {
  TransformerShape model;
  if (const auto name = object.find("name")) model.name = name->text();
  for (const auto& [key, member] : sizes) {
    if (const auto value = object.find(key)) model.*member = value->integer(0, 1'000'000'000);
  }
  for (const auto& [key, member] : flags) {
    if (const auto value = object.find(key)) model.*member = value->boolean();
  }
  return model;
}

MeasuredParts measured_of(const JsonValue& object, const nlohmann::json& json, const std::string& source) {
  MeasuredParts measured;
  measured.micro_batch = object.at("microbatch").integer(1, 1'000'000);
  for (const auto& [key, member] : measured_ranks) {
    measured.*member = static_cast<int>(object.at(key).integer(1, 1'000'000));
  }
  (void)object.at("parts");
  std::istringstream costs(
      OrderedJson{{"format", "dualpipe-costs"}, {"version", 1}, {"parts", json.at("parts")}}.dump());
  const GivenCosts read = read_costs(costs, source + ": measured");
  measured.parts = std::get<ModelCosts>(read).parts;
  return measured;
}

EstimateRequest request_of(const JsonValue& object, const nlohmann::json& json, const std::string& source) {
  EstimateRequest request;
  request.model = model_of(object.at("model"));
  request.sequence = object.at("sequence").integer(1, 100'000'000);
  request.micro_batch = object.at("microbatch").integer(1, 1'000'000);
  for (const auto& [key, member] : ranks) {
    if (const auto value = object.find(key)) request.*member = static_cast<int>(value->integer(1, 1'000'000));
  }
  request.gpu = object.at("gpu").text();
  if (const auto value = object.find("dtype")) {
    const auto* const found = std::find(precision_names.begin(), precision_names.end(), value->text());
    if (found == precision_names.end()) value->fail("it is none of bf16, fp16, fp8");
    request.precision = static_cast<MatmulPrecision>(found - precision_names.begin());
  }
  if (const auto value = object.find("flash_attention")) request.flash_attention = value->boolean();
  if (const auto value = object.find("recompute")) request.recompute = value->boolean();
  if (const auto value = object.find("mfu")) request.mfu = value->number();
  if (const auto value = object.find("matmul_efficiency")) request.matmul_efficiency = value->number();
  if (const auto value = object.find("memory_efficiency")) request.memory_efficiency = value->number();
  if (const auto value = object.find("measured")) request.measured = measured_of(*value, json.at("measured"), source);
  return request;
}

}  // namespace
}  // namespace detail::estimate

std::string to_json_line(const EstimateRequest& request) {
  return detail::estimate::request_json(request).dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
}

EstimateRequest estimate_of_json(const std::string& text, const std::string& source) {
  std::istringstream in(text);
  const nlohmann::json json = detail::schedule::read_json_document(in, source, {});
  return detail::estimate::request_of(JsonValue(json, source), json, source);
}

std::optional<EstimateRequest> load_estimate_request(const std::string& path) {
  auto in = open_input_file(path);
  const nlohmann::json json = detail::schedule::read_json_document(in, path, {.depth_max = 5});
  const auto object = JsonValue(json, path).find("estimate");
  if (!object) return std::nullopt;
  return detail::estimate::request_of(*object, json.at("estimate"), path);
}

void write_estimate(std::ostream& out, const Estimate& estimate) {
  std::ostringstream costs;
  write_costs(costs, estimate.costs);
  const std::string text = costs.str();
  const std::size_t first_key = text.find("  \"parts\"");
  out << text.substr(0, first_key) << "  \"estimate\": " << to_json_line(estimate.request) << ",\n"
      << text.substr(first_key);
}

}  // namespace dualpipe
