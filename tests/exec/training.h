// What the tests of trainings share.
#pragma once

#include <functional>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/exec/train/reference.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {
inline std::ostream& operator<<(std::ostream& out, Precision precision) { return out << to_text(precision); }
}  // namespace dualpipe

namespace dualpipe::test {

// Of the catalog.
[[nodiscard]] std::vector<std::string> family_names();

// `micro_batches` 0: the smallest number that every schedule of the catalog has, twice the ranks.
[[nodiscard]] Program program_of(std::string_view name, int ranks, std::int64_t micro_batches = 0);

// A tiny model in float64: so many layers, 0: one more than there are stages in a chain.
[[nodiscard]] TrainOptions tiny(const Program& program, const std::string& model, int layers = 0);
// Two steps of it.
[[nodiscard]] TrainOptions two_steps(const Program& program, const std::string& model);

// Trains, and compares each step with the same training without a pipeline. `spoil`: what happens to the gradients
// before they are checked. In this process alone, unless a world is given.
[[nodiscard]] CheckReport checked(World& world, const Program& program, const TrainOptions& options,
                                  const std::function<void(std::span<Stage* const>)>& spoil = {});
[[nodiscard]] CheckReport checked(const Program& program, const TrainOptions& options,
                                  const std::function<void(std::span<Stage* const>)>& spoil = {});

// Calibrated in its warm-up, a training tells the peak memory of each rank within 2 %, its own and that of others over
// the same stages.
void check_memory_is_predicted(const Program& program, TrainOptions options, std::span<const Program> others);

}  // namespace dualpipe::test
