// Parameters are those that are published, to the last one; bytes are the papers' formulas; times are near what the
// zero-bubble paper measured, by two numbers for all of its models.
#include "dualpipe/sim/estimate/estimate.h"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <tuple>

#include "dualpipe/sim/costs/costs_file.h"
#include "dualpipe/sim/estimate/estimate_file.h"
#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe::test {
namespace {

// Written from the published numbers of each model.
const std::map<std::string_view, std::string_view> configs{
    {"llama-3-8b",
     R"({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
      "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": false})"},
    {"llama-3-70b", R"({"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
      "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8, "vocab_size": 128256,
      "rope_scaling": null})"},
    {"qwen2-7b", R"({"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
      "num_hidden_layers": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": false})"},
    {"qwen3-30b-a3b", R"({"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "head_dim": 128,
      "num_attention_heads": 32, "num_hidden_layers": 48, "num_key_value_heads": 4, "vocab_size": 151936,
      "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "attention_bias": false})"},
    {"mixtral-8x7b", R"({"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
      "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 32000,
      "num_local_experts": 8, "num_experts_per_tok": 2})"},
    {"deepseek-v3", R"({"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
      "num_attention_heads": 128, "num_hidden_layers": 61, "num_key_value_heads": 128, "vocab_size": 129280,
      "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
      "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048,
      "first_k_dense_replace": 3})"},
    {"gpt2", R"({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
      "n_inner": null, "vocab_size": 50257})"}};

TransformerShape model_of(std::string_view name) {
  std::istringstream in{std::string(configs.at(name))};
  return read_model_config(in, std::string(name));
}

// As the zero-bubble paper's: GPT, without the embeddings.
EstimateRequest gpt(std::int64_t heads, std::int64_t hidden, std::int64_t micro_batch) {
  EstimateRequest request;
  request.model.layers = 2;
  request.model.hidden = hidden;
  request.model.heads = request.model.key_value_heads = heads;
  request.model.head_size = hidden / heads;
  request.model.intermediate = 4 * hidden;
  request.model.vocabulary = 50'304;
  request.model.positions = 1024;
  request.model.gated = false;
  request.model.layer_norm = request.model.query_key_value_bias = request.model.output_bias = true;
  request.model.mlp_bias = request.model.dropout = true;
  request.sequence = 1024;
  request.micro_batch = micro_batch;
  request.gpu = "a100";
  request.flash_attention = false;
  return request;
}

const EstimatedPart& layer_of(const Estimate& estimate) { return estimate.parts[1]; }

double figure(const EstimatedPart& part, std::string_view name) {
  for (const EstimatedFigure& each : part.figures) {
    if (each.name == name) return each.value;
  }
  return std::nan("");
}

BOOST_AUTO_TEST_SUITE(estimate_estimate)

BOOST_AUTO_TEST_CASE(parameters_are_those_published) {
  const std::map<std::string_view, std::int64_t> published{{"llama-3-8b", 8'030'261'248},
                                                           {"llama-3-70b", 70'553'706'496},
                                                           {"qwen2-7b", 7'615'616'512},
                                                           {"qwen3-30b-a3b", 30'532'122'624},
                                                           {"mixtral-8x7b", 46'702'792'704},
                                                           {"deepseek-v3", 671'026'419'200},
                                                           {"gpt2", 124'439'808}};
  for (const auto& [name, count] : published) {
    BOOST_TEST_CONTEXT(name) {
      const TransformerShape model = model_of(name);
      BOOST_TEST(parameters_of(model) == count);
      // And in what the parts hold, but for a head that is the embedding.
      EstimateRequest request{.model = model, .sequence = 64};
      double held = 0;
      for (const EstimatedPart& part : estimate(request).parts) held += part.count * figure(part, "parameters");
      const double twice = model.tied_embeddings ? static_cast<double>(model.vocabulary * model.hidden) : 0;
      BOOST_TEST(held == static_cast<double>(count) + twice);
    }
  }
  // arXiv:2401.04088 and arXiv:2412.19437 say 13 and 37 billion for each token.
  BOOST_TEST(active_parameters_of(model_of("mixtral-8x7b")) == 12'879'925'248);
  BOOST_TEST(std::abs(static_cast<double>(active_parameters_of(model_of("deepseek-v3"))) - 37.5e9) < 0.2e9);
}

BOOST_AUTO_TEST_CASE(activations_are_the_papers_formulas) {
  for (const auto& row : read_table("published_zero_bubble.csv")) {
    if (row[0] == "model") continue;
    const std::int64_t a = std::stoll(row[8]);
    const std::int64_t h = std::stoll(row[9]);
    const std::int64_t s = 1024;
    for (const std::int64_t b : {1, 6}) {
      const StageCosts layer = layer_of(estimate(gpt(a, h, b))).costs;
      BOOST_TEST(layer.activation == s * b * (34 * h + 5 * a * s));  // arXiv:2401.10241, table 2
      BOOST_TEST(layer.weight_stash == 32 * s * b * h);
      BOOST_TEST(layer.message == 2 * s * b * h);
    }
    EstimateRequest shared = gpt(a, h, 1);
    shared.tensor = 8;
    BOOST_TEST(layer_of(estimate(shared)).costs.activation == s * (34 * h + 5 * a * s) / 8);  // arXiv:2205.05198, (4)
    EstimateRequest flash = gpt(a, h, 1);
    flash.flash_attention = true;
    BOOST_TEST(layer_of(estimate(flash)).costs.activation == s * (34 * h + 4 * a));
  }
}

BOOST_AUTO_TEST_CASE(flops_are_those_of_the_products) {
  const std::int64_t h = 4096;
  const std::int64_t s = 1024;
  const EstimatedPart layer = layer_of(estimate(gpt(32, h, 2)));
  // 24 b s h^2 (1 + s / 6h) forward (arXiv:2104.04473, appendix): linear and attention apart.
  BOOST_TEST(figure(layer, "F linear") == 24.0 * 2 * s * h * h);
  BOOST_TEST(figure(layer, "F attention") == 4.0 * 2 * s * s * h);
  BOOST_TEST(figure(layer, "I linear") == figure(layer, "F linear"));
  BOOST_TEST(figure(layer, "W linear") == figure(layer, "F linear"));
  BOOST_TEST(figure(layer, "I attention") == 2 * figure(layer, "F attention"));
  EstimateRequest flash = gpt(32, h, 2);
  flash.flash_attention = true;
  const EstimatedPart causal = layer_of(estimate(flash));
  BOOST_TEST(figure(causal, "F attention") == 4.0 * 2 * s * (s + 1) / 2 * h);
  BOOST_TEST(figure(causal, "I attention") == 2.5 * figure(causal, "F attention"));
  // Of a whole model it is 6 for each parameter and token, and attention.
  EstimateRequest llama{.model = model_of("llama-3-8b"), .sequence = 8192};
  const double attention = 3.5 * 2 * 2 * 4096 * 8193.0 / 2 * 8192 * 32;
  const double weights = 8'030'261'248.0 - 128'256.0 * 4096 - 65 * 4096;  // no product: embedding, norms
  BOOST_TEST(estimate(llama).flops == 6 * 8192 * weights + attention, boost::test_tools::tolerance(1e-12));
}

BOOST_AUTO_TEST_CASE(times_are_near_those_measured) {
  // Layers of a stage, and sequences of a micro-batch (arXiv:2401.10241, tables 3 and 4).
  struct Model {
    std::int64_t layers, micro_batch;
  };
  const std::map<std::string, Model> models{{"1.5B", {3, 6}}, {"6.2B", {4, 3}}, {"14.6B", {3, 1}}, {"28.3B", {2, 1}}};
  double worst = 0;
  for (const auto& row : read_table("published_zero_bubble.csv")) {
    if (row[0] == "model") continue;
    const Model& model = models.at(row[0]);
    const StageCosts layer = layer_of(estimate(gpt(std::stoll(row[8]), std::stoll(row[9]), model.micro_batch))).costs;
    const Time passes[] = {layer.forward, layer.input_gradient, layer.weight_gradient};
    for (std::size_t i = 0; i < 3; ++i) {
      const double measured = std::stod(row[3 + i]) * 1e6;
      const double ratio = static_cast<double>(model.layers * passes[i]) / measured;
      BOOST_TEST_CONTEXT(row[0] << ", " << row[2] << " micro-batches, pass " << i << ": " << ratio) {
        BOOST_TEST(std::abs(ratio - 1) < 0.12);
      }
      worst = std::max(worst, std::abs(ratio - 1));
    }
  }
  BOOST_TEST_MESSAGE("worst: " << worst);
}

BOOST_AUTO_TEST_CASE(what_ranks_share_is_divided) {
  EstimateRequest request{.model = model_of("mixtral-8x7b"), .sequence = 4096, .micro_batch = 2};
  const Estimate alone = estimate(request);
  request.tensor = 4;
  const Estimate four = estimate(request);
  for (std::size_t i = 0; i < alone.parts.size(); ++i) {
    BOOST_TEST(four.parts[i].costs.activation == alone.parts[i].costs.activation / 4);
    if (i > 0) BOOST_TEST(figure(four.parts[i], "F linear") * 4 == figure(alone.parts[i], "F linear"));
  }
  BOOST_TEST(four.flops == alone.flops, boost::test_tools::tolerance(1e-12));
  BOOST_TEST(figure(four.parts[1], "F sent in the node") == 4 * 3.0 / 4 * 2 * 4096 * 2 * 4096);
  // Of the optimizer's state each copy has its share (ZeRO-1).
  request.data = 8;
  BOOST_TEST(std::abs(estimate(request).parts[1].costs.optimizer * 8 - four.parts[1].costs.optimizer) <= 8);
  // Experts are spread over the copies, and their state over fewer.
  request.expert = 8;
  const Estimate spread = estimate(request);
  const double expert = 3.0 * 8 * 4096 * 14336 / 4;
  BOOST_TEST(figure(four.parts[1], "parameters") - figure(spread.parts[1], "parameters") == expert * 7 / 8);
  BOOST_TEST(figure(spread.parts[1], "F sent in the node") == figure(four.parts[1], "F sent in the node"));
  BOOST_TEST(figure(spread.parts[1], "F sent over the network") == 2 * 2 * 7.0 / 8 * 2 * 4096 * 4096 * 2 / 4);
  request.expert = 1;
  request.context = 2;
  request.tensor = 1;
  BOOST_TEST(estimate(request).parts[1].costs.message == alone.parts[1].costs.message / 2);
}

// The eight GPUs of a node have a switch between them, or each a link to each other: then two share one link.
BOOST_AUTO_TEST_CASE(links_of_a_node) {
  for (const auto& [gpu, pair, all] :
       {std::tuple("h100", 450e9, 450e9), {"a100", 300e9, 300e9}, {"mi300x", 64e9, 448e9}}) {
    const double peak = accelerator(gpu).flops_16bit;
    for (const auto& [tensor, rate] : {std::pair(2, pair), {8, all}}) {
      EstimateRequest request{.model = model_of("llama-3-70b"), .sequence = 8192, .tensor = tensor, .gpu = gpu};
      const EstimatedPart layer = layer_of(estimate(request));
      const double seconds = figure(layer, "F linear") / (0.77 * peak) + figure(layer, "F attention") / (0.77 * peak) +
                             figure(layer, "F memory") / (0.63 * accelerator(gpu).memory_bandwidth) +
                             figure(layer, "F sent in the node") / rate;
      BOOST_TEST(static_cast<double>(layer.costs.forward) == seconds * 1e9, boost::test_tools::tolerance(1e-6));
    }
  }
}

BOOST_AUTO_TEST_CASE(mfu_is_flops_over_the_peak) {
  EstimateRequest request{.model = model_of("llama-3-8b"), .sequence = 4096, .mfu = 0.5};
  const StageCosts layer = layer_of(estimate(request)).costs;
  const double flops =
      figure(layer_of(estimate(request)), "F linear") + figure(layer_of(estimate(request)), "F attention");
  BOOST_TEST(static_cast<double>(layer.forward) == flops / (989.4e12 * 0.5) * 1e9, boost::test_tools::tolerance(1e-6));
}

BOOST_AUTO_TEST_CASE(recomputation_is_another_forward) {
  EstimateRequest request{.model = model_of("llama-3-8b"), .sequence = 4096, .recompute = true};
  const StageCosts layer = layer_of(estimate(request)).costs;
  BOOST_TEST(layer.recompute == layer.forward);
  BOOST_TEST(layer.recompute_activation.value() == 2 * 4096 * 4096);
  BOOST_TEST(knows_both_recomputes(estimate(request).costs.parts));
}

BOOST_AUTO_TEST_CASE(a_file_says_what_it_was_estimated_from) {
  EstimateRequest request{.model = model_of("deepseek-v3"),
                          .sequence = 4096,
                          .micro_batch = 2,
                          .tensor = 4,
                          .data = 8,
                          .expert = 8,
                          .gpu = "h200",
                          .precision = MatmulPrecision::fp8,
                          .recompute = true,
                          .mfu = 0.4};
  const Estimate found = estimate(request);
  const Scratch scratch;
  {
    std::ofstream out(scratch / "costs.json");
    write_estimate(out, found);
  }
  BOOST_TEST((std::get<ModelCosts>(load_costs(scratch / "costs.json")) == found.costs));
  BOOST_TEST((load_estimate_request(scratch / "costs.json") == request));
  BOOST_TEST((estimate_of_json(to_json_line(request), "line") == request));
  {
    std::ofstream out(scratch / "plain.json");
    write_costs(out, found.costs);
  }
  BOOST_TEST(!load_estimate_request(scratch / "plain.json").has_value());
}

BOOST_AUTO_TEST_CASE(what_was_measured_takes_its_place) {
  EstimateRequest request{.model = model_of("gpt2"), .sequence = 64};
  const ModelCosts estimated = estimate(request).costs;
  EstimateRequest with_one = request;
  set_measured(with_one, uniform(5, 4, 3));
  const ModelCosts one = estimate(with_one).costs;
  BOOST_TEST((one.parts.front() == estimated.parts.front()));
  BOOST_TEST((one.parts.back() == estimated.parts.back()));
  // Of what has no bytes the times alone were measured.
  for (std::size_t i = 1; i <= 12; ++i) {
    StageCosts expected = estimated.parts[i];
    expected.forward = 5;
    expected.backward = 7;
    expected.input_gradient = 4;
    expected.weight_gradient = 3;
    BOOST_TEST((one.parts[i] == expected));
  }
  with_one.recompute = true;
  BOOST_TEST(estimate(with_one).costs.parts[1].recompute == 5);
  BOOST_TEST(knows_both_recomputes(estimate(with_one).costs.parts));
  with_one.recompute = false;
  BOOST_TEST(measured_count(with_one) == 12U);
  ModelCosts measured = estimated;
  for (StageCosts& each : measured.parts) each.forward = each.backward = each.input_gradient = each.weight_gradient = 0;
  measured.parts[3].forward = 7;
  EstimateRequest with_some = request;
  set_measured(with_some, measured);
  const ModelCosts some = estimate(with_some).costs;
  BOOST_TEST((some.parts[3] == measured.parts[3]));
  BOOST_TEST((some.parts[4] == estimated.parts[4]));
  BOOST_TEST(measured_count(with_some) == 1U);
  BOOST_TEST((estimate_of_json(to_json_line(with_some), "line") == with_some));
  const Scratch scratch;
  {
    std::ofstream out(scratch / "costs.json");
    write_estimate(out, estimate(with_some));
  }
  BOOST_TEST((load_estimate_request(scratch / "costs.json") == with_some));
  BOOST_TEST((std::get<ModelCosts>(load_costs(scratch / "costs.json")) == some));
  measured.parts.resize(3);
  BOOST_TEST(refusal([&] { set_measured(request, measured); }).find("12 layers and a head") != std::string::npos);
}

// Costs that were measured on two ranks of tensor parallelism, for eight: what the estimate says that they change by.
BOOST_AUTO_TEST_CASE(what_was_measured_is_taken_to_other_sizes) {
  const auto request_of = [](int tensor, int data, std::int64_t micro_batch) {
    return EstimateRequest{
        .model = model_of("llama-3-70b"), .sequence = 8192, .micro_batch = micro_batch, .tensor = tensor, .data = data};
  };
  EstimateRequest measured_at = request_of(2, 4, 1);
  const ModelCosts there = estimate(measured_at).costs;
  StageCosts layer = there.parts[1];
  layer.forward = layer.forward * 5 / 4;
  layer.input_gradient = layer.input_gradient * 3 / 2;
  layer.backward = layer.input_gradient + layer.weight_gradient;
  layer.activation *= 2;
  layer.forward_workspace = 1'000'000;
  layer.overlapped = layer.forward + layer.backward;
  set_measured(measured_at, Costs{{}, {layer}});
  for (const auto& [tensor, data, micro_batch] : {std::tuple(2, 4, 1), {8, 4, 1}, {2, 32, 1}, {1, 1, 2}}) {
    EstimateRequest request = request_of(tensor, data, micro_batch);
    const StageCosts estimated = estimate(request).costs.parts[1];
    request.measured = measured_at.measured;
    const StageCosts found = estimate(request).costs.parts[1];
    const auto near = [](std::int64_t value, double expected) {
      BOOST_TEST(static_cast<double>(value) == expected, boost::test_tools::tolerance(1e-6));
    };
    BOOST_TEST_CONTEXT("t = " << tensor << ", d = " << data << ", b = " << micro_batch) {
      if (tensor == 2 && data == 4) BOOST_TEST((found == layer));
      near(found.forward, 1.25 * static_cast<double>(estimated.forward));
      near(found.input_gradient, 1.5 * static_cast<double>(estimated.input_gradient));
      near(found.weight_gradient, static_cast<double>(estimated.weight_gradient));
      near(found.backward, static_cast<double>(found.input_gradient + found.weight_gradient));
      near(found.activation, 2 * static_cast<double>(estimated.activation));
      near(found.optimizer, static_cast<double>(estimated.optimizer));
      near(found.forward_workspace,
           1e6 * static_cast<double>(estimated.activation) / static_cast<double>(there.parts[1].activation));
      BOOST_TEST(
          (estimate(request).costs.parts.back() == estimate(request_of(tensor, data, micro_batch)).costs.parts.back()));
    }
  }
}

BOOST_AUTO_TEST_CASE(what_cannot_be_is_refused) {
  const auto says = [](auto change) {
    EstimateRequest request{.model = model_of("mixtral-8x7b"), .sequence = 4096};
    change(request);
    return refusal([&] { (void)estimate(request); });
  };
  BOOST_TEST(says([](EstimateRequest& request) { request.tensor = 3; }).find("32 heads cannot be split") == 0U);
  BOOST_TEST(says([](EstimateRequest& request) { request.sequence = 0; }).find("the sequence is 0") == 0U);
  BOOST_TEST(says([](EstimateRequest& request) { request.gpu = "h10"; }).find("did you mean h100") !=
             std::string::npos);
  BOOST_TEST(says([](EstimateRequest& request) { request.expert = 3; }).find("8 experts cannot be split") == 0U);
  BOOST_TEST(says([](EstimateRequest& request) { request.mfu = 1.5; }).find("the MFU is 1.5") == 0U);
  BOOST_TEST(says([](EstimateRequest& request) { request.model.key_value_heads = 5; }).find("evenly") !=
             std::string::npos);
  BOOST_TEST(says([](EstimateRequest& request) {
               request.gpu = "a100";
               request.precision = MatmulPrecision::fp8;
             }) == "a100 has no fp8; take bf16");
  const auto reads = [](const std::string& text) {
    std::istringstream in(text);
    return refusal([&] { (void)read_model_config(in, "config.json"); });
  };
  BOOST_TEST(reads("{}") == "config.json: \"model_type\" is missing");
  BOOST_TEST(reads(R"({"model_type": "t5"})").find("config.json: model_type: 't5' is not known") == 0U);
  BOOST_TEST(reads(R"({"model_type": "llama", "hidden_size": "big"})").find("config.json: ") == 0U);
  BOOST_TEST(reads(R"({"": 1, "model_type": "gpt2"})").find("n_layer") != std::string::npos);
  BOOST_TEST(reads("{") != "");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
