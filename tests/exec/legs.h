// Trainings that are saved, and gone on with.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/exec/train/safetensors.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::test {

using detail::train::SafeTensors;

void put(const std::string& path, const std::string& bytes);
[[nodiscard]] SafeTensors read(const std::string& bytes);  // the result looks into them; their source is "it"
[[nodiscard]] std::string text_of(const SafeTensors& contents);

constexpr int micro_batches = 8;

[[nodiscard]] Program program_for(std::string_view name, int ranks);

// A model of six layers on whatever there is.
[[nodiscard]] TrainOptions options_for(const Program& program, const std::string& model = "mlp");

// Some steps of a training, by one schedule.
struct Leg {
  std::string_view schedule;
  int ranks;
  int steps;
};

// Trains leg by leg, each but the first from where the one before was saved. Returns the losses of all steps.
std::vector<double> train_in_legs(const std::vector<Leg>& legs, const std::string& path, const TrainOptions& common);

}  // namespace dualpipe::test
