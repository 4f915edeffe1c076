#include "dualpipe/exec/stage/parted_stage.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <iterator>
#include <optional>
#include <utility>

namespace dualpipe::detail::stage {
namespace {

constexpr Stream exchange_stream = {Stream::Kind::exchange, 0};

}  // namespace

template <typename Run>
void PartedStage::noted(bool is_forward, Stream::Kind stream, const std::string& name, std::string_view suffix,
                        Run run) {
  if (log_ == nullptr) return run();
  const Event start = device_.record_event();
  run();
  log_->push_back({name + std::string(suffix), is_forward, stream, start, device_.record_event()});
}

// A micro-batch on its way through the parts: in their order for F; in reverse for B and I, which, where the stage
// recomputes, first go through them in order once more.
class PartedStage::Pass {
 public:
  // Computes on `stream`.
  Pass(PartedStage& stage, Device& device, Stream stream, std::uint32_t micro_batch)
      : stage_(stage), device_(device), stream_(stream), micro_batch_(micro_batch) {}

  void begin_forward(Tensors inputs) {
    is_forward_ = true;
    with_graph_ = c10::GradMode::is_enabled() && !stage_.recomputes();
    keeps_ = c10::GradMode::is_enabled();
    if (keeps_ && stage_.recomputes()) held_.inputs = inputs;
    go_forward(std::move(inputs));
  }

  void begin_backward(Tensors gradients, bool defers_weights) {
    held_ = stage_.held_.take(micro_batch_, Awaited::backward);
    gradients_ = std::move(gradients);
    defers_weights_ = keeps_ = defers_weights;
    with_graph_ = true;
    if (stage_.recomputes()) go_forward(std::exchange(held_.inputs, {}));
    for (std::size_t part = stage_.parts_.size(); part > 0; --part) steps_.push_back({part - 1, Direction::backward});
  }

  [[nodiscard]] bool has_next() const { return next_ < steps_.size(); }
  [[nodiscard]] Stream::Kind next_stream() const { return part_of(steps_[next_]).stream; }
  [[nodiscard]] bool next_is(Stream::Kind stream) const { return has_next() && next_stream() == stream; }

  void issue_next() {
    const Step step = steps_[next_++];
    if (part_of(step).stream == Stream::Kind::exchange) {
      exchange(step);
      return;
    }
    device_.use(stream_);
    if (step.direction == Direction::forward) {
      run_forward(step.part);
    } else {
      run_backward(step.part);
    }
  }

  // Puts away what is needed later, and returns the outputs, or the gradients of the inputs.
  [[nodiscard]] Tensors finish() {
    assert(!has_next());
    if (keeps_) stage_.held_.put(micro_batch_, awaited(), std::move(held_));
    return std::move(tensors_);
  }

  [[nodiscard]] Tensors run() {
    while (has_next()) issue_next();
    return finish();
  }

 private:
  enum class Direction : std::uint8_t { forward, backward };
  struct Step {
    std::size_t part = 0;
    Direction direction = Direction::forward;
  };

  [[nodiscard]] Awaited awaited() const { return is_forward_ ? Awaited::backward : Awaited::weight_gradient; }
  [[nodiscard]] const Part& part_of(Step step) const { return stage_.parts_[step.part]; }

  void go_forward(Tensors inputs) {
    assert(!stage_.parts_.empty() && stage_.parts_.back().stream == Stream::Kind::compute);
    tensors_ = std::move(inputs);
    held_.segments = std::vector<PartSegments>(stage_.parts_.size());
    for (std::size_t part = 0; part < stage_.parts_.size(); ++part) steps_.push_back({part, Direction::forward});
  }

  // What was made on the other kind of stream, on this one.
  [[nodiscard]] at::Tensor arrived() {
    const Event sent = *std::exchange(sent_, {});
    device_.wait(sent);
    return device_.adopt(std::move(tensors_[0]), sent);
  }

  void exchange(Step step) {
    device_.use(exchange_stream);
    at::Tensor sent = arrived();
    noted(Stream::Kind::exchange, part_of(step).work, again(step.direction),
          [&] { tensors_[0] = device_.exchange(std::exchange(sent, {})); });
    sent_ = device_.record_event();
  }

  template <typename Run>
  void noted(Stream::Kind stream, const Work& work, std::string_view suffix, Run run) {
    stage_.noted(is_forward_, stream, work.name, suffix, run);
  }
  // Of what a forward in front of a backward repeats.
  [[nodiscard]] std::string_view again(Direction direction) const {
    return direction == Direction::forward && !is_forward_ ? " again" : "";
  }

  void run_forward(std::size_t number) {
    const c10::AutoGradMode with_graph(with_graph_);
    const Part& part = stage_.parts_[number];
    PartSegments& segments = held_.segments[number];
    const auto run = [&](Segment& segment, const Work& work, const Tensors& inputs) {
      return segment.forward(inputs, [&](const Tensors& own) { return work.function(micro_batch_, own); });
    };
    const std::string_view suffix = again(Direction::forward);
    if (part.meanwhile.function) {
      noted(Stream::Kind::compute, part.meanwhile, suffix,
            [&] { replace_others(run(segments.meanwhile, part.meanwhile, others())); });
    }
    if (sent_) tensors_[0] = arrived();
    noted(Stream::Kind::compute, part.work, suffix, [&] { tensors_ = run(segments.segment, part.work, tensors_); });
    note_what_is_sent();
  }

  // First what others wait for.
  void run_backward(std::size_t number) {
    const Part& part = stage_.parts_[number];
    if (sent_) tensors_[0] = arrived();
    PartSegments segments = std::move(held_.segments[number]);
    std::vector<WeightGradient> of_this_part;
    {
      std::vector<WeightGradient>& kept = defers_weights_ ? held_.weight_gradients : of_this_part;
      const DeferWeightGradients defer(stage_.weight_gradients_, kept);
      noted(Stream::Kind::compute, part.work, "", [&] {
        if (number + 1 == stage_.parts_.size()) tensors_ = last_gradients(segments.segment);
        tensors_ = segments.segment.backward(tensors_);
      });
      note_what_is_sent();
      if (part.meanwhile.function) {
        noted(Stream::Kind::compute, part.meanwhile, "",
              [&] { replace_others(segments.meanwhile.backward(others())); });
      }
    }
    if (of_this_part.empty()) return;
    const c10::NoGradGuard no_gradients;
    noted(Stream::Kind::compute, part.work, " dW", [&] { run_all(of_this_part); });
  }

  // All but the first: they stay on the stream of the parts that compute.
  [[nodiscard]] Tensors others() const { return {tensors_.begin() + 1, tensors_.end()}; }
  void replace_others(Tensors others) {
    tensors_.resize(1);
    std::ranges::move(others, std::back_inserter(tensors_));
  }

  [[nodiscard]] Tensors last_gradients(const Segment& last) {
    return gradients_.empty() ? last.loss_gradients(stage_.options_.loss_scale) : std::move(gradients_);
  }

  void note_what_is_sent() {
    if (next_is(Stream::Kind::exchange)) sent_ = device_.record_event();
  }

  PartedStage& stage_;
  Device& device_;
  Stream stream_;
  std::uint32_t micro_batch_;
  Kept held_;
  bool is_forward_ = false;
  bool with_graph_ = false;
  bool keeps_ = false;           // something, for the pass that follows
  bool defers_weights_ = false;  // I does
  Tensors gradients_;            // of the outputs
  std::vector<Step> steps_;
  std::size_t next_ = 0;
  Tensors tensors_;            // between the step before and the next
  std::optional<Event> sent_;  // when the first of them was made, if on another stream than that of the next step
};

void PartedStage::add_compute(Work work, Work meanwhile) {
  parts_.push_back({Stream::Kind::compute, std::move(work), std::move(meanwhile)});
}

void PartedStage::add_exchange(std::string name) {
  assert(!parts_.empty() && parts_.back().stream == Stream::Kind::compute);
  parts_.push_back({Stream::Kind::exchange, {std::move(name), {}}, {}});
}

Tensors PartedStage::forward(std::uint32_t micro_batch, Tensors inputs) {
  Pass pass(*this, device_, device_.used(), micro_batch);
  pass.begin_forward(std::move(inputs));
  return pass.run();
}

Tensors PartedStage::backward(std::uint32_t micro_batch, Tensors gradients) {
  Pass pass(*this, device_, device_.used(), micro_batch);
  pass.begin_backward(std::move(gradients), /*defers_weights=*/false);
  return pass.run();
}

Tensors PartedStage::backward_input(std::uint32_t micro_batch, Tensors gradients) {
  Pass pass(*this, device_, device_.used(), micro_batch);
  pass.begin_backward(std::move(gradients), /*defers_weights=*/true);
  return pass.run();
}

void PartedStage::backward_weight(std::uint32_t micro_batch) {
  const c10::NoGradGuard no_gradients;
  Kept kept = held_.take(micro_batch, Awaited::weight_gradient);
  noted(/*is_forward=*/false, Stream::Kind::compute, "dW", "", [&] { run_all(kept.weight_gradients); });
}

// Step by step, the next of each: side by side on the two kinds of streams, the exchange first, as it is issued at
// once; where both compute, B's by itself. From then on they take turns.
Overlapped PartedStage::overlapped_forward_backward(std::uint32_t forward_micro_batch, Tensors inputs, Stage& back,
                                                    std::uint32_t backward_micro_batch, Tensors gradients,
                                                    const PairStreams& streams) {
  auto* const parted_back = dynamic_cast<PartedStage*>(&back);
  if (!options_.interleave || parted_back == nullptr) {
    return Stage::overlapped_forward_backward(forward_micro_batch, std::move(inputs), back, backward_micro_batch,
                                              std::move(gradients), streams);
  }
  Pass ahead(*this, streams.device, streams.forward, forward_micro_batch);
  ahead.begin_forward(std::move(inputs));
  Pass behind(*parted_back, streams.device, streams.backward, backward_micro_batch);
  behind.begin_backward(std::move(gradients), /*defers_weights=*/false);
  while (ahead.has_next() && behind.has_next()) {
    if (ahead.next_stream() == behind.next_stream()) {
      behind.issue_next();
      continue;
    }
    const bool ahead_exchanges = ahead.next_is(Stream::Kind::exchange);
    (ahead_exchanges ? ahead : behind).issue_next();
    (ahead_exchanges ? behind : ahead).issue_next();
  }
  Overlapped result;
  result.outputs = ahead.run();
  result.input_gradients = behind.run();
  return result;
}

}  // namespace dualpipe::detail::stage
