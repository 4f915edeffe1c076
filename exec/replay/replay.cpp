#include "dualpipe/exec/replay/replay.h"

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <c10/core/AutogradState.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <exception>
#include <optional>
#include <string_view>
#include <utility>

#include "dualpipe/exec/replay/clock.h"
#include "dualpipe/exec/replay/error_text.h"
#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/replay/rank_part.h"
#include "dualpipe/exec/replay/step_log.h"
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
using detail::replay::loss_of;
using detail::replay::MemoryMeter;
using detail::replay::messages_of;
using detail::replay::Neighbour;
using detail::replay::StepLog;
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
  Event at;
};

// What an op made, and when it is done.
struct Made {
  Tensors tensors;
  Event ready;
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
        transport_(transport),
        options_(options),
        device_(*options.device),
        record_(record),
        held_(held_stages(program.schedule.placement, rank, stages)),
        results_(program.schedule.placement.stages_on(rank).size(), program.schedule.micro_batches),
        receives_(program.schedule.placement.stages_on(rank).size(), program.schedule.micro_batches),
        log_(record, options, messages_of(program, rank), held_, meter) {
    check_ops(program, rank, held_);
  }

  void run() {
    const c10::AutoGradMode gradients(c10::GradMode::is_enabled() && !options_.forward_only);
    const BackwardOnThisThread guard;
    device_.begin_step();
    device_.use({});
    transport_.begin(program_, device_);
    last_ = device_.record_event();
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

  // When the device has finished: what was not known before.
  void read() { log_.read(); }

 private:
  // The forward of a pair comes first.
  [[nodiscard]] std::span<const Op> without_skipped(std::span<const Op> unit) const {
    if (!options_.forward_only) return unit;
    return unit.first(unit[0].kind == Kind::forward ? 1 : 0);
  }
  [[nodiscard]] bool skips_message(Kind kind) const { return options_.forward_only && !is_forward(kind); }

  [[nodiscard]] const HeldStage& held(Op op) const { return held_[op.stage]; }
  [[nodiscard]] Stream stream_of(Op op) const {
    return {Stream::Kind::compute, static_cast<std::uint16_t>(held(op).index)};
  }

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
    for (const at::Tensor& tensor : made.tensors) charge_to_nobody(tensor);
    transport_.send(message, std::move(made.tensors), made.ready);
    const Event start = std::exchange(last_, device_.record_event());
    log_.message(message, start, last_);
  }

  // One op, or the two of a pair.
  void run_unit(std::size_t position, std::span<const Op> unit) {
    at_ = unit;
    at::RecordFunction range(at::RecordScope::USER_SCOPE);  // for a profiler of LibTorch's
    if (range.isActive()) range.before(cell_text(unit));
    if (options_.before_op) std::ranges::for_each(unit, options_.before_op);
    device_.use(stream_of(unit[0]));
    device_.wait(last_);
    Tensors inputs = inputs_of(unit[0]);
    Tensors gradients = unit.size() == 2 ? inputs_of(unit[1]) : Tensors();
    const Event start = device_.record_event();
    log_.begin(position, unit, last_);
    Overlapped results =
        unit.size() == 2 ? run_pair(unit[0], unit[1], inputs, gradients, start) : run_op(unit[0], inputs);
    Bytes output = 0;
    for (const at::Tensor& each : results.outputs) output += each.defined() ? static_cast<Bytes>(each.nbytes()) : 0;
    if (is_end(unit[0])) end_chain(unit[0], std::move(results.outputs));
    last_ = device_.record_event();
    for (const Op op : unit) keep(op, op.kind == Kind::forward ? results.outputs : results.input_gradients);
    log_.end(position, unit, start, last_, output);
  }

  // Both move from what they are given, and return what was made: the outputs of a forward, the gradients of its
  // inputs, or both.
  Overlapped run_op(Op op, Tensors& inputs) {
    Stage& stage = *held(op).stage;
    switch (op.kind) {
      case Kind::forward:
        return {stage.forward(op.micro_batch, std::move(inputs)), {}};
      case Kind::backward:
        return {{}, stage.backward(op.micro_batch, std::move(inputs))};
      case Kind::input_gradient:
        return {{}, stage.backward_input(op.micro_batch, std::move(inputs))};
      default:
        assert(op.kind == Kind::weight_gradient && "check_ops() has seen it");
        stage.backward_weight(op.micro_batch);
        return {};
    }
  }

  // Both streams begin at `start`; the forward's goes on when both have ended.
  Overlapped run_pair(Op ahead, Op back, Tensors& inputs, Tensors& gradients, const Event& start) {
    const PairStreams streams = {device_, stream_of(ahead), stream_of(back)};
    device_.use(streams.backward);
    device_.wait(start);
    device_.use(streams.forward);
    Overlapped results = held(ahead).stage->overlapped_forward_backward(
        ahead.micro_batch, std::move(inputs), *held(back).stage, back.micro_batch, std::move(gradients), streams);
    device_.use(streams.backward);
    const Event backward_end = device_.record_event();
    device_.use(streams.forward);
    device_.wait(backward_end);
    return results;
  }

  // The stage whose op makes what this op takes.
  [[nodiscard]] const Neighbour& source_of(Op op) const {
    return op.kind == Kind::forward ? held(op).previous : held(op).next;
  }
  // None where the op takes none: W, and at the ends of a chain, unless the caller sees to them.
  [[nodiscard]] Tensors inputs_of(Op op) {
    if (op.kind == Kind::weight_gradient) return {};
    const bool forward = op.kind == Kind::forward;
    switch (const Neighbour& from = source_of(op); from.where) {
      case Neighbour::Where::this_rank: {
        Made made = take_result(from.index, forward, op.micro_batch);
        for (at::Tensor& tensor : made.tensors) {
          if (tensor.defined()) tensor = device_.adopt(std::move(tensor), made.ready);
        }
        return std::move(made.tensors);
      }
      case Neighbour::Where::other_rank:
        return receive(op, forward);
      default:
        if (options_.ends == nullptr) return {};
        return forward ? options_.ends->inputs(op) : gradients_of_loss(op);
    }
  }

  // On the stream of the stage, where its loss was computed.
  [[nodiscard]] Tensors gradients_of_loss(Op op) {
    const Stream stream = device_.used();
    if (stream == stream_of(op)) return options_.ends->gradients(op);
    device_.use(stream_of(op));
    device_.wait(last_);
    Tensors gradients = options_.ends->gradients(op);
    const Event done = device_.record_event();
    device_.use(stream);
    device_.wait(done);
    return gradients;
  }

  [[nodiscard]] Tensors receive(Op op, bool forward) {
    const auto [message, posted] = std::exchange(receives_.at(held(op).index, forward, op.micro_batch), {});
    if (message == nullptr) {
      throw InputError(fmt::format("the program has no {} before it, which brings its input; {}",
                                   to_text(receive_for(op)), see_validate));
    }
    Received received = transport_.wait(*message);
    const Event sent = {time_of(received.arrived), received.ready.handle};
    Event arrived = sent;
    std::optional<Event> copy_begun;
    for (at::Tensor& tensor : received.tensors) {
      if (!tensor.defined()) continue;
      arrived = sent;
      tensor = device_.take(std::move(tensor), arrived);
      if (!copy_begun) copy_begun = device_.copy_begun();
      charge_to_this_thread(tensor);
    }
    log_.received(*message, posted, arrived, copy_begun);
    return std::move(received.tensors);
  }

  // An F whose result nobody takes but the step.
  [[nodiscard]] bool is_end(Op op) const {
    return op.kind == Kind::forward && held(op).next.where == Neighbour::Where::nowhere;
  }
  void end_chain(Op op, Tensors outputs) {
    at::Tensor loss =
        options_.ends == nullptr ? loss_of(op, std::move(outputs)) : options_.ends->loss(op, std::move(outputs));
    if (loss.defined()) log_.loss(std::move(loss));
  }

  // What the stage next to that of the op takes.
  void keep(Op op, Tensors& made) {
    if (op.kind == Kind::weight_gradient) return;
    const bool forward = op.kind == Kind::forward;
    const HeldStage& stage = held(op);
    if ((forward ? stage.next : stage.previous).where == Neighbour::Where::nowhere) return made.clear();
    check_made(op, made);
    results_.at(stage.index, forward, op.micro_batch) = {std::move(made), last_};
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
    Tensors gradients;
    for (const at::Tensor& parameter : untied_parameters(*held(reduction).stage)) {
      at::Tensor& gradient = parameter.mutable_grad();
      if (!gradient.defined()) gradient = parameter.detach().clone().zero_();
      gradients.push_back(gradient);
    }
    device_.finish();  // others read the gradients
    last_ = device_.record_event();
    transport_.reduce(program_.schedule.placement.sharers_of(reduction.stage), reduction.stage, gradients);
    const Event start = std::exchange(last_, device_.record_event());
    log_.message(reduction, start, last_);
  }

  static constexpr std::string_view see_validate = "validate() says what is wrong with the program";

  const Program& program_;
  const int rank_;
  const std::span<const Op> ops_;
  Transport& transport_;
  const ReplayOptions& options_;
  Device& device_;
  RankRecord& record_;

  std::vector<HeldStage> held_;         // by stage
  Table<std::optional<Made>> results_;  // not yet sent or used
  Table<Posted> receives_;
  std::vector<const Op*> reductions_;  // reached
  StepLog log_;
  Event last_;              // when the last thing ended
  Event previous_;          // the end of the last op, or pair
  Event before_previous_;   // of the one before it
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
    std::throw_with_nested(fail());
  } catch (const TransportError&) {  // another rank failed, and said why
    record.stopped_at = replay ? replay->at() : its_start;
    close_what_is_left();
    throw;
  } catch (...) {
    std::throw_with_nested(fail());
  }
}

}  // namespace dualpipe
