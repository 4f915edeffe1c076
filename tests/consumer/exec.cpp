// Trains a model on a pipeline of two ranks, through the public headers alone.
#include <dualpipe/exec/train/reference.h>
#include <dualpipe/exec/train/train.h>
#include <dualpipe/sim/generate/catalog.h>
#include <dualpipe/sim/schedule/lower.h>

#include <cstdlib>
#include <iostream>

int main() {
  const dualpipe::Program program = dualpipe::lower(dualpipe::generate("1f1b", {.ranks = 2, .micro_batches = 4}));

  dualpipe::TrainOptions options;
  options.shape.model = "mlp";
  options.shape.hidden = 8;
  options.shape.layers = {1, 1};
  options.steps = 2;
  const dualpipe::TrainResult result = dualpipe::train(program, options);

  // As without a pipeline.
  dualpipe::Reference reference(program.schedule, options);
  const double expected = reference.compute_gradients(0);
  std::cout << "loss " << result.losses[0] << ", expected " << expected << '\n';
  return result.losses.size() == 2 && result.losses[0] == expected ? EXIT_SUCCESS : EXIT_FAILURE;
}
