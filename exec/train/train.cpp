#include "exec/train/train.h"

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "exec/replay/clock.h"
#include "exec/train/checkpoint.h"
#include "exec/train/optimizer.h"
#include "exec/train/probe.h"
#include "exec/train/rendezvous.h"
#include "exec/train/stage_set.h"
#include "sim/schedule/error.h"
#include "sim/schedule/lower.h"

namespace dualpipe {
namespace {

constexpr auto interrupted = "the run was interrupted";
constexpr std::size_t steps_kept_max = 101;  // with what every op did: a long run must not fill the memory

// A Transport that takes note of how large the messages are.
class MeasuredTransport : public Transport {
 public:
  // `stages`: those of the rank are written.
  MeasuredTransport(Transport& transport, std::span<StageBytes> stages) : transport_(transport), stages_(stages) {}

  void send(Op message, at::Tensor tensor) override {
    if (message.kind == Kind::send_forward) stages_[message.stage].message = static_cast<Bytes>(tensor.nbytes());
    transport_.send(message, std::move(tensor));
  }
  void post_receive(Op message) override { transport_.post_receive(message); }
  [[nodiscard]] Received wait(Op message) override { return transport_.wait(message); }
  void reduce(std::span<const int> stages, int stage, std::span<at::Tensor> tensors) override {
    transport_.reduce(stages, stage, tensors);
  }
  [[nodiscard]] double sum(double value) override { return transport_.sum(value); }
  void abort(const std::string& reason) override { transport_.abort(reason); }

 private:
  Transport& transport_;
  std::span<StageBytes> stages_;
};

// Why the run ended: the first failure, but for those of ranks that only heard of another's.
class Cause {
 public:
  void note(const std::exception_ptr& error, bool is_own) {
    const std::lock_guard lock(mutex_);
    if (!error_ || (is_own && !is_own_)) {
      error_ = error;
      is_own_ = is_own;
    }
  }
  [[nodiscard]] std::exception_ptr error() const { return error_; }  // after all ranks have ended

 private:
  std::mutex mutex_;
  std::exception_ptr error_;
  bool is_own_ = false;
};

void keep(std::vector<RankRecords>& kept, std::size_t count, const RankRecords& records) {
  if (kept.size() < steps_kept_max) {
    kept.push_back(records);
  } else {
    kept[count % steps_kept_max] = records;
  }
}

class Training {
 public:
  Training(const Program& program, const TrainOptions& options, const TrainObserver& observer)
      : program_(program),
        options_(options),
        observer_(observer),
        ranks_(static_cast<std::size_t>(program.schedule.ranks())),
        transports_(thread_transports(program.schedule.placement, options.transport)),
        meeting_(program.schedule.ranks()),
        loaded_(ranks_),
        parts_(ranks_),
        records_(ranks_),
        stages_(program.schedule.placement.rank_of.size()),
        losses_(program.schedule.total_micro_batches()) {
    result_.stages.resize(stages_.size());
    result_.peaks.resize(ranks_);
    if (options.measure_passes && !options.forward_only) result_.apart = lower(apart(program.schedule));
    if (options.measure_links) {
      probe_.emplace(program.schedule.ranks());
      probe_transports_ = thread_transports(probe_->program().schedule.placement, options.transport);
      result_.probe.emplace_back(ranks_);
    }
    if (!options.save.empty()) saver_.emplace(program.schedule, options);
    if (options.resume.empty()) return;
    checkpoint_.emplace(program.schedule, options);
    result_.first_step = step_ = checkpoint_->steps();
  }

  TrainResult run() {
    run_ranks();
    if (cause_.error()) fail();
    result_.step_time = median_step();
    for (std::size_t rank = 0; rank < ranks_; ++rank) result_.peaks[rank].memory += resident(static_cast<int>(rank));
    return std::move(result_);
  }

 private:
  // --- a rank

  // Returns when all have ended.
  void run_ranks() {
    const std::stop_callback on_stop(options_.stop, [this] { stop_all(interrupted); });
    std::vector<std::jthread> threads;
    try {
      for (std::size_t rank = 0; rank < ranks_; ++rank) {
        threads.emplace_back([this, rank] { run_rank(static_cast<int>(rank)); });
        pthread_setname_np(threads.back().native_handle(), fmt::format("rank {}", rank).c_str());
      }
    } catch (const std::system_error& error) {
      cause_.note(
          std::make_exception_ptr(InputError(fmt::format(
              "the system does not give {} threads, one for each rank: {}; use fewer --ranks", ranks_, error.what()))),
          true);
      stop_all("a rank could not be started");
    }
  }

  void run_rank(int rank) {
    Transport& transport = *transports_[static_cast<std::size_t>(rank)];
    try {
      set_up_thread(options_.threads_per_rank);
      train_rank(rank);
    } catch (const Rendezvous::Stopped&) {
      const auto reason = std::make_exception_ptr(TransportError(fmt::format("rank {}: {}", rank, interrupted)));
      if (options_.stop.stop_requested()) cause_.note(reason, false);
    } catch (const TransportError&) {
      cause_.note(std::current_exception(), false);
      meeting_.stop();
    } catch (const std::exception& error) {
      cause_.note(std::current_exception(), true);
      transport.abort(fmt::format("rank {} failed: {}", rank, error.what()));
      meeting_.stop();
    }
  }

  void train_rank(int rank) {
    const Schedule& schedule = program_.schedule;
    const std::vector<int> numbers = schedule.placement.stages_on(rank);
    StageSet stages(schedule, options_, numbers);
    for (const int number : numbers) {
      stages_[static_cast<std::size_t>(number)] = stages.by_number()[static_cast<std::size_t>(number)];
    }
    Optimizer optimizer(options_, options_.forward_only ? std::vector<at::Tensor>() : stages.all_parameters());
    parts_[static_cast<std::size_t>(rank)] = {&stages, &optimizer};
    if (checkpoint_) loaded_[static_cast<std::size_t>(rank)] = checkpoint_->load(stages, optimizer);
    note_resident(numbers, stages);
    MeasuredTransport transport(*transports_[static_cast<std::size_t>(rank)], result_.stages);
    const std::vector<LossPlace> losses = loss_places(schedule, rank);

    if (probe_) probe_links(rank);
    meeting_.meet([this] { begin(); });
    for (int step = result_.first_step; step < end_of_steps(); ++step) {
      stages.begin_step(step);
      run_step(rank, stages, optimizer, transport, losses);
      meeting_.meet([this] { end_step(); });
    }
  }

  void probe_links(int rank) {
    const auto r = static_cast<std::size_t>(rank);
    probe_->run(rank, *probe_transports_[r], result_.probe[0][r]);
  }

  void run_step(int rank, StageSet& stages, Optimizer& optimizer, Transport& transport,
                std::span<const LossPlace> losses) {
    RankRecord& record = records_[static_cast<std::size_t>(rank)];
    const c10::AutoGradMode with_gradients(!options_.forward_only);
    optimizer.zero_gradients();
    ReplayOptions replaying;
    replaying.forward_only = options_.forward_only;
    if (options_.before_op) replaying.before_op = [this, rank](Op op) { options_.before_op(rank, op); };
    replay(program_of_step(), rank, stages.by_number(), transport, record, replaying);
    take_losses(rank, record, losses);
    if (options_.forward_only) return;

    reduce_tied(stages, transport);
    if (observer_.on_gradients) meeting_.meet([this] { observer_.on_gradients(step_, stages_); });
    if (options_.clip > 0) clip(stages, transport);
    optimizer.step();
  }

  void take_losses(int rank, const RankRecord& record, std::span<const LossPlace> places) {
    for (std::size_t i = 0; i < std::min(places.size(), record.losses.size()); ++i) {
      if (!std::isfinite(record.losses[i])) {
        throw ReplayError(
            fmt::format("rank {}, {}: the loss is {} in step {}; a lower --learning-rate or a --clip may "
                        "help",
                        rank, to_text(places[i].op), record.losses[i], step_));
      }
      losses_[places[i].index] = record.losses[i];
    }
  }

  // The copies of a tied parameter get the sum of their gradients.
  static void reduce_tied(const StageSet& stages, Transport& transport) {
    for (const int number : stages.tied_stages()) {
      Stage* const stage = stages.by_number()[static_cast<std::size_t>(number)];
      if (stage == nullptr) continue;
      std::vector<at::Tensor> gradients;
      for (const at::Tensor& parameter : stage->tied_parameters()) gradients.push_back(parameter.grad());
      transport.reduce(stages.tied_stages(), number, gradients);
    }
  }

  // Every rank adds what it holds, but no parameter counts twice.
  void clip(const StageSet& stages, Transport& transport) const {
    const std::vector<double> own = gradient_squares(stages.counted_parameters());
    const double magnitude = transport.sum(plain_sum(own));
    const double global = transport.sum(sum_in_any_order(own, magnitude));
    for (const auto& parameters : stages.parameters()) clip_gradients(parameters, global, options_.clip);
  }

  void note_resident(std::span<const int> numbers, const StageSet& stages) {
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      StageBytes& bytes = result_.stages[static_cast<std::size_t>(numbers[i])];
      for (const at::Tensor& parameter : stages.parameters()[i]) {
        bytes.parameters += static_cast<Bytes>(parameter.nbytes());
      }
      if (options_.forward_only) continue;
      bytes.gradients = bytes.parameters;
      bytes.optimizer = options_.optimizer == OptimizerKind::adamw ? 2 * bytes.parameters : 0;
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
      checkpoint_->check_complete(all);
      checkpoint_.reset();
    }
    begin_step();
  }

  void begin_step() {
    for (RankRecord& record : records_) record = {};
    step_begin_ = now();
  }

  void end_step() {
    const Time duration = now() - step_begin_;
    const int step = step_of_run();
    const bool measured = step >= options_.warmup;
    const auto count = static_cast<std::size_t>(measured ? step - options_.warmup : step);
    if (step == 1 && !measured) result_.warm_up.clear();
    keep(measured ? result_.measured : runs_apart() ? result_.warm_up_apart : result_.warm_up, count, records_);
    result_.losses.push_back(mean_loss(losses_));
    if (measured) {
      result_.durations.push_back(duration);
      note_peaks();
    }
    if (observer_.on_step) observer_.on_step({step_, measured, result_.losses.back(), duration, records_});
    ++step_;
    if (is_save_due(options_, step_, end_of_steps())) save();
    begin_step();
  }

  void save() const {
    SafeTensors contents;
    for (const Part& part : parts_) Saver::add(contents, *part.stages, *part.optimizer);
    saver_->save(std::move(contents), step_);
  }

  void note_peaks() {
    for (std::size_t rank = 0; rank < ranks_; ++rank) {
      RankPeaks& peak = result_.peaks[rank];
      peak.activations = std::max(peak.activations, records_[rank].peak_activations);
      peak.memory = std::max(peak.memory, records_[rank].peak_memory);
    }
  }

  // --- the end

  void stop_all(const std::string& reason) {
    transports_.front()->abort(reason);
    if (probe_) probe_transports_.front()->abort(reason);
    meeting_.stop();
  }

  [[noreturn]] void fail() {
    if (observer_.on_failure) observer_.on_failure(step_, program_of_step(), records_);
    std::rethrow_exception(cause_.error());
  }

  Time median_step() {
    const auto& durations = result_.durations;
    if (durations.empty()) return 0;
    // Of those whose records are kept.
    const std::size_t first = durations.size() - result_.measured.size();
    std::vector<std::size_t> order(result_.measured.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = first + i;
    std::ranges::sort(order, {}, [&](std::size_t step) { return std::pair(durations[step], step); });
    const std::size_t median = order[(order.size() - 1) / 2];
    result_.records = result_.measured[median % steps_kept_max];
    return durations[median];
  }

  [[nodiscard]] Bytes resident(int rank) const {
    Bytes bytes = 0;
    for (const int stage : program_.schedule.placement.stages_on(rank)) {
      const StageBytes& held = result_.stages[static_cast<std::size_t>(stage)];
      bytes += held.parameters + held.gradients + held.optimizer;
    }
    return bytes;
  }

  // What a rank holds, while it runs.
  struct Part {
    const StageSet* stages = nullptr;
    const Optimizer* optimizer = nullptr;
  };

  const Program& program_;
  const TrainOptions& options_;
  const TrainObserver& observer_;
  std::size_t ranks_;
  std::vector<std::unique_ptr<Transport>> transports_;
  std::optional<LinkProbe> probe_;
  std::vector<std::unique_ptr<Transport>> probe_transports_;
  Rendezvous meeting_;
  Cause cause_;

  std::optional<Saver> saver_;
  std::optional<Checkpoint> checkpoint_;          // until all ranks have loaded it
  std::vector<std::vector<std::string>> loaded_;  // by rank: the names of the tensors
  std::vector<Part> parts_;                       // by rank

  int step_ = 0;  // of the training
  Time step_begin_ = 0;
  RankRecords records_;  // of this step
  std::vector<Stage*> stages_;
  std::vector<double> losses_;  // of this step, by chain and micro-batch
  TrainResult result_;
};

}  // namespace

TrainResult train(const Program& program, const TrainOptions& options, const TrainObserver& observer) {
  return Training(program, options, observer).run();
}

PartialRun reached(const Program& program, std::span<const RankRecord> records) {
  const Schedule& whole = program.schedule;
  PartialRun partial;
  Schedule& schedule = partial.program.schedule;
  schedule.name = whole.name;
  schedule.placement = whole.placement;
  schedule.micro_batches = whole.micro_batches;
  schedule.rank_begin = {0};
  for (int rank = 0; rank < whole.ranks(); ++rank) {
    RankRecord record = records[static_cast<std::size_t>(rank)];
    const auto ops = whole.rank(rank).first(record.done);
    schedule.ops.insert(schedule.ops.end(), ops.begin(), ops.end());
    schedule.rank_begin.push_back(schedule.ops.size());
    for (std::size_t position = 0; position <= record.done; ++position) {
      partial.program.slot_begin.push_back(static_cast<std::uint32_t>(partial.program.communication.size()));
      const auto slot = program.slot(rank, position);
      partial.program.communication.insert(partial.program.communication.end(), slot.begin(), slot.end());
    }
    record.ops.resize(record.done);
    record.waited.resize(record.done);
    record.memory.resize(record.done);
    const std::size_t slots = program.slot_index(rank, record.done) + 1;
    record.communication.resize(program.slot_begin[slots] - program.slot_begin[program.slot_index(rank, 0)]);
    partial.records.push_back(std::move(record));
  }
  partial.program.slot_begin.push_back(static_cast<std::uint32_t>(partial.program.communication.size()));
  return partial;
}

Schedule apart(const Schedule& schedule) {
  Schedule result = schedule;
  result.ops.clear();
  result.rank_begin = {0};
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    for (Op op : schedule.rank(rank)) {
      op.with_next = false;
      const bool is_full = op.kind == Kind::backward;
      if (is_full) op.kind = Kind::input_gradient;
      result.ops.push_back(op);
      if (!is_full) continue;
      op.kind = Kind::weight_gradient;
      result.ops.push_back(op);
    }
    result.rank_begin.push_back(result.ops.size());
  }
  return result;
}

Schedule forwards_of(const Schedule& schedule) {
  Schedule forwards = schedule;
  forwards.ops.clear();
  forwards.rank_begin = {0};
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    for (Op op : schedule.rank(rank)) {
      if (op.kind != Kind::forward) continue;
      op.with_next = false;
      forwards.ops.push_back(op);
    }
    forwards.rank_begin.push_back(forwards.ops.size());
  }
  return forwards;
}

}  // namespace dualpipe
