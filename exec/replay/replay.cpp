#include "dualpipe/exec/replay/replay.h"

#include <ATen/core/Tensor.h>
#include <c10/core/AutogradState.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <optional>
#include <string_view>
#include <utility>

#include "dualpipe/exec/replay/clock.h"
#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/replay/part_notes.h"
#include "dualpipe/exec/replay/rank_part.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/flow.h"

namespace dualpipe {

using detail::replay::charge_to_nobody;
using detail::replay::charge_to_this_thread;
using detail::replay::check_made;
using detail::replay::check_ops;
using detail::replay::check_rank;
using detail::replay::held_stages;
using detail::replay::HeldStage;
using detail::replay::MemoryMeter;
using detail::replay::messages_of;
using detail::replay::Neighbour;
using detail::replay::PartNotes;
using detail::replay::text_of;
using detail::replay::time_of;

namespace {

// Autograd runs a backward on the thread that calls it. (On a GPU it has one thread per device for all callers.)
class BackwardOnThisThread {
 public:
  BackwardOnThisThread() { set(false); }
  ~BackwardOnThisThread() { set(before_); }
  BackwardOnThisThread(const BackwardOnThisThread&) = delete;
  BackwardOnThisThread& operator=(const BackwardOnThisThread&) = delete;

 private:
  static void set(bool enabled) { c10::AutogradState::get_tls_state().set_multithreading_enabled(enabled); }
  bool before_ = c10::AutogradState::get_tls_state().get_multithreading_enabled();
};

constexpr auto its_start = "its start";

// A value for each input or output of the rank's ops: by stage of the rank, direction and micro-batch.
template <typename Value>
class Table {
 public:
  Table(std::size_t stages, std::size_t micro_batches)
      : micro_batches_(micro_batches), values_(2 * stages * micro_batches) {}

  [[nodiscard]] Value& at(std::size_t stage, bool forward, std::uint32_t micro_batch) {
    return values_[(2 * stage + (forward ? 0 : 1)) * micro_batches_ + micro_batch];
  }

 private:
  std::size_t micro_batches_;
  std::vector<Value> values_;
};

// A RECV that was posted.
struct Posted {
  const Op* message = nullptr;
  Mark at;
};

// What an op made, and when it is done.
struct Made {
  at::Tensor tensor;
  Mark ready;
};

// From one mark to another; unless both are set, it did not happen.
struct Interval {
  std::optional<Mark> start;
  std::optional<Mark> end;
};

// The copy of a message.
struct Copied {
  const Op* message = nullptr;
  Mark start;
  Mark end;
};

// Of a rank that has done nothing yet.
void clear(RankRecord& record) {
  record.ops.clear();
  record.communication.clear();
  record.waited.clear();
  record.memory.clear();
  record.parts.clear();
  record.done = 0;
  record.peak_activations = 0;
  record.peak_memory = 0;
  record.losses.clear();
  record.stopped_at.clear();
}

void size_for(RankRecord& record, std::size_t ops, std::size_t messages, bool with_memory) {
  record.ops.resize(ops);
  record.communication.resize(messages);
  record.waited.resize(ops);
  if (with_memory) record.memory.resize(ops);
}

class Replay {
 public:
  // `meter`: null: memory is not measured.
  Replay(const Program& program, int rank, std::span<Stage* const> stages, Transport& transport, RankRecord& record,
         const ReplayOptions& options, MemoryMeter* meter)
      : program_(program),
        rank_(rank),
        ops_(program.schedule.rank(rank)),
        messages_(messages_of(program, rank)),
        transport_(transport),
        options_(options),
        device_(*options.device),
        record_(record),
        meter_(meter),
        held_(held_stages(program.schedule.placement, rank, stages)),
        results_(program.schedule.placement.stages_on(rank).size(), program.schedule.micro_batches),
        receives_(program.schedule.placement.stages_on(rank).size(), program.schedule.micro_batches),
        op_marks_(ops_.size()),
        ready_marks_(ops_.size()),
        message_marks_(messages_.size()) {
    check_ops(program, rank, held_);
    if (options.note_parts) part_notes_.emplace(held_);
  }

  void run() {
    const c10::AutoGradMode gradients(c10::GradMode::is_enabled() && !options_.forward_only);
    const BackwardOnThisThread guard;
    device_.begin_step();
    device_.use({});
    transport_.begin(program_, device_);
    last_ = device_.mark();
    for (std::size_t position = 0; position < ops_.size();) {
      issue(position);
      const auto unit = ops_.subspan(position, unit_size(ops_.subspan(position)));
      if (const auto wanted = without_skipped(unit); !wanted.empty()) {
        device_.await(before_previous_);
        run_unit(position, wanted);
        before_previous_ = std::exchange(previous_, last_);
      }
      position += unit.size();
      record_.done = position;
    }
    issue(ops_.size());
    for (const Op* reduction : reductions_) reduce(*reduction);
    device_.finish();
    transport_.confirm();
  }

  // What it is at: "3B7".
  [[nodiscard]] std::string at() const { return at_.empty() ? its_start : cell_text(at_); }

  // When the device has finished: what was not known before, times and losses.
  void read() {
    for (std::size_t i = 0; i < ops_.size(); ++i) {
      record_.ops[i] = span_of(op_marks_[i]);
      if (ready_marks_[i]) record_.waited[i] = record_.ops[i].start - device_.time_of(*ready_marks_[i]);
    }
    for (std::size_t i = 0; i < messages_.size(); ++i) {
      Span& span = record_.communication[i] = span_of(message_marks_[i]);
      span.start = std::min(span.start, span.end);  // a message may come before its receive is posted
    }
    if (part_notes_) read_parts();
    for (const at::Tensor& loss : losses_) record_.losses.push_back(loss.item<double>());
  }

 private:
  void read_parts() {
    record_.parts = part_notes_->read(device_);
    for (const Copied& copied : copied_) {
      const Span span = {device_.time_of(copied.start), device_.time_of(copied.end)};
      record_.parts.push_back({*copied.message, PartSpan::Lane::copy, "copy", span});
      record_.parts.back().op.with_next = false;
    }
  }

  // The forward of a pair comes first.
  [[nodiscard]] std::span<const Op> without_skipped(std::span<const Op> unit) const {
    if (!options_.forward_only) return unit;
    return unit.first(unit[0].kind == Kind::forward ? 1 : 0);
  }
  [[nodiscard]] bool skips_message(Kind kind) const { return options_.forward_only && !is_forward(kind); }

  [[nodiscard]] const HeldStage& held(Op op) const { return held_[op.stage]; }
  [[nodiscard]] Interval& marks_of(const Op& message) {
    return message_marks_[static_cast<std::size_t>(&message - messages_.data())];
  }
  [[nodiscard]] Span span_of(const Interval& interval) const {
    if (!interval.start || !interval.end) return {};
    return {device_.time_of(*interval.start), device_.time_of(*interval.end)};
  }
  [[nodiscard]] Lane lane_of(Op op) const { return {Lane::Kind::compute, static_cast<std::uint16_t>(held(op).index)}; }

  // What stands in the slot before an op. `last_` goes along: one thing begins when the one before it has ended.
  void issue(std::size_t position) {
    for (const Op& message : program_.slot(rank_, position)) {
      if (!skips_message(message.kind)) issue(message);
      if (!message.with_next) transport_.end_batch();
    }
  }

  void issue(const Op& message) {
    at_ = {&message, 1};
    if (is_send(message.kind)) {
      send(message);
    } else if (is_receive(message.kind)) {
      transport_.post_receive(message);
      const bool forward = is_forward(message.kind);
      receives_.at(held(message).index, forward, message.micro_batch) = {&message, last_};
    } else if (message.kind == Kind::reduce_gradients) {
      reductions_.push_back(&message);
    }
  }

  void send(const Op& message) {
    Made made = take_result(held(message).index, is_forward(message.kind), message.micro_batch);
    charge_to_nobody(made.tensor);
    Tensors tensors(1);  // not from a list, which would hold the tensor as long as the receiver works on it
    tensors.front() = std::move(made.tensor);
    transport_.send(message, std::move(tensors), made.ready);
    const Mark start = std::exchange(last_, device_.mark());
    marks_of(message) = {start, last_};
  }

  // One op, or the two of a pair.
  void run_unit(std::size_t position, std::span<const Op> unit) {
    at_ = unit;
    if (options_.before_op) std::ranges::for_each(unit, options_.before_op);
    device_.use(lane_of(unit[0]));
    device_.wait(last_);
    std::array<at::Tensor, 2> inputs;
    for (std::size_t i = 0; i < unit.size(); ++i) inputs[i] = input_of(unit[i]);
    const Mark start = device_.mark();
    ready_marks_[position] = last_;
    count_forwards(unit);
    note_memory_before(position);
    Overlapped results;
    if (unit.size() == 2) {
      results = run_pair(unit[0], unit[1], std::move(inputs[0]), std::move(inputs[1]), start);
    } else {
      results = run_op(unit[0], std::move(inputs[0]));
    }
    last_ = device_.mark();
    const Bytes output = results.output.defined() ? static_cast<Bytes>(results.output.nbytes()) : 0;
    keep(unit, std::move(results));
    note_memory_after(position, output);
    for (std::size_t i = 0; i < unit.size(); ++i) op_marks_[position + i] = {start, last_};
    if (part_notes_) part_notes_->assign(unit);
    count_backwards(unit);
  }

  void note_memory_before(std::size_t position) {
    if (meter_ == nullptr) return;
    record_.memory[position].before = held_memory();
    meter_->take_peak();
  }
  void note_memory_after(std::size_t position, Bytes output) {
    if (meter_ == nullptr) return;
    OpMemory& memory = record_.memory[position];
    memory.output = output;
    memory.peak = meter_->take_peak();
    memory.after = held_memory();
  }
  // Without what only waits for the device.
  [[nodiscard]] Bytes held_memory() const { return meter_->held() - device_.kept(); }

  // Both return what was made: the output of a forward, the gradient of an input, or both.
  Overlapped run_op(Op op, at::Tensor input) {
    Stage& stage = *held(op).stage;
    switch (op.kind) {
      case Kind::forward:
        return {stage.forward(op.micro_batch, std::move(input)), {}};
      case Kind::backward:
        return {{}, stage.backward(op.micro_batch, std::move(input))};
      case Kind::input_gradient:
        return {{}, stage.backward_input(op.micro_batch, std::move(input))};
      default:
        assert(op.kind == Kind::weight_gradient && "check_ops() has seen it");
        stage.backward_weight(op.micro_batch);
        return {};
    }
  }

  // Both lanes begin at `start`; the forward's goes on when both have ended.
  Overlapped run_pair(Op ahead, Op back, at::Tensor input, at::Tensor gradient, const Mark& start) {
    const PairLanes lanes = {device_, lane_of(ahead), lane_of(back)};
    device_.use(lanes.backward);
    device_.wait(start);
    device_.use(lanes.forward);
    Overlapped results = forward_backward(*held(ahead).stage, ahead.micro_batch, std::move(input), *held(back).stage,
                                          back.micro_batch, std::move(gradient), lanes);
    device_.use(lanes.backward);
    const Mark backward_end = device_.mark();
    device_.use(lanes.forward);
    device_.wait(backward_end);
    return results;
  }

  // An activation is held from the start of its F to the end of its B or I; for evaluation, while F runs.
  void count_forwards(std::span<const Op> unit) {
    activations_ += static_cast<int>(std::ranges::count(unit, Kind::forward, &Op::kind));
    record_.peak_activations = std::max(record_.peak_activations, activations_);
  }
  void count_backwards(std::span<const Op> unit) {
    const auto ends = [&](Op op) { return options_.forward_only || is_backward_half(op.kind); };
    activations_ -= static_cast<int>(std::ranges::count_if(unit, ends));
  }

  // Undefined where the op takes none: W, and at the ends of a chain.
  [[nodiscard]] at::Tensor input_of(Op op) {
    if (op.kind == Kind::weight_gradient) return {};
    const bool forward = op.kind == Kind::forward;
    const Neighbour& from = forward ? held(op).previous : held(op).next;
    switch (from.where) {
      case Neighbour::Where::this_rank: {
        Made made = take_result(from.index, forward, op.micro_batch);
        return device_.adopt(std::move(made.tensor), made.ready);
      }
      case Neighbour::Where::other_rank:
        return receive(op, forward);
      default:
        return {};
    }
  }

  [[nodiscard]] at::Tensor receive(Op op, bool forward) {
    const auto [message, posted] = std::exchange(receives_.at(held(op).index, forward, op.micro_batch), {});
    if (message == nullptr) {
      throw InputError(fmt::format("the program has no {} before it, which brings its input; {}",
                                   to_text(receive_for(op)), see_validate));
    }
    Received received = transport_.wait(*message);
    Mark arrived = received.ready;
    arrived.time = time_of(received.arrived);
    if (received.tensors.size() != 1) {
      throw InputError(
          fmt::format("{} brings {} tensors, and a stage takes one", to_text(*message), received.tensors.size()));
    }
    at::Tensor tensor = device_.take(std::move(received.tensors.front()), arrived);
    marks_of(*message) = {posted, arrived};
    if (part_notes_) note_copy(*message, arrived);
    charge_to_this_thread(tensor);
    return tensor;
  }

  void note_copy(const Op& message, const Mark& arrived) {
    if (const auto begun = device_.copy_begun()) copied_.push_back({&message, *begun, arrived});
  }

  void keep(std::span<const Op> unit, Overlapped results) {
    for (const Op op : unit) {
      const HeldStage& stage = held(op);
      if (op.kind == Kind::weight_gradient) continue;
      const bool forward = op.kind == Kind::forward;
      at::Tensor& result = forward ? results.output : results.input_gradient;
      const bool is_taken = (forward ? stage.next : stage.previous).where != Neighbour::Where::nowhere;
      if (is_taken || forward) check_made(op, result, is_taken);
      if (is_taken) {
        results_.at(stage.index, forward, op.micro_batch) = {std::move(result), last_};
      } else if (forward) {
        losses_.push_back(compact(std::move(result)));
      }
    }
  }
  // A loss is kept to the end of the step, and must not keep what it was reduced from: at::mse_loss() computes both in
  // one storage.
  [[nodiscard]] static at::Tensor compact(at::Tensor loss) {
    const bool keeps_more = loss.has_storage() && loss.storage().nbytes() > loss.nbytes();
    return keeps_more ? loss.clone() : std::move(loss);
  }
  [[nodiscard]] Made take_result(std::size_t stage, bool forward, std::uint32_t micro_batch) {
    auto& result = results_.at(stage, forward, micro_batch);
    if (!result) {
      throw InputError(fmt::format("what it takes has not been made yet, or was taken before; {}", see_validate));
    }
    Made made = std::move(*result);
    result.reset();
    return made;
  }

  void reduce(const Op& reduction) {
    at_ = {&reduction, 1};
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& parameter : untied_parameters(*held(reduction).stage)) {
      at::Tensor& gradient = parameter.mutable_grad();
      if (!gradient.defined()) gradient = parameter.detach().clone().zero_();
      gradients.push_back(gradient);
    }
    device_.finish();  // others read the gradients
    last_ = device_.mark();
    transport_.reduce(program_.schedule.placement.sharers_of(reduction.stage), reduction.stage, gradients);
    const Mark start = std::exchange(last_, device_.mark());
    marks_of(reduction) = {start, last_};
  }

  static constexpr std::string_view see_validate = "validate() says what is wrong with the program";

  const Program& program_;
  const int rank_;
  const std::span<const Op> ops_;
  const std::span<const Op> messages_;  // of all slots of the rank
  Transport& transport_;
  const ReplayOptions& options_;
  Device& device_;
  RankRecord& record_;
  MemoryMeter* const meter_;

  std::vector<HeldStage> held_;         // by stage
  Table<std::optional<Made>> results_;  // not yet sent or used
  Table<Posted> receives_;
  std::vector<const Op*> reductions_;  // reached
  std::vector<at::Tensor> losses_;
  int activations_ = 0;
  std::vector<Interval> op_marks_;
  std::vector<std::optional<Mark>> ready_marks_;  // before an op, or pair: the end of what was before
  std::vector<Interval> message_marks_;
  std::optional<PartNotes> part_notes_;  // where they are wanted
  std::vector<Copied> copied_;
  Mark last_;               // when the last thing ended
  Mark previous_;           // the end of the last op, or pair
  Mark before_previous_;    // of the one before it
  std::span<const Op> at_;  // what it is at
};

// In a handler.
std::string current_cause() {
  try {
    throw;
  } catch (const std::exception& error) {
    return text_of(error);
  } catch (...) {
    return "an exception without a message";
  }
}

}  // namespace

void replay(const Program& program, int rank, std::span<Stage* const> stages, Transport& transport, RankRecord& record,
            const ReplayOptions& options) {
  std::optional<MemoryMeter> meter;
  std::optional<Replay> replay;
  const auto close = [&] {
    replay->read();
    if (meter) record.peak_memory = meter->peak();
  };
  // A device that failed knows no times; that must not hide why.
  const auto close_what_is_left = [&] {
    if (!replay) return;
    try {
      options.device->finish();
      close();
    } catch (const std::exception&) {
    }
  };
  const auto fail = [&] {
    record.stopped_at = replay ? replay->at() : its_start;
    const std::string text = fmt::format("rank {} failed in {}: {}", rank, record.stopped_at, current_cause());
    transport.abort(text);
    close_what_is_left();
    return ReplayError(text);
  };
  clear(record);
  try {
    check_rank(program, rank);
    if (options.device == nullptr) throw InputError("no device is given; that of the host is host_device()");
    size_for(record, program.schedule.rank(rank).size(), messages_of(program, rank).size(), options.measure_memory);
    if (options.measure_memory) meter.emplace(*options.device);
    replay.emplace(program, rank, stages, transport, record, options, meter ? &*meter : nullptr);
    replay->run();
    close();
  } catch (const TimeoutError&) {
    throw fail();
  } catch (const TransportError&) {  // another rank failed, and said why
    record.stopped_at = replay ? replay->at() : its_start;
    close_what_is_left();
    throw;
  } catch (...) {
    throw fail();
  }
}

}  // namespace dualpipe
