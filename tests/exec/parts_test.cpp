#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <deque>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/stage/parted_stage.h"
#include "dualpipe/exec/train/records.h"
#include "dualpipe/sim/schedule/program.h"
#include "tests/exec/training.h"

namespace dualpipe::test {

using detail::stage::PartedStage;
using detail::stage::WeightGradients;
using detail::train::pack;
using detail::train::unpack_record;
using detail::transport::Packer;
using detail::transport::Unpacker;

namespace {

namespace data = boost::unit_test::data;
using Names = std::vector<std::string>;

// --- a device whose streams run side by side, in a time that passes only where work is put

class VirtualStreams final : public Device {
 public:
  static constexpr Time exchange_time = 30;

  [[nodiscard]] at::Device where() const override { return at::kCPU; }
  void begin_step() override {}
  void use(Stream stream) override { used_ = stream; }
  [[nodiscard]] Stream used() const override { return used_; }
  [[nodiscard]] Event record_event() override { return {0, &events_.emplace_back(time())}; }
  void wait(const Event& event) override { time() = std::max(time(), time_of(event)); }
  [[nodiscard]] at::Tensor adopt(at::Tensor tensor, const Event& ready) override {
    wait(ready);
    return tensor;
  }
  [[nodiscard]] at::Tensor take(at::Tensor tensor, Event& ready) override { return adopt(std::move(tensor), ready); }
  [[nodiscard]] at::Tensor exchange(const at::Tensor& tensor) override {
    work(exchange_time);
    return tensor.clone();
  }
  void finish() override {}
  [[nodiscard]] Time time_of(const Event& event) const override { return *static_cast<const Time*>(event.handle); }

  void work(Time duration) { time() += duration; }

 private:
  [[nodiscard]] Time& time() { return times_[{used_.kind, used_.index}]; }

  Stream used_;
  std::map<std::pair<Stream::Kind, std::uint16_t>, Time> times_;  // that each stream has come to
  std::deque<Time> events_;
};

class VirtualHardware final : public Hardware {
 public:
  [[nodiscard]] std::string description() const override { return "virtual streams"; }
  [[nodiscard]] std::unique_ptr<Device> device(int, int, int) override { return std::make_unique<VirtualStreams>(); }
};

// The identity, which takes a time: forward, backward, and for its weight gradient.
struct Working : torch::autograd::Function<Working> {
  struct Work {
    VirtualStreams& device;
    WeightGradients& gradients;
    Time time;
  };

  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const Work* work) {
    context->saved_data["work"] = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(work));
    work->device.work(work->time);
    return x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto* const work = reinterpret_cast<const Work*>(context->saved_data["work"].toInt());
    work->device.work(work->time);
    work->gradients.add([work] { work->device.work(work->time); });
    return {gradients[0].clone(), {}};
  }
};

// One layer, as in the drawing in parted_stage.h.
class WorkingStage final : public PartedStage {
 public:
  explicit WorkingStage(VirtualStreams& device) : PartedStage(device, {}), device_(device) {
    add_compute({"attention", [this](auto, const Tensors& in) { return Tensors{take(20, in[0]), in[0]}; }});
    add_exchange("dispatch");
    add_compute({"experts",
                 [this](auto, const Tensors& in) {
                   return Tensors{take(20, in[0]), in[1]};
                 }},
                {"shared", [this](auto, const Tensors& in) { return Tensors{take(5, in[0])}; }});
    add_exchange("combine");
    add_compute({"sum", [this](auto, const Tensors& in) { return Tensors{take(10, in[0])}; }});
  }
  [[nodiscard]] std::vector<NamedTensor> named_parameters() override { return {}; }

 private:
  at::Tensor take(Time time, const at::Tensor& x) {
    works_.push_back(std::make_unique<Working::Work>(Working::Work{device_, weight_gradients(), time}));
    return Working::apply(x, works_.back().get());
  }

  VirtualStreams& device_;
  std::vector<std::unique_ptr<Working::Work>> works_;
};

Names text_of(const PartLog& log, const Device& device, Time zero) {
  Names lines;
  for (const NotedPart& part : log) {
    lines.push_back(fmt::format("{} {} {}: {}-{}", part.stream == Stream::Kind::exchange ? "exchange" : "compute",
                                part.is_forward ? 'F' : 'B', part.name, device.time_of(part.start) - zero,
                                device.time_of(part.end) - zero));
  }
  return lines;
}

// --- what a training's parts must be

// Of an op of moe, in the order in which it issues them.
Names names_of(Op op, int layers, bool is_last, bool recomputes) {
  if (op.kind == Kind::weight_gradient) return {"dW"};
  const std::string end = is_last ? "head" : "sum";
  Names forward;
  for (int i = 0; i < layers; ++i) {
    for (const char* name : {"attention", "dispatch", "shared", "experts", "combine"}) forward.emplace_back(name);
  }
  forward.push_back(end);
  if (op.kind == Kind::forward) return forward;

  Names names;
  const auto add = [&](const std::string& name, bool has_weights = false) {
    names.push_back(name);
    if (has_weights && op.kind == Kind::backward) names.push_back(name + " dW");
  };
  if (recomputes) {
    for (const std::string& name : forward) add(name + " again");
  }
  add(end, is_last);
  for (int i = 0; i < layers; ++i) {
    for (const char* name : {"combine", "experts", "shared"}) add(name);
    if (op.kind == Kind::backward) names.emplace_back("experts dW");
    add("dispatch");
    add("attention", true);
  }
  return names;
}

bool is_exchange(const std::string& name) { return name.starts_with("dispatch") || name.starts_with("combine"); }

// Every part of every op of the rank once, in its order and on its stream, while the op runs.
void check_parts(const Program& program, int rank, const RankRecord& record, const ModelShape& shape) {
  const Placement& placement = program.schedule.placement;
  const auto ops = program.schedule.rank(rank);
  std::map<std::string, Names> found;
  std::map<std::string, Span> spans;
  for (std::size_t i = 0; i < ops.size(); ++i) spans[to_text(ops[i])] = record.ops[i];
  for (const PartSpan& part : record.parts) {
    const std::string op = to_text(part.op);
    found[op].push_back(part.name);
    BOOST_TEST((part.lane == PartSpan::Lane::exchange) == is_exchange(part.name), part.name);
    BOOST_TEST(!part.op.with_next);
    BOOST_TEST(spans.at(op).start <= part.span.start, part.name << " of " << op);
    BOOST_TEST(part.span.start <= part.span.end, part.name << " of " << op);
    BOOST_TEST(part.span.end <= spans.at(op).end, part.name << " of " << op);
  }
  for (const Op op : ops) {
    const auto per_chain = static_cast<int>(shape.layers.size());
    const Names expected = names_of(op, shape.layers[static_cast<std::size_t>(op.stage % per_chain)],
                                    !placement.next(op.stage).has_value(), shape.recompute == Recompute::full);
    BOOST_TEST_CONTEXT(to_text(op)) { BOOST_TEST(found[to_text(op)] == expected, boost::test_tools::per_element()); }
  }
}

TrainOptions noting(const Program& program, const std::string& model = "moe") {
  TrainOptions options = tiny(program, model);
  options.note_parts = true;
  return options;
}

std::size_t part_count(const RankRecords& records) {
  std::size_t count = 0;
  for (const RankRecord& record : records) count += record.parts.size();
  return count;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_parts)

// What an exchange hides can be seen: the streams wait for nothing but what they need.
BOOST_AUTO_TEST_CASE(parts_of_a_pair_lie_side_by_side) {
  VirtualStreams device;
  WorkingStage ahead(device);
  WorkingStage behind(device);
  const PairStreams streams{device, {Stream::Kind::compute, 0}, {Stream::Kind::compute, 1}};
  device.use(streams.backward);
  static_cast<void>(behind.forward(0, {at::zeros({1})}));
  const Event begin = device.record_event();
  for (const Stream stream : {streams.forward, Stream{Stream::Kind::exchange, 0}}) {
    device.use(stream);
    device.wait(begin);
  }
  PartLog log;
  ahead.note_parts(&log);
  behind.note_parts(&log);
  device.use(streams.forward);
  static_cast<void>(ahead.overlapped_forward_backward(1, {at::zeros({1})}, behind, 0, {at::zeros({1})}, streams));
  const Names expected = {
      "compute B sum: 0-10",          "compute B sum dW: 10-20",         "exchange B combine: 10-40",
      "compute F attention: 0-20",    "exchange F dispatch: 40-70",      "compute B experts: 40-60",
      "compute B shared: 60-65",      "compute B experts dW: 65-90",     "exchange B dispatch: 70-100",
      "compute F shared: 20-25",      "compute F experts: 70-90",        "exchange F combine: 100-130",
      "compute B attention: 100-120", "compute B attention dW: 120-140", "compute F sum: 130-140",
  };
  BOOST_TEST(text_of(log, device, device.time_of(begin)) == expected, boost::test_tools::per_element());

  ahead.note_parts(nullptr);
  behind.note_parts(nullptr);
  static_cast<void>(ahead.forward(2, {at::zeros({1})}));
  BOOST_TEST(log.size() == expected.size());
}

BOOST_DATA_TEST_CASE(every_part_of_every_op_is_there_once_and_within_it, data::make(family_names()), name) {
  const Program program = program_of(name, 2);
  VirtualHardware virtual_streams;
  for (const bool interleave : {true, false}) {
    for (const Recompute recompute : {Recompute::none, Recompute::full}) {
      for (Hardware* const hardware : {static_cast<Hardware*>(nullptr), static_cast<Hardware*>(&virtual_streams)}) {
        TrainOptions options = noting(program);
        options.shape.interleave = interleave;
        options.shape.recompute = recompute;
        options.hardware = hardware;
        const TrainResult result = train(program, options);
        for (int rank = 0; rank < 2; ++rank) {
          check_parts(program, rank, result.records[static_cast<std::size_t>(rank)], options.shape);
        }
      }
    }
  }
}

// A core has one thing to do at a time.
BOOST_AUTO_TEST_CASE(on_the_host_parts_run_in_turn) {
  const Program program = program_of("dualpipe", 2);
  const TrainResult result = train(program, noting(program));
  for (const RankRecord& record : result.records) {
    for (std::size_t i = 1; i < record.parts.size(); ++i) {
      BOOST_TEST(record.parts[i - 1].span.end <= record.parts[i].span.start);
    }
  }
}

BOOST_AUTO_TEST_CASE(evaluation_has_parts_of_forwards) {
  const Program program = program_of("dualpipe", 2);
  TrainOptions options = noting(program);
  options.forward_only = true;
  const TrainResult result = train(program, options);
  BOOST_TEST(part_count(result.records) > 0U);
  for (const RankRecord& record : result.records) {
    for (const PartSpan& part : record.parts) BOOST_TEST((part.op.kind == Kind::forward));
  }
}

BOOST_AUTO_TEST_CASE(nothing_is_noted_where_nobody_asks_or_nothing_is_parted) {
  const Program program = program_of("dualpipe", 2);
  TrainOptions options = noting(program);
  options.note_parts = false;
  BOOST_TEST(part_count(train(program, options).records) == 0U);
  BOOST_TEST(part_count(train(program, noting(program, "gpt")).records) == 0U);
}

// They are many, and one step's are shown.
BOOST_AUTO_TEST_CASE(parts_are_kept_of_one_step) {
  const Program program = program_of("dualpipe", 2);
  TrainOptions options = noting(program);
  options.warmup = 4;
  options.steps = 3;
  options.measure_passes = true;
  const TrainResult result = train(program, options);
  BOOST_TEST(part_count(result.records) > 0U);
  for (const auto* const steps : {&result.warm_up, &result.warm_up_apart, &result.measured}) {
    BOOST_TEST(!steps->empty());
    for (const RankRecords& step : *steps) BOOST_TEST(part_count(step) == 0U);
  }
}

BOOST_AUTO_TEST_CASE(a_timeline_has_the_parts_of_all_ranks_by_its_own_clock) {
  const Program program = program_of("dualpipe", 2);
  const TrainResult result = train(program, noting(program));
  const Timeline timeline = merge(program, result.records);
  BOOST_TEST_REQUIRE(timeline.parts.size() == part_count(result.records));
  const auto first = std::ranges::find(program.schedule.ops, timeline.parts[0].op);
  const auto place = static_cast<std::size_t>(first - program.schedule.ops.begin());
  BOOST_TEST(timeline.ops[place].start <= timeline.parts[0].span.start);
  BOOST_TEST(timeline.parts[0].span.end <= timeline.ops[place].end);
  const Time zero = result.records[0].parts[0].span.start - timeline.parts[0].span.start;
  for (std::size_t i = 0; i < result.records[1].parts.size(); ++i) {
    const PartSpan& merged = timeline.parts[result.records[0].parts.size() + i];
    BOOST_TEST(merged.name == result.records[1].parts[i].name);
    BOOST_TEST(merged.span.end == result.records[1].parts[i].span.end - zero);
  }
}

BOOST_AUTO_TEST_CASE(a_record_goes_to_another_process_with_its_parts) {
  const Program program = program_of("dualpipe", 2);
  const RankRecord sent = train(program, noting(program)).records[1];
  Packer packer;
  pack(packer, sent, 1000);
  const std::string bytes = packer.take();
  Unpacker unpacker(bytes);
  const RankRecord got = unpack_record(unpacker, program, 1);
  BOOST_TEST(unpacker.at_end());
  std::vector<PartSpan> expected = sent.parts;
  for (PartSpan& part : expected) part.span = {part.span.start + 1000, part.span.end + 1000};
  BOOST_TEST((got.parts == expected));
  BOOST_TEST(!expected.empty());
}

// The parts of what has run are there; of the op that failed none, though it had begun.
BOOST_AUTO_TEST_CASE(a_failed_run_has_the_parts_of_what_it_did) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = noting(program);
  options.before_op = [](int rank, Op op) {
    if (rank == 1 && op.kind == Kind::backward && op.micro_batch == 1) throw std::runtime_error("no more");
  };
  int failures = 0;
  TrainObserver observer;
  observer.on_failure = [&](int, const Program& ran, std::span<const RankRecord> records) {
    ++failures;
    const PartialRun partial = reached(ran, records);
    Names ops;
    for (const PartSpan& part : merge(partial.program, partial.records).parts) {
      if (part.op.stage == 1 && (ops.empty() || ops.back() != to_text(part.op))) ops.push_back(to_text(part.op));
    }
    const Names expected = {"1F0", "1B0", "1F1"};
    BOOST_TEST(ops == expected, boost::test_tools::per_element());
  };
  BOOST_CHECK_THROW((void)train(program, options, observer), ReplayError);
  BOOST_TEST(failures == 1);
}

BOOST_AUTO_TEST_CASE(observers_hear_what_ranks_run_on) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = tiny(program, "mlp");
  Names heard;
  TrainObserver observer;
  observer.on_begin = [&](std::span<const std::string> devices) {
    heard.insert(heard.end(), devices.begin(), devices.end());
  };
  (void)train(program, options, observer);
  VirtualHardware hardware;
  options.hardware = &hardware;
  (void)train(program, options, observer);
  const Names expected = {"cpu", "cpu", "virtual streams", "virtual streams"};
  BOOST_TEST(heard == expected, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
