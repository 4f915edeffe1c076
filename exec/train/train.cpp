#include "dualpipe/exec/train/train.h"

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <limits>
#include <optional>
#include <utility>

#include "dualpipe/exec/pipeline/pipeline.h"
#include "dualpipe/exec/replay/clock.h"
#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/train/checkpoint.h"
#include "dualpipe/exec/train/exchange.h"
#include "dualpipe/exec/train/optimizer.h"
#include "dualpipe/exec/train/probe.h"
#include "dualpipe/exec/train/rank_team.h"
#include "dualpipe/exec/train/records.h"
#include "dualpipe/exec/train/stage_set.h"
#include "dualpipe/sim/report/percentile.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/rewrite.h"

namespace dualpipe {

using detail::replay::now;
using detail::replay::WatchMemory;
using detail::train::check_same_run;
using detail::train::Checkpoint;
using detail::train::clip;
using detail::train::FailedStep;
using detail::train::gather;
using detail::train::gather_results;
using detail::train::hand_over_records;
using detail::train::interrupted;
using detail::train::is_save_due;
using detail::train::LastRecords;
using detail::train::make_data;
using detail::train::mean_loss;
using detail::train::OpenedFile;
using detail::train::Optimizer;
using detail::train::RankTeam;
using detail::train::reduce_tied;
using detail::train::Saving;
using detail::train::StageSet;
using detail::transport::Packer;
using detail::transport::Unpacker;

namespace {

class Training {
 public:
  Training(World& world, const Program& program, const TrainOptions& options, const TrainObserver& observer)
      : world_(world),
        program_(program),
        options_(options),
        observer_(observer),
        ranks_(static_cast<std::size_t>(program.schedule.ranks())),
        here_(world.ranks_here(program.schedule.ranks())),
        transports_(world.transports(program.schedule.placement, options.transport)),
        team_(here_, transports_, options.stop),
        loaded_(ranks_),
        last_taken_(ranks_),
        records_(ranks_),
        stages_(program.schedule.placement.rank_of.size()),
        losses_(program.schedule.total_micro_batches()) {
    result_.stages.resize(stages_.size());
    result_.peaks.resize(ranks_);
    detail::train::set_up_arithmetic();
    check_same_run(world, program, options);
    open_files();
    if (options.measure_passes && !options.forward_only) result_.apart = lower(split_passes(program.schedule));
    if (options.measure_links) {
      result_.probe.push_back(detail::train::probe_links(world, program.schedule.ranks(), options));
      transports_ = world.transports(program.schedule.placement, options.transport);  // those before are gone
    }
    saving_.emplace(world, program.schedule, options, *data_);
    if (checkpoint_) result_.first_step = step_ = checkpoint_->steps();
  }

  TrainResult run() {
    team_.run(options_.threads_per_rank, [this](int rank, Transport& transport) { train_rank(rank, transport); });
    if (team_.error()) fail();
    choose_step();
    gather_results(world_, program_, result_);
    for (std::size_t rank = 0; rank < ranks_; ++rank) result_.peaks[rank].memory += resident(static_cast<int>(rank));
    return std::move(result_);
  }

 private:
  // All processes read the same samples, and go on from the same training.
  void open_files() {
    const auto open = [&](const OpenedFile& file) {
      detail::train::open_same_file(world_, static_cast<int>(ranks_), options_.transport.timeout, file);
    };
    const auto open_data = [&] {
      data_ = make_data(program_.schedule, options_);
      return data_->description();
    };
    const auto open_checkpoint = [&] {
      checkpoint_.emplace(program_.schedule, options_, *data_);
      return checkpoint_->description();
    };
    if (options_.data.empty()) {
      data_ = make_data(program_.schedule, options_);
    } else {
      open({"--data", options_.data, open_data});
    }
    if (!options_.resume.empty()) open({"--resume", options_.resume, open_checkpoint});
  }

  // --- a rank

  // What a rank trains with.
  struct Own {
    int rank;
    Device& device;
    StageSet& stages;
    Optimizer& optimizer;
    Transport& transport;
    Pipeline whole;  // of the program
    Pipeline apart;  // of result_.apart
    int steps_done;  // whose update is made
  };

  void train_rank(int rank, Transport& transport) {
    const Schedule& schedule = program_.schedule;
    const std::vector<int> numbers = schedule.placement.stages_on(rank);
    const std::unique_ptr<Device> own_device = detail::train::device_of(options_, here_, rank, numbers.size());
    Device& device = own_device ? *own_device : host_device();
    std::optional<WatchMemory> watch;  // messages of a step may come before this rank begins it
    if (options_.measure_memory) watch.emplace(device);
    StageSet stages(schedule, options_, numbers, device, data_);
    for (const int number : numbers) {
      stages_[static_cast<std::size_t>(number)] = stages.by_number()[static_cast<std::size_t>(number)];
    }
    Optimizer optimizer(options_, options_.forward_only ? std::vector<at::Tensor>() : stages.all_parameters());
    if (checkpoint_) loaded_[static_cast<std::size_t>(rank)] = checkpoint_->load(stages, optimizer);
    for (const int number : numbers)
      result_.stages[static_cast<std::size_t>(number)] = stages.resident(number, options_);
    const auto pipeline = [&](const Program& program) {
      return Pipeline(program, rank, stages.by_number(), transport, record_of(rank), replaying(rank, device));
    };
    Own own = {
        rank, device, stages, optimizer, transport, pipeline(program_), pipeline(other_program()), result_.first_step};

    team_.meet([this] { begin(); });
    for (int step = result_.first_step; step < end_of_steps(); ++step) {
      try {
        stages.begin_step(step);
        run_step(own);
        team_.meet([this] { end_step(); });
      } catch (...) {
        take_last(own);
        throw;
      }
      if (!is_save_due(options_, step + 1, end_of_steps())) continue;
      saving_->take(rank, stages, optimizer, step + 1);
      team_.meet([this] {
        saving_->write(step_);
        begin_step();
      });
    }
  }

  [[nodiscard]] ReplayOptions replaying(int rank, Device& device) const {
    ReplayOptions replaying;
    replaying.device = &device;
    replaying.note_parts = options_.note_parts;
    replaying.measure_memory = options_.measure_memory;
    if (options_.before_op) replaying.before_op = [this, rank](Op op) { options_.before_op(rank, op); };
    return replaying;
  }

  void run_step(Own& own) {
    const c10::AutoGradMode with_gradients(!options_.forward_only);
    own.device.use({});
    own.optimizer.zero_gradients();
    take_losses(own.rank, (runs_apart() ? own.apart : own.whole).step());
    if (options_.forward_only) return;

    own.device.use({});
    own.stages.add_up_gradients();
    reduce_tied(own.stages, own.transport);
    if (observer_.on_gradients) {
      own.device.finish();  // the gradients are there for whoever looks at them
      team_.meet([this] {
        const Time begin = now();
        observer_.on_gradients(step_, stages_);
        observed_ += now() - begin;
      });
      own.device.use({});  // the observer may have run on this thread, and used another
    }
    if (options_.clip > 0) clip(own.stages, own.transport, options_.clip);
    if (saves_last()) team_.meet([] {});  // all ranks make the step whole, or none
    own.optimizer.step();
    own.device.finish();
    ++own.steps_done;
  }

  // Of a run that fails, what the rank has after its last whole step.
  void take_last(const Own& own) {
    if (!saves_last() || own.steps_done == result_.first_step) return;
    try {
      saving_->take(own.rank, own.stages, own.optimizer, own.steps_done);
      last_taken_[static_cast<std::size_t>(own.rank)] = {own.steps_done, {}};
    } catch (const std::exception& error) {  // what the run fails of is another thing
      last_taken_[static_cast<std::size_t>(own.rank)] = {own.steps_done, error.what()};
    }
  }

  void take_losses(int rank, const StepResult& result) {
    for (std::size_t place = 0; place < losses_.size(); ++place) {
      if (!result.losses[place].defined()) continue;
      losses_[place] = result.losses[place].item<double>();
      if (std::isfinite(losses_[place])) continue;
      const Op op{static_cast<std::uint32_t>(place % program_.schedule.micro_batches),
                  static_cast<std::uint16_t>(last_stage_of(place)), Kind::forward, false};
      throw ReplayError(
          fmt::format("rank {}, {}: the loss is {} in step {}; a lower --learning-rate or a --clip may help", rank,
                      to_text(op), losses_[place], step_));
    }
  }

  // --- all ranks, while they wait

  [[nodiscard]] int end_of_steps() const { return result_.first_step + options_.warmup + options_.steps; }
  [[nodiscard]] int step_of_run() const { return step_ - result_.first_step; }

  // The first step is like no other, so that the second is the first to count.
  [[nodiscard]] bool runs_apart() const {
    const int step = step_of_run();
    return step > 0 && step % 2 == 0 && step < options_.warmup && !result_.apart.schedule.ops.empty();
  }
  // The one that steps of the warm-up run in turn with the program; the program itself, where there is none.
  [[nodiscard]] const Program& other_program() const {
    return result_.apart.schedule.ops.empty() ? program_ : result_.apart;
  }

  void begin() {
    if (checkpoint_) {
      std::vector<std::string> all;
      for (const auto& names : std::exchange(loaded_, {})) all.insert(all.end(), names.begin(), names.end());
      checkpoint_->check_complete(detail::train::gather_names(world_, all));
      checkpoint_.reset();
    }
    tell_devices();
    begin_step();
  }

  void tell_devices() {
    const std::string own = options_.hardware == nullptr ? "cpu" : options_.hardware->description();
    const std::vector<std::string> of_processes = world_.all_gather("the first step", own);
    if (!observer_.on_begin) return;
    std::vector<std::string> devices;
    for (std::size_t rank = 0; rank < ranks_; ++rank) devices.push_back(of_processes[process_of(rank)]);
    observer_.on_begin(devices);
  }

  void begin_step() {
    for (RankRecord& record : records_) record = {};
    observed_ = 0;
    step_begin_ = now();
  }

  void end_step() {
    const Time duration = exchange_step();
    const int step = step_of_run();
    const bool measured = step >= options_.warmup;
    if (step == 1 && !measured) warm_up_.clear();
    if (!measured) drop_parts(records_);
    (measured ? measured_ : runs_apart() ? warm_up_apart_ : warm_up_).add(records_);
    result_.losses.push_back(mean_loss(losses_));
    if (measured) {
      result_.durations.push_back(duration);
      note_peaks();
    }
    if (observer_.on_step) observer_.on_step({step_, measured, result_.losses.back(), duration, records_});
    ++step_;
    if (!is_save_due(options_, step_, end_of_steps())) begin_step();
  }

  // Everybody gets all losses. Returns the time from when the first process began to when the last one was done.
  [[nodiscard]] Time exchange_step() {
    Packer packer;
    packer.put(Span{step_begin_ + world_.clock_offset(), now() - observed_ + world_.clock_offset()});
    for (const double loss : losses_) packer.put(loss);
    Span step{std::numeric_limits<Time>::max(), std::numeric_limits<Time>::min()};
    const auto read = [&](std::size_t process, Unpacker& part) {
      const auto own = part.get<Span>();
      step = {std::min(step.start, own.start), std::max(step.end, own.end)};
      for (std::size_t place = 0; place < losses_.size(); ++place) {
        const auto loss = part.get<double>();
        if (process_of(program_.schedule.placement.rank_of[last_stage_of(place)]) == process) losses_[place] = loss;
      }
    };
    gather(world_, fmt::format("the end of step {}", step_), packer.take(), read);
    return step.end - step.start;
  }

  void note_peaks() {
    for (const int rank : here_) {
      const RankRecord& record = record_of(rank);
      RankPeaks& peak = result_.peaks[static_cast<std::size_t>(rank)];
      peak.activations = std::max(peak.activations, record.peak_activations);
      peak.memory = std::max(peak.memory, record.peak_memory);
    }
  }

  // --- the end

  [[noreturn]] void fail() {
    FailedStep failed = hand_over_records(world_, program_, result_.apart,
                                          {step_, runs_apart() ? &result_.apart : &program_, std::move(records_)});
    step_ = failed.step;
    records_ = std::move(failed.records);
    if (observer_.on_failure && world_.process() == 0) observer_.on_failure(step_, *failed.program, records_);
    save_last();
    if (team_.was_interrupted()) throw TransportError(where_interrupted());
    std::rethrow_exception(team_.error());
  }

  // A process alone knows of all ranks how far they came.
  [[nodiscard]] bool saves_last() const {
    return !options_.save.empty() && !options_.forward_only && world_.processes() == 1;
  }

  void save_last() {
    const auto& [steps_done, failure] = last_taken_.front();
    const auto has_come_as_far = [&](const LastTaken& rank) { return rank.steps_done == steps_done; };
    if (!saves_last() || std::ranges::all_of(last_taken_, [](const LastTaken& rank) { return rank.steps_done == 0; })) {
      return;
    }
    std::string what;
    for (const LastTaken& rank : last_taken_) {
      if (what.empty()) what = rank.failure;
    }
    if (what.empty() && !std::ranges::all_of(last_taken_, has_come_as_far)) what = "not all ranks ended in good order";
    try {
      if (what.empty()) saving_->write(steps_done);
    } catch (const std::exception& error) {
      what = error.what();
    }
    if (observer_.on_last_save) observer_.on_last_save(steps_done, what);
  }

  [[nodiscard]] std::string where_interrupted() const {
    std::vector<std::string> places;
    for (std::size_t rank = 0; rank < ranks_; ++rank) {
      const auto& [at, ops] = std::tie(records_[rank].stopped_at, records_[rank].ops);
      if (ops.empty()) continue;  // not begun, or nothing was heard of it
      places.push_back(at.empty() ? fmt::format("rank {} done", rank) : fmt::format("rank {} in {}", rank, at));
    }
    if (places.empty()) return fmt::format("{} between steps, before step {}", interrupted, step_);
    return fmt::format("{} in step {}: {}", interrupted, step_, fmt::join(places, ", "));
  }

  // --- who and where

  [[nodiscard]] RankRecord& record_of(int rank) { return records_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] std::size_t process_of(std::size_t rank) const {
    return static_cast<std::size_t>(world_.process_of(static_cast<int>(rank), static_cast<int>(ranks_)));
  }

  // Of the chain of the micro-batch whose loss stands in this place: the stage that makes it.
  [[nodiscard]] std::size_t last_stage_of(std::size_t place) const {
    const std::size_t chain = place / program_.schedule.micro_batches;
    return program_.schedule.placement.chain_begin[chain + 1] - std::size_t{1};
  }

  // The median of the measured steps, and the records of the one that comes nearest to it, of those that are kept.
  void choose_step() {
    result_.records.resize(ranks_);
    const auto& durations = result_.durations;
    if (durations.empty()) return;
    result_.step_time = detail::report::median(durations);
    std::size_t nearest = measured_.first_kept();
    const auto distance = [&](std::size_t step) { return std::abs(durations[step] - result_.step_time); };
    for (std::size_t step = nearest; step < durations.size(); ++step) {
      if (distance(step) < distance(nearest)) nearest = step;
    }
    result_.records = measured_.at(nearest);
    for (RankRecords& records : result_.measured) drop_parts(records);
  }

  static void drop_parts(RankRecords& records) {
    for (RankRecord& record : records) record.parts.clear();
  }

  [[nodiscard]] Bytes resident(int rank) const {
    Bytes bytes = 0;
    for (const int stage : program_.schedule.placement.stages_on(rank)) {
      const StageBytes& held = result_.stages[static_cast<std::size_t>(stage)];
      bytes += held.parameters + held.gradients + held.optimizer;
    }
    return bytes;
  }

  World& world_;
  const Program& program_;
  const TrainOptions& options_;
  const TrainObserver& observer_;
  std::size_t ranks_;
  std::vector<int> here_;  // ranks of this process; the others' transports are null, and their records empty
  std::vector<std::unique_ptr<Transport>> transports_;
  RankTeam team_;

  std::shared_ptr<Data> data_;
  std::optional<Saving> saving_;
  std::optional<Checkpoint> checkpoint_;          // until all ranks have loaded it
  std::vector<std::vector<std::string>> loaded_;  // by rank: the names of the tensors

  // What a rank had, when it failed, for a last save.
  struct LastTaken {
    int steps_done = 0;
    std::string failure;
  };
  std::vector<LastTaken> last_taken_;  // by rank

  int step_ = 0;  // of the training
  Time step_begin_ = 0;
  Time observed_ = 0;    // what observers took of the step
  RankRecords records_;  // of this step
  std::vector<Stage*> stages_;
  std::vector<double> losses_;  // of this step, by chain and micro-batch
  TrainResult result_;
  LastRecords warm_up_{result_.warm_up};
  LastRecords warm_up_apart_{result_.warm_up_apart};
  LastRecords measured_{result_.measured};
};

}  // namespace

TrainResult train(World& world, const Program& program, const TrainOptions& options, const TrainObserver& observer) {
  return Training(world, program, options, observer).run();
}

TrainResult train(const Program& program, const TrainOptions& options, const TrainObserver& observer) {
  return train(*one_process(), program, options, observer);
}

}  // namespace dualpipe
