#include "tests/exec/legs.h"

#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <fstream>
#include <span>
#include <sstream>

#include "tests/exec/training.h"

namespace dualpipe::test {

using detail::train::read_safetensors;
using detail::train::write_safetensors;

void put(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

SafeTensors read(const std::string& bytes) { return read_safetensors(std::as_bytes(std::span(bytes)), "it"); }

std::string text_of(const SafeTensors& contents) {
  std::ostringstream out;
  write_safetensors(out, contents);
  return out.str();
}

Program program_for(std::string_view name, int ranks) { return program_of(name, ranks, micro_batches); }

TrainOptions options_for(const Program& program, const std::string& model) {
  TrainOptions options = tiny(program, model, 6);
  options.learning_rate = TrainOptions{}.learning_rate;
  options.optimizer = OptimizerKind::adamw;
  options.clip = 0.05;
  return options;
}

std::vector<double> train_in_legs(const std::vector<Leg>& legs, const std::string& path, const TrainOptions& common) {
  std::vector<double> losses;
  for (const Leg& leg : legs) {
    const Program program = program_for(leg.schedule, leg.ranks);
    TrainOptions options = common;
    options.shape.layers = options_for(program).shape.layers;
    options.steps = leg.steps;
    options.save = path;
    options.resume = losses.empty() ? "" : path;
    const TrainResult result = train(program, options);
    BOOST_TEST(result.first_step == static_cast<int>(losses.size()));
    losses.insert(losses.end(), result.losses.begin(), result.losses.end());
  }
  return losses;
}

}  // namespace dualpipe::test
