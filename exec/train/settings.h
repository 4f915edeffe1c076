// The settings of a training, each described once: how the command line offers it, what it may be, which models heed
// it, and what two processes, or a training and the checkpoint that it goes on from, must have in common.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/train/train.h"

namespace dualpipe {

struct Setting {
  enum class Group : std::uint8_t { model, training, machine };
  enum class Saved : std::uint8_t {
    no,
    model,     // a checkpoint is of a model with this value
    training,  // … and goes on being trained only with this value
  };

  std::string_view name{};  // of its option, without the dashes: "hidden"
  std::string_view type{};  // of what is given: N, X, FILE; empty for a flag, and for one of some choices
  std::string_view help{};
  // Where it is. A bool is a flag; a text is the path of a file.
  std::variant<std::int64_t ModelShape::*, std::uint64_t ModelShape::*, double ModelShape::*, bool ModelShape::*,
               NormKind ModelShape::*, Recompute ModelShape::*, Precision ModelShape::*, int TrainOptions::*,
               double TrainOptions::*, bool TrainOptions::*, std::string TrainOptions::*, OptimizerKind TrainOptions::*>
      member{};
  ModelFeature heeded_with = ModelFeature::any;  // models without it do nothing with the setting
  Group group = Group::model;
  Saved saved = Saved::no;
  std::int64_t least = 1;  // of a whole number
  std::int64_t most = std::int64_t{1} << 30U;
  double real_most = std::numeric_limits<double>::max();  // of a real one, which is above 0
  bool is_negated = false;                                // the flag turns its member off

  // What it may be, where it is one of some choices; else empty.
  [[nodiscard]] std::span<const std::string_view> choices() const;
  [[nodiscard]] bool is_flag() const;

  // As it is written: a number, a choice, "on" or "off".
  [[nodiscard]] std::string text(const TrainOptions& options) const;
  // Throws InputError, which names the option, where the text is no such value.
  void set(TrainOptions& options, const std::string& text) const;
};

// In the order in which the command line offers them.
[[nodiscard]] std::span<const Setting> train_settings();

}  // namespace dualpipe
