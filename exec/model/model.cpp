#include "dualpipe/exec/model/model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>

#include "dualpipe/exec/model/models.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {

using detail::model::check;
using detail::model::is_first;
using detail::model::is_last;
using detail::model::make_empty;
using detail::model::make_gpt;
using detail::model::make_mlp;
using detail::model::make_moe;
using detail::model::make_timed;
using detail::model::MakeData;
using detail::model::MakeStage;
using detail::model::mlp_data;
using detail::model::no_data;
using detail::model::token_data;

namespace {

using Feature = ModelFeature;

struct Model {
  std::string_view name;
  MakeStage* stage;
  MakeData* data;
  std::span<const Feature> features;

  [[nodiscard]] bool has(Feature feature) const {
    return feature == Feature::any || std::ranges::count(features, feature) > 0;
  }
};

// `tokens`: a transformer with attention, norms and a token embedding; `experts`: its stages are PartedStages.
constexpr std::array of_gpt = {Feature::parameters, Feature::recomputation, Feature::tokens};
constexpr std::array of_moe = {Feature::parameters, Feature::recomputation, Feature::tokens, Feature::experts};
constexpr std::array of_mlp = {Feature::parameters, Feature::recomputation};
constexpr std::array of_timed = {Feature::recomputation, Feature::durations};

constexpr std::array models = {
    Model{"gpt", make_gpt, token_data, of_gpt}, Model{"moe", make_moe, token_data, of_moe},
    Model{"mlp", make_mlp, mlp_data, of_mlp},   Model{"timed", make_timed, no_data, of_timed},
    Model{"empty", make_empty, no_data, {}},
};

const Model& find_model(std::string_view name) {
  const auto* const found = std::ranges::find(models, name, &Model::name);
  if (found != models.end()) return *found;
  throw InputError(
      fmt::format("there is no model {}; there are {}", detail::schedule::quote(name), fmt::join(model_names(), ", ")));
}

// What only a transformer has, or a stage of parts.
void check_features(const Model& model, const ModelShape& shape) {
  const auto refuse = [&](std::string_view what, std::string_view remedy, std::string_view other = "gpt") {
    throw InputError(fmt::format("{} has no {}; {}, or use --model {}", model.name, what, remedy, other));
  };
  if (!model.has(Feature::experts) && !shape.interleave)
    refuse("parts to interleave", "leave out --no-interleave", "moe");
  if (model.has(Feature::tokens)) return;
  if (shape.recompute == Recompute::attention) refuse("attention to recompute", "leave out --recompute attention");
  if (shape.norm != NormKind::layer) refuse("norm", "leave out --norm");
  if (shape.tied) refuse("token embedding to tie the head to", "leave out --tied");
}

void check_size(std::string_view what, std::int64_t size) {
  constexpr std::int64_t size_max = std::int64_t{1} << 30U;  // so that the products of two fit
  if (size < 1 || size > size_max) {
    throw InputError(fmt::format("the {} is {}; it must be from 1 to {}", what, size, size_max));
  }
}

}  // namespace

std::vector<std::string_view> model_names(ModelFeature feature) {
  std::vector<std::string_view> names;
  for (const Model& model : models) {
    if (model.has(feature)) names.push_back(model.name);
  }
  return names;
}

bool has(std::string_view model, ModelFeature feature) { return find_model(model).has(feature); }

std::string_view to_text(Precision precision) {
  switch (precision) {
    case Precision::float64:
      return "float64";
    case Precision::bfloat16:
      return "bfloat16";
    default:
      return "float32";
  }
}

void detail::model::check(const ModelShape& shape) {
  check_size("hidden size", shape.hidden);
  check_size("number of heads", shape.heads);
  check_size("sequence length", shape.sequence);
  check_size("vocabulary", shape.vocabulary);
  check_size("number of samples per micro-batch", shape.batch);
  check_size("number of experts", shape.experts);
  check_size("number of experts of a token", shape.top_k);
  check_size("hidden size of an expert", shape.expert_hidden);
  if (shape.layers.empty()) throw InputError("the model has no stage; give the number of layers of each");
  for (std::size_t stage = 0; stage < shape.layers.size(); ++stage) {
    const int layers = shape.layers[stage];
    if (layers < 0) throw InputError(fmt::format("stage {} has {} layers; it must be 0 or more", stage, layers));
  }
}

std::int64_t detail::model::layers_before(const ModelShape& shape, int stage) {
  return std::accumulate(shape.layers.begin(), shape.layers.begin() + stage, std::int64_t{0});
}

std::unique_ptr<Stage> make_stage(const ModelShape& shape, int stage, const Feed& feed, Device& device) {
  const Model& model = find_model(shape.model);
  check(shape);
  check_features(model, shape);
  if (stage < 0 || static_cast<std::size_t>(stage) >= shape.layers.size()) {
    throw InputError(fmt::format("the chain has {} stages, from 0 on, and no stage {}", shape.layers.size(), stage));
  }
  return model.stage(shape, stage, feed, device);
}

std::vector<int> tied_stages(const ModelShape& shape) {
  std::vector<int> stages;
  const auto count = static_cast<int>(shape.layers.size());
  for (int stage = 0; shape.tied && stage < count; ++stage) {
    if (is_first(stage) || is_last(shape, stage)) stages.push_back(stage);
  }
  return stages;
}

std::unique_ptr<Data> synthetic_data(const ModelShape& shape, std::uint64_t seed) {
  const Model& model = find_model(shape.model);
  check(shape);
  return model.data(shape, seed);
}

std::vector<int> split_evenly(int layers, int stages) {
  if (layers < 0 || stages < 1) {
    throw InputError(fmt::format("{} layers cannot be split over {} stages: there must be 0 or more, and 1 or more",
                                 layers, stages));
  }
  std::vector<int> result(static_cast<std::size_t>(stages), layers / stages);
  for (int stage = 0; stage < layers % stages; ++stage) ++result[static_cast<std::size_t>(stage)];
  return result;
}

}  // namespace dualpipe
