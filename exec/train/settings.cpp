#include "dualpipe/exec/train/settings.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <type_traits>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {
namespace {

using Group = Setting::Group;
using Saved = Setting::Saved;
using Feature = ModelFeature;

constexpr std::array<std::string_view, 2> norm_names = {"layer", "rms"};                     // as NormKind
constexpr std::array<std::string_view, 3> recompute_names = {"none", "full", "attention"};   // as Recompute
constexpr std::array<std::string_view, 3> dtype_names = {"float32", "float64", "bfloat16"};  // as Precision
constexpr std::array<std::string_view, 2> optimizer_names = {"sgd", "adamw"};                // as OptimizerKind

constexpr std::int64_t steps_max = 1'000'000'000;

constexpr auto trained = Feature::parameters;
constexpr auto tokens = Feature::tokens;
constexpr auto experts = Feature::experts;
constexpr auto model = Group::model;
constexpr auto training = Group::training;

const std::array settings = {
    Setting{"hidden", "N", "Width (64)", &ModelShape::hidden, trained, model, Saved::model},
    Setting{"heads", "N", "Of the attention (4)", &ModelShape::heads, tokens, model, Saved::model},
    Setting{"sequence", "N", "Tokens of a sample (32)", &ModelShape::sequence, tokens, model, Saved::model},
    Setting{"vocabulary", "N", "Different tokens (256)", &ModelShape::vocabulary, tokens, model, Saved::model},
    Setting{"batch", "N", "Samples per micro-batch (2)", &ModelShape::batch, trained, model, Saved::training},
    Setting{"experts", "N", "Of each layer, beside the shared one (8)", &ModelShape::experts, experts, model,
            Saved::model},
    Setting{"top-k", "N", "Experts that a token goes to (2)", &ModelShape::top_k, experts, model, Saved::model},
    Setting{"expert-hidden", "N", "Width inside an expert (twice --hidden)", &ModelShape::expert_hidden, experts, model,
            Saved::model},
    Setting{"capacity", "X", "Most tokens of an expert, in shares of the tokens if all experts had as many (1.25)",
            &ModelShape::capacity, experts, model, Saved::model},
    Setting{.name = "no-interleave",
            .help = "The two of an F&B pair one after the other, not part by part",
            .member = &ModelShape::interleave,
            .heeded_with = experts,
            .is_negated = true},
    Setting{"norm", "", "LayerNorm (layer) or RMSNorm (rms)", &ModelShape::norm, tokens, model, Saved::model},
    Setting{"tied", "", "The head's weight is the token embedding's", &ModelShape::tied, tokens},
    Setting{"recompute", "",
            "What is not kept for the backward but computed again: none; full: all of a stage but its input; "
            "attention: selective, gpt and moe",
            &ModelShape::recompute, Feature::recomputation},
    Setting{"dtype", "", "float32, float64, or bfloat16: mixed precision, with parameters in float32",
            &ModelShape::precision, trained},

    Setting{"steps", "N", "Measured (10)", &TrainOptions::steps, Feature::any, training, Saved::no, 1, steps_max},
    Setting{"warmup", "N", "Steps before them; costs are measured in these (3)", &TrainOptions::warmup, Feature::any,
            training, Saved::no, 0, steps_max},
    Setting{"optimizer", "", "sgd or adamw", &TrainOptions::optimizer, trained, training, Saved::training},
    Setting{"learning-rate", "X", "(0.001 for adamw, 0.1 for sgd)", &TrainOptions::learning_rate, trained, training,
            Saved::no, 0, 0, learning_rate_max},
    Setting{"clip", "X", "Largest global norm of the gradients (any)", &TrainOptions::clip, trained, training},
    Setting{"seed", "N", "Of parameters and synthetic samples (0)", &ModelShape::seed, trained, training, Saved::no, 0,
            std::numeric_limits<std::int64_t>::max()},
    Setting{"data", "FILE", "int32 tokens (synthetic samples)", &TrainOptions::data, tokens, training},
    Setting{"save", "FILE", "Parameters and optimizer after the last step, as safetensors; replaced as a whole",
            &TrainOptions::save, trained, training},
    Setting{"save-every", "N", "Also after every N steps", &TrainOptions::save_every, trained, training, Saved::no, 1,
            steps_max},
    Setting{"resume", "FILE",
            "Goes on from what was saved; ranks, schedule, split, learning rate and clip may be others. Warm-up steps "
            "train, too, and count",
            &TrainOptions::resume, trained, training},
    Setting{"eval", "", "Forwards only", &TrainOptions::forward_only, Feature::any, training},

    Setting{"threads-per-rank", "N", "For one op (1)", &TrainOptions::threads_per_rank, trained, Group::machine,
            Saved::no, 1, 1024},
};

template <typename T>
constexpr std::span<const std::string_view> names_of() {
  if constexpr (std::is_same_v<T, NormKind>) return norm_names;
  if constexpr (std::is_same_v<T, Recompute>) return recompute_names;
  if constexpr (std::is_same_v<T, Precision>) return dtype_names;
  if constexpr (std::is_same_v<T, OptimizerKind>) return optimizer_names;
  return {};
}

// What the member of a setting refers to.
template <typename T>
T& at(TrainOptions& options, T ModelShape::*member) {
  return options.shape.*member;
}
template <typename T>
T& at(TrainOptions& options, T TrainOptions::*member) {
  return options.*member;
}
template <typename T>
const T& at(const TrainOptions& options, T ModelShape::*member) {
  return options.shape.*member;
}
template <typename T>
const T& at(const TrainOptions& options, T TrainOptions::*member) {
  return options.*member;
}
template <typename Member>
using ValueOf = std::remove_cvref_t<decltype(at(std::declval<TrainOptions&>(), std::declval<Member>()))>;

double positive(const std::string& text, double most) {
  const double value = parse_real(text);
  if (!(value > 0)) throw InputError(fmt::format("it must be above 0, and is {}", text));
  if (value > most) throw InputError(fmt::format("it must be at most {}, and is {}", most, text));
  return value;
}

template <typename T>
void parse(const Setting& setting, const std::string& text, T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    value = (text == "on") != setting.is_negated;
  } else if constexpr (std::is_same_v<T, double>) {
    value = positive(text, setting.real_most);
  } else if constexpr (std::is_same_v<T, std::string>) {
    value = text;
  } else if constexpr (std::is_enum_v<T>) {
    const auto names = names_of<T>();
    const auto found = std::ranges::find(names, text);
    if (found == names.end()) {
      throw InputError(
          fmt::format("it is {}, and must be one of {}", detail::schedule::quote(text), fmt::join(names, ", ")));
    }
    value = static_cast<T>(found - names.begin());
  } else {
    value = static_cast<T>(parse_integer(text, setting.least, setting.most));
  }
}

}  // namespace

std::span<const std::string_view> Setting::choices() const {
  return std::visit([](auto which) { return names_of<ValueOf<decltype(which)>>(); }, member);
}

bool Setting::is_flag() const {
  return std::visit([](auto which) { return std::is_same_v<ValueOf<decltype(which)>, bool>; }, member);
}

std::string Setting::text(const TrainOptions& options) const {
  return std::visit(
      [&](auto which) -> std::string {
        const auto& value = at(options, which);
        using Value = std::remove_cvref_t<decltype(value)>;
        if constexpr (std::is_same_v<Value, bool>) {
          return value != is_negated ? "on" : "off";
        } else if constexpr (std::is_enum_v<Value>) {
          return std::string(names_of<Value>()[static_cast<std::size_t>(value)]);
        } else {
          return fmt::format("{}", value);
        }
      },
      member);
}

void Setting::set(TrainOptions& options, const std::string& text) const {
  try {
    std::visit([&](auto which) { parse(*this, text, at(options, which)); }, member);
  } catch (const InputError& error) {
    throw InputError(fmt::format("--{}: {}", name, error.what()));
  }
}

std::span<const Setting> train_settings() { return settings; }

}  // namespace dualpipe
