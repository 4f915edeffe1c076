// What the parts of a model cost on a GPU, before anything has run: an embedding, the layers, a head.
//
// FLOPs, bytes and parameters are counted, exactly; a time is a roofline of them:
//
//   F = (linear + attention FLOPs) / (peak x matmul_efficiency)
//       + bytes of all that is not a matrix product / (memory bandwidth x memory_efficiency)
//       + bytes sent to the other ranks of the part / link bandwidth
//
// and I and W in the same way; B = I + W. Or, with `mfu`, FLOPs / (peak x mfu) and nothing else. The two efficiencies
// were found on the zero-bubble paper's measurements (arXiv:2401.10241, table 9; A100, four models): docs/estimate.md.
//
// Of a token, h hidden, q and v sizes of all heads' queries and values, k and w of all keys and values, f the MLP's:
//
//   linear FLOPs      F, I and W each: 2 x the weights that it goes through
//   attention FLOPs   F: 2 (q + v) for each key that a query sees, causal: (s + 1) / 2 of them in flash attention
//                     (arXiv:2307.08691), s without. I: twice that; 2.5 times in flash attention, which makes the
//                     scores again
//   M_B, M_W          as Korthikanti et al. (arXiv:2205.05198, section 4.1) and the zero-bubble paper (section 4) count
//                     them: 34h + 5as, and 32h, of GPT. Flash attention keeps a sum of each row, not the scores
//   messages          2h
//
// Tensor parallelism goes with sequence parallelism (arXiv:2205.05198, section 4.2.2): a rank has 1/t of all of this,
// and gathers and scatters 2h for each token four times in F, and in I.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/model_costs.h"
#include "dualpipe/sim/estimate/accelerator.h"
#include "dualpipe/sim/estimate/transformer_shape.h"

namespace dualpipe {

enum class MatmulPrecision : std::uint8_t { bf16, fp16, fp8 };  // of matrix products; all else has 16 bits

// What was measured of a model's parts, on so many ranks: with as many parts as the model has, of which those with no
// time at all were not measured; or one, which stands for every layer. Of one that counts no bytes the times alone
// were.
struct MeasuredParts {
  std::vector<StageCosts> parts;
  std::int64_t micro_batch = 1;
  int tensor = 1;
  int context = 1;
  int data = 1;
  int expert = 1;

  friend bool operator==(const MeasuredParts&, const MeasuredParts&) = default;
};

struct EstimateRequest {
  TransformerShape model = {};
  std::int64_t sequence = 0;     // s
  std::int64_t micro_batch = 1;  // b, sequences
  // Ranks that share a stage.
  int tensor = 1;
  int context = 1;
  // Copies of the whole: optimizer state is split between them (ZeRO-1, arXiv:1910.02054).
  int data = 1;
  int expert = 1;  // experts are spread over so many of data x context
  std::string gpu = "h100";
  MatmulPrecision precision = MatmulPrecision::bf16;
  bool flash_attention = true;
  bool recompute = false;  // the costs know both: with and without
  std::optional<double> mfu = {};
  double matmul_efficiency = 0.77;
  double memory_efficiency = 0.63;
  // It takes the place of what is estimated; with other sizes than it was measured with, times what the estimate
  // changes from those to these, figure by figure.
  std::optional<MeasuredParts> measured = {};

  friend bool operator==(const EstimateRequest&, const EstimateRequest&) = default;
};

// A number with its formula.
struct EstimatedFigure {
  enum class Unit : std::uint8_t { parameters, flops, bytes, time };
  std::string name;
  double value = 0;
  Unit unit = Unit::flops;
  std::string formula;
};

struct EstimatedPart {
  std::string name;                      // "layer"
  int count = 1;                         // so many alike, one after the other
  StageCosts costs;                      // as estimated, whatever was measured
  std::vector<EstimatedFigure> figures;  // of one rank
};

struct Estimate {
  EstimateRequest request;
  ModelCosts costs;  // of a rank: `links`, at the network's bandwidth
  std::vector<EstimatedPart> parts;
  std::int64_t parameters = 0;         // of the model
  std::int64_t active_parameters = 0;  // that a token goes through
  double tokens = 0;                   // of a micro-batch
  double flops = 0;                    // of a micro-batch, forward and backward, over all ranks that share a stage
};

// Throws InputError: a model or a size that is out of range, sizes that do not divide what they split, an unknown GPU;
// measured parts that are not those of the model.
[[nodiscard]] Estimate estimate(const EstimateRequest& request);

// That these costs were measured with the sizes of the request. Throws InputError where they are not of its parts.
void set_measured(EstimateRequest& request, const GivenCosts& measured);
// How many of the parts were.
[[nodiscard]] std::size_t measured_count(const EstimateRequest& request);

}  // namespace dualpipe
