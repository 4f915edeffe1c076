#include "dualpipe/exec/train/saving.h"

#include <fmt/format.h>

#include <cstddef>
#include <functional>
#include <string>
#include <utility>

#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/train/exchange.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::train {

Saving::Saving(World& world, const Schedule& schedule, const TrainOptions& options, Data& data)
    : world_(world), options_(options), taken_(static_cast<std::size_t>(schedule.ranks())) {
  if (!options.save.empty() && world.process() == 0) saver_.emplace(schedule, options, data);
}

void Saving::take(int rank, const StageSet& stages, const Optimizer& optimizer, int steps_done) {
  try {
    taken_[static_cast<std::size_t>(rank)] = contents_of(stages, optimizer);
  } catch (const InputError& error) {
    throw ReplayError(fmt::format(
        "rank {}: {} after step {}, so that {} was not saved again; a lower --learning-rate or a --clip may "
        "help",
        rank, error.what(), steps_done - 1, options_.save));
  }
}

void Saving::write(int steps_done) {
  SafeTensors contents;
  for (SafeTensors& each : taken_) contents.tensors.merge(std::exchange(each, {}).tensors);
  const std::vector<std::string> bytes = add_others(world_, contents);  // which the contents now look into
  std::function<void()> save;
  if (saver_) save = [&] { saver_->save(std::move(contents), steps_done); };
  if (world_.processes() == 1) return save();
  work_while_others_wait(world_, fmt::format("the save after step {}", steps_done), options_.transport.timeout, save);
}

}  // namespace dualpipe::detail::train
