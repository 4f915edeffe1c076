#include "dualpipe/exec/train/train.h"

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <functional>
#include <iterator>
#include <limits>
#include <mutex>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "dualpipe/exec/replay/clock.h"
#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/train/cause.h"
#include "dualpipe/exec/train/checkpoint.h"
#include "dualpipe/exec/train/exchange.h"
#include "dualpipe/exec/train/last_records.h"
#include "dualpipe/exec/train/measured_transport.h"
#include "dualpipe/exec/train/optimizer.h"
#include "dualpipe/exec/train/probe.h"
#include "dualpipe/exec/train/rank_threads.h"
#include "dualpipe/exec/train/rendezvous.h"
#include "dualpipe/exec/train/saving.h"
#include "dualpipe/exec/train/stage_set.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/rewrite.h"

namespace dualpipe {

using detail::replay::now;
using detail::replay::WatchMemory;
using detail::train::Cause;
using detail::train::check_same_run;
using detail::train::Checkpoint;
using detail::train::clip;
using detail::train::interrupted;
using detail::train::is_save_due;
using detail::train::LastRecords;
using detail::train::loss_places;
using detail::train::LossPlace;
using detail::train::make_data;
using detail::train::mean_loss;
using detail::train::MeasuredTransport;
using detail::train::OpenedFile;
using detail::train::Optimizer;
using detail::train::pack;
using detail::train::reduce_tied;
using detail::train::Rendezvous;
using detail::train::run_rank_threads;
using detail::train::Saving;
using detail::train::StageSet;
using detail::train::unpack_record;
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
        meeting_(static_cast<int>(here_.size())),
        loaded_(ranks_),
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
    run_ranks();
    if (cause_.error()) fail();
    choose_step();
    gather_results();
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

  // Returns when all have ended.
  void run_ranks() {
    const std::stop_callback on_stop(options_.stop, [this] { stop_all(interrupted); });
    run_rank_threads(
        here_, [this](int rank) { run_rank(rank); },
        [this](const InputError& error) {
          cause_.note(std::make_exception_ptr(error), true);
          stop_all(error.what());
        });
  }

  void run_rank(int rank) {
    Transport& transport = *transports_[static_cast<std::size_t>(rank)];
    try {
      detail::train::set_up_thread(options_.threads_per_rank);
      train_rank(rank);
    } catch (const Rendezvous::Stopped&) {
      if (options_.stop.stop_requested()) {
        is_interrupted_ = true;
        cause_.note(std::make_exception_ptr(TransportError(interrupted)), false);
      }
    } catch (const TimeoutError& error) {
      end_all(transport, error.what(), std::current_exception());
    } catch (const TransportError& error) {
      if (error.what() == std::string_view(interrupted)) is_interrupted_ = true;
      cause_.note(std::current_exception(), false);
      meeting_.stop();
    } catch (const c10::Error& error) {  // of LibTorch, which adds a stack trace
      const ReplayError failure(fmt::format("rank {} failed: {}", rank, error.what_without_backtrace()));
      end_all(transport, failure.what(), std::make_exception_ptr(failure));
    } catch (const std::exception& error) {
      end_all(transport, fmt::format("rank {} failed: {}", rank, error.what()), std::current_exception());
    } catch (...) {
      end_all(transport, fmt::format("rank {} failed: an exception without a message", rank), std::current_exception());
    }
  }

  // Of what this rank was the first to know.
  void end_all(Transport& transport, const std::string& reason, const std::exception_ptr& error) {
    cause_.note(error, true);
    transport.abort(reason);
    meeting_.stop();
  }

  void train_rank(int rank) {
    const Schedule& schedule = program_.schedule;
    const std::vector<int> numbers = schedule.placement.stages_on(rank);
    const std::unique_ptr<Device> own = detail::train::device_of(options_, here_, rank, numbers.size());
    Device& device = own ? *own : host_device();
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
    MeasuredTransport transport(*transports_[static_cast<std::size_t>(rank)], result_.stages);
    const std::vector<LossPlace> losses = loss_places(schedule, rank);

    meeting_.meet([this] { begin(); });
    for (int step = result_.first_step; step < end_of_steps(); ++step) {
      stages.begin_step(step);
      run_step(rank, device, stages, optimizer, transport, losses);
      meeting_.meet([this] { end_step(); });
      if (!is_save_due(options_, step + 1, end_of_steps())) continue;
      saving_->take(rank, stages, optimizer, step + 1);
      meeting_.meet([this] {
        saving_->write(step_);
        begin_step();
      });
    }
  }

  void run_step(int rank, Device& device, StageSet& stages, Optimizer& optimizer, Transport& transport,
                std::span<const LossPlace> losses) {
    RankRecord& record = records_[static_cast<std::size_t>(rank)];
    const c10::AutoGradMode with_gradients(!options_.forward_only);
    device.use({});
    optimizer.zero_gradients();
    ReplayOptions replaying;
    replaying.device = &device;
    replaying.forward_only = options_.forward_only;
    replaying.note_parts = options_.note_parts;
    replaying.measure_memory = options_.measure_memory;
    if (options_.before_op) replaying.before_op = [this, rank](Op op) { options_.before_op(rank, op); };
    replay(program_of_step(), rank, stages.by_number(), transport, record, replaying);
    take_losses(rank, record, losses);
    if (options_.forward_only) return;

    device.use({});
    stages.add_up_gradients();
    reduce_tied(stages, transport);
    if (observer_.on_gradients) {
      device.finish();  // the gradients are there for whoever looks at them
      meeting_.meet([this] { observer_.on_gradients(step_, stages_); });
      device.use({});  // the observer may have run on this thread, and used another
    }
    if (options_.clip > 0) clip(stages, transport, options_.clip);
    optimizer.step();
    device.finish();
  }

  void take_losses(int rank, const RankRecord& record, std::span<const LossPlace> places) {
    for (std::size_t i = 0; i < std::min(places.size(), record.losses.size()); ++i) {
      if (!std::isfinite(record.losses[i])) {
        throw ReplayError(
            fmt::format("rank {}, {}: the loss is {} in step {}; a lower --learning-rate or a --clip may help", rank,
                        to_text(places[i].op), record.losses[i], step_));
      }
      losses_[places[i].index] = record.losses[i];
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
  [[nodiscard]] const Program& program_of_step() const { return runs_apart() ? result_.apart : program_; }

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
    packer.put(Span{step_begin_ + world_.clock_offset(), now() + world_.clock_offset()});
    packer.put(losses_);
    const auto parts = world_.all_gather(fmt::format("the end of step {}", step_), packer.take());
    Span step{std::numeric_limits<Time>::max(), std::numeric_limits<Time>::min()};
    for (std::size_t process = 0; process < parts.size(); ++process) {
      Unpacker part(parts[process]);
      const auto own = part.get<Span>();
      step = {std::min(step.start, own.start), std::max(step.end, own.end)};
      const auto losses = part.get<std::vector<double>>();
      for (const std::size_t i : losses_of_[process]) losses_[i] = losses[i];
    }
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

  void stop_all(const std::string& reason) {
    transports_[static_cast<std::size_t>(here_.front())]->abort(reason);
    meeting_.stop();
  }

  [[noreturn]] void fail() {
    hand_over_records();
    if (observer_.on_failure && world_.process() == 0) observer_.on_failure(step_, program_of_step(), records_);
    if (is_interrupted_ && !cause_.is_own()) throw TransportError(where_interrupted());
    std::rethrow_exception(cause_.error());
  }

  // Process 0 gets those of the step that was reached last.
  void hand_over_records() {
    Packer packer;
    packer.put(step_);
    for (const int rank : here_) pack(packer, record_of(rank), world_.clock_offset());
    const auto parts = world_.hand_over(packer.take());
    if (parts.empty()) return;
    std::vector<RankRecords> records(parts.size());
    std::vector<int> steps(parts.size(), -1);
    for (std::size_t process = 0; process < parts.size(); ++process) {
      if (!parts[process]) continue;
      Unpacker part(*parts[process]);
      steps[process] = part.get<int>();
      while (!part.at_end()) records[process].push_back(unpack_record(part));
    }
    step_ = std::ranges::max(steps);
    std::vector<std::size_t> taken(parts.size());
    for (std::size_t rank = 0; rank < ranks_; ++rank) {
      const std::size_t process = process_of(rank);
      records_[rank] = steps[process] == step_ ? std::move(records[process][taken[process]++]) : RankRecord{};
    }
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

  // What each process knows of its ranks and stages all know then.
  void gather_results() {
    if (world_.processes() == 1) return;
    const auto parts = world_.all_gather("the end of the training", own_results());
    for (std::size_t process = 0; process < parts.size(); ++process) {
      Unpacker part(parts[process]);
      for (std::size_t rank = 0; rank < ranks_; ++rank) {
        if (process_of(rank) != process) continue;
        part.get(result_.peaks[rank]);
        for (const int stage : program_.schedule.placement.stages_on(static_cast<int>(rank))) {
          part.get(result_.stages[static_cast<std::size_t>(stage)]);
        }
        for (auto* steps : {&result_.warm_up, &result_.warm_up_apart, &result_.measured}) {
          for (RankRecords& records : *steps) records[rank] = unpack_record(part);
        }
        result_.records[rank] = unpack_record(part);
      }
    }
  }

  [[nodiscard]] std::string own_results() const {
    Packer packer;
    for (const int rank : here_) {
      packer.put(result_.peaks[static_cast<std::size_t>(rank)]);
      for (const int stage : program_.schedule.placement.stages_on(rank)) {
        packer.put(result_.stages[static_cast<std::size_t>(stage)]);
      }
      for (const auto* steps : {&result_.warm_up, &result_.warm_up_apart, &result_.measured}) {
        for (const RankRecords& records : *steps) {
          pack(packer, records[static_cast<std::size_t>(rank)], world_.clock_offset());
        }
      }
      pack(packer, result_.records[static_cast<std::size_t>(rank)], world_.clock_offset());
    }
    return packer.take();
  }

  // --- who and where

  [[nodiscard]] RankRecord& record_of(int rank) { return records_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] std::size_t process_of(std::size_t rank) const {
    return static_cast<std::size_t>(world_.process_of(static_cast<int>(rank), static_cast<int>(ranks_)));
  }

  // By process: which losses of a step its ranks record.
  [[nodiscard]] std::vector<std::vector<std::size_t>> losses_by_process() const {
    std::vector<std::vector<std::size_t>> places(static_cast<std::size_t>(world_.processes()));
    for (std::size_t rank = 0; rank < ranks_; ++rank) {
      for (const LossPlace& place : loss_places(program_.schedule, static_cast<int>(rank))) {
        places[process_of(rank)].push_back(place.index);
      }
    }
    return places;
  }

  // The median of the measured steps, and the records of the one that comes nearest to it, of those that are kept.
  void choose_step() {
    result_.records.resize(ranks_);
    const auto& durations = result_.durations;
    if (durations.empty()) return;
    std::vector<Time> sorted = durations;
    const auto median = sorted.begin() + (std::ssize(sorted) - 1) / 2;
    std::ranges::nth_element(sorted, median);
    std::size_t nearest = measured_.first_kept();
    const auto distance = [&](std::size_t step) { return std::abs(durations[step] - *median); };
    for (std::size_t step = nearest; step < durations.size(); ++step) {
      if (distance(step) < distance(nearest)) nearest = step;
    }
    result_.step_time = *median;
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
  Rendezvous meeting_;
  Cause cause_;
  std::atomic<bool> is_interrupted_{false};  // here, or in another process

  std::shared_ptr<Data> data_;
  std::optional<Saving> saving_;
  std::optional<Checkpoint> checkpoint_;          // until all ranks have loaded it
  std::vector<std::vector<std::string>> loaded_;  // by rank: the names of the tensors

  int step_ = 0;  // of the training
  Time step_begin_ = 0;
  RankRecords records_;  // of this step
  std::vector<Stage*> stages_;
  std::vector<double> losses_;  // of this step, by chain and micro-batch
  std::vector<std::vector<std::size_t>> losses_of_ = losses_by_process();
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
