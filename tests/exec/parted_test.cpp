#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/stage/parted_stage.h"
#include "dualpipe/sim/schedule/program.h"
#include "tests/exec/stream_check.h"
#include "tests/exec/training.h"

namespace dualpipe::test {

using detail::stage::PartedStage;
using detail::stage::WeightGradients;

namespace {

namespace data = boost::unit_test::data;

// --- the order in which parts are issued

using Log = std::vector<std::string>;

// Says what a device is asked for. The tensors of a micro-batch have one value, which tells them apart.
class LoggingDevice final : public StreamCheck {
 public:
  explicit LoggingDevice(Log& log) : log_(log) {}

  void note(const std::string& what) {
    const Stream stream = used();
    log_.push_back(
        fmt::format("{}{}: {}", stream.kind == Stream::Kind::compute ? "stream " : "exchange ", stream.index, what));
  }
  [[nodiscard]] Event record_event() override {
    note("event");
    return StreamCheck::record_event();
  }
  [[nodiscard]] at::Tensor exchange(const at::Tensor& tensor) override {
    note(fmt::format("of {}", tensor.sum().item<double>()));
    return StreamCheck::exchange(tensor);
  }

 private:
  Log& log_;
};

// The identity, which tells of its forward, its backward and its weight gradient.
struct Told : torch::autograd::Function<Told> {
  struct Teller {
    LoggingDevice& device;
    WeightGradients& gradients;
    std::string name;
  };

  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const Teller* teller) {
    context->saved_data["teller"] = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(teller));
    teller->device.note(teller->name);
    return x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto* const teller = reinterpret_cast<const Teller*>(context->saved_data["teller"].toInt());
    teller->device.note(teller->name + "'");
    teller->gradients.add([teller] { teller->device.note(teller->name + " dW"); });
    return {gradients[0].clone(), {}};
  }
};

// The parts of `layers` layers of a mixture of experts, without what they compute.
class ToldStage final : public PartedStage {
 public:
  ToldStage(LoggingDevice& device, const std::string& name, int layers, const Options& options)
      : PartedStage(device, options), device_(device), name_(name) {
    for (int i = 0; i < layers; ++i) {
      add_compute({"attention", [this](auto, const Tensors& in) { return Tensors{told("attention", in[0]), in[0]}; }});
      add_exchange("dispatch");
      add_compute({"experts",
                   [this](auto, const Tensors& in) {
                     return Tensors{told("experts", in[0]), in[1]};
                   }},
                  {"shared", [this](auto, const Tensors& in) { return Tensors{told("shared", in[0])}; }});
      add_exchange("combine");
    }
    add_compute({"end", [this](auto, const Tensors& in) { return Tensors{told("end", in[0])}; }});
  }

  [[nodiscard]] std::vector<NamedTensor> named_parameters() override { return {}; }

 private:
  at::Tensor told(const std::string& part, const at::Tensor& x) {
    tellers_.push_back(std::make_unique<Told::Teller>(Told::Teller{device_, weight_gradients(), name_ + " " + part}));
    return Told::apply(x, tellers_.back().get());
  }

  LoggingDevice& device_;
  std::string name_;
  std::vector<std::unique_ptr<Told::Teller>> tellers_;
};

constexpr Stream forward_stream = {Stream::Kind::compute, 0};
constexpr Stream backward_stream = {Stream::Kind::compute, 1};

// What a pair of stages of so many layers does; the forward's tensors are 1, the backward's 2.
Log log_of_pair(int forward_layers, int backward_layers, bool interleave = true,
                Recompute recompute = Recompute::none) {
  Log log;
  LoggingDevice device(log);
  ToldStage ahead(device, "F", forward_layers, {1, recompute, interleave});
  ToldStage behind(device, "B", backward_layers, {1, recompute, interleave});
  device.use(backward_stream);
  const Tensors outputs = behind.forward(0, {at::zeros({1})});
  device.finish();
  log.clear();
  device.use(forward_stream);
  const at::Tensor input = at::ones({1});
  device.use(backward_stream);
  const at::Tensor gradient = at::full({1}, 2.0);
  const Overlapped result =
      ahead.overlapped_forward_backward(1, {input}, behind, 0, {gradient}, {device, forward_stream, backward_stream});
  BOOST_TEST((device.used().kind == Stream::Kind::compute));
  BOOST_TEST(device.races() == Log{}, boost::test_tools::per_element());
  device.finish();
  BOOST_TEST(result.outputs.at(0).item<double>() == 1);
  BOOST_TEST(result.input_gradients.at(0).item<double>() == 2);
  return log;
}

BOOST_AUTO_TEST_SUITE(exec_parted)

// The drawing in parted_stage.h.
BOOST_AUTO_TEST_CASE(a_pair_is_interleaved_like_deepseeks) {
  const Log expected = {
      "stream 1: B end'",    "stream 1: event",        "stream 1: B end dW",
      "exchange 0: of 2",  // combine'
      "exchange 0: event",   "stream 0: F attention",  "stream 0: event",
      "exchange 0: of 1",  // dispatch
      "exchange 0: event",   "stream 1: B experts'",
      "stream 1: event",  // for dispatch', which waits for no more
      "stream 1: B shared'", "stream 1: B experts dW", "stream 1: B shared dW",
      "exchange 0: of 2",  // dispatch'
      "exchange 0: event",   "stream 0: F shared",     "stream 0: F experts",      "stream 0: event",
      "exchange 0: of 1",  // combine
      "exchange 0: event",   "stream 1: B attention'", "stream 1: B attention dW", "stream 0: F end",
  };
  BOOST_TEST(log_of_pair(1, 1) == expected, boost::test_tools::per_element());
}

// What computes, and what is exchanged, in the order of the streams' work; events left out.
Log without_events(Log log) {
  std::erase_if(log, [](const std::string& line) { return line.ends_with("event"); });
  return log;
}

BOOST_AUTO_TEST_CASE(not_interleaved_it_is_a_forward_and_a_backward) {
  const Log expected = {
      "stream 0: F attention", "exchange 0: of 1",     "stream 0: F shared",     "stream 0: F experts",
      "exchange 0: of 1",      "stream 0: F end",      "stream 1: B end'",       "stream 1: B end dW",
      "exchange 0: of 2",      "stream 1: B experts'", "stream 1: B shared'",    "stream 1: B experts dW",
      "stream 1: B shared dW", "exchange 0: of 2",     "stream 1: B attention'", "stream 1: B attention dW",
  };
  BOOST_TEST(without_events(log_of_pair(1, 1, false)) == expected, boost::test_tools::per_element());
}

// From the first step on, whatever one computes beside the other's exchange; each part once.
BOOST_DATA_TEST_CASE(pairs_of_any_lengths_take_turns, data::xrange(4) * data::xrange(4), forward_layers,
                     backward_layers) {
  for (const Recompute recompute : {Recompute::none, Recompute::full}) {
    const Log log = without_events(log_of_pair(forward_layers, backward_layers, true, recompute));
    const auto count = [&](std::string_view text) {
      return std::ranges::count_if(log, [&](const std::string& line) { return line.ends_with(text); });
    };
    const int again = recompute == Recompute::full ? backward_layers : 0;
    BOOST_TEST(count("F attention") == forward_layers);
    BOOST_TEST(count("B attention") == again);
    BOOST_TEST(count("B experts'") == backward_layers);
    BOOST_TEST(count("B shared dW") == backward_layers);
    BOOST_TEST(count("of 1") == 2 * forward_layers);
    BOOST_TEST(count("F end") == 1);
    BOOST_TEST(count("B end dW") == 1);
    // While both have parts left, no stream of a pass has two parts in a row.
    if (recompute == Recompute::none && forward_layers == backward_layers && forward_layers > 0) {
      const auto kinds = [&](char pass) {
        std::string text;
        for (const std::string& line : log) {
          if (line.starts_with("exchange")) {
            text += line.ends_with("1") == (pass == 'F') ? "X" : "-";
          } else if (!line.ends_with("dW") && line.find("shared") == std::string::npos) {
            text += line[line.find(": ") + 2] == pass ? "C" : "-";
          }
        }
        return text;
      };
      const std::string forward = kinds('F');
      const std::string backward = kinds('B');
      for (std::size_t step = 1; step + 1 < forward.size(); step += 2) {  // two parts: one of each, of either kind
        BOOST_TEST((forward[step] == '-') == (forward[step + 1] != '-'), forward << " " << backward);
        BOOST_TEST((forward[step] == 'X' || backward[step] == 'X'), forward << " " << backward);  // it comes first
      }
    }
  }
}

// --- the streams

BOOST_AUTO_TEST_CASE(the_check_of_streams_notices_races) {
  const Stream exchange = {Stream::Kind::exchange, 0};
  const auto notices = [&](const std::function<void(StreamCheck&)>& run) {
    StreamCheck device;
    device.use(forward_stream);
    run(device);
    return !device.races().empty();
  };
  const auto is_right = [&](StreamCheck& device) {
    const at::Tensor x = at::ones({3});
    const Event ready = device.record_event();
    device.use(exchange);
    device.wait(ready);
    static_cast<void>(device.adopt(x, ready).add(1));
  };
  BOOST_TEST(!notices(is_right));
  const auto not_adopted = [&](StreamCheck& device) {
    const at::Tensor x = at::ones({3});
    const Event ready = device.record_event();
    device.use(exchange);
    device.wait(ready);
    static_cast<void>(x.add(1));
  };
  BOOST_TEST(notices(not_adopted));
  const auto without_wait = [&](StreamCheck& device) {
    const at::Tensor x = at::ones({3});
    const Event ready = device.record_event();
    device.use(exchange);
    static_cast<void>(device.adopt(x, ready).add(1));
  };
  BOOST_TEST(notices(without_wait));
  const auto recorded_too_early = [&](StreamCheck& device) {
    const Event early = device.record_event();
    const at::Tensor x = at::ones({3});
    device.use(exchange);
    device.wait(early);
    static_cast<void>(device.adopt(x, early));
  };
  BOOST_TEST(notices(recorded_too_early));
  const auto changed_behind_the_event = [&](StreamCheck& device) {
    at::Tensor x = at::ones({3});
    const Event ready = device.record_event();
    x.add_(1);
    device.use(exchange);
    device.wait(ready);
    static_cast<void>(device.adopt(x, ready));
  };
  BOOST_TEST(notices(changed_behind_the_event));
  const auto of_the_step_before = [&](StreamCheck& device) {
    const at::Tensor x = at::ones({3});
    device.begin_step();
    const Event ready = device.record_event();
    device.use(exchange);
    device.wait(ready);
    static_cast<void>(x.add(1));
  };
  BOOST_TEST(!notices(of_the_step_before));
  const auto settled = [&](StreamCheck& device) {
    const at::Tensor x = at::ones({3});
    device.finish();
    device.use(exchange);
    static_cast<void>(x.add(1));
  };
  BOOST_TEST(!notices(settled));
}

// What a stage forgets to do if its device does not.
class Deaf : public StreamCheck {
 public:
  void wait(const Event&) override {}
};
class Careless : public StreamCheck {
 public:
  [[nodiscard]] at::Tensor adopt(at::Tensor tensor, const Event&) override { return tensor; }
};

// The streams of all ranks of a training.
template <typename Checked>
class CheckedHardware final : public Hardware {
 public:
  [[nodiscard]] std::string description() const override { return "streams that are checked"; }
  [[nodiscard]] std::unique_ptr<Device> device(int, int, int) override { return std::make_unique<Reporting>(*this); }

  std::vector<std::string> races;
  int crossings = 0;

 private:
  class Reporting final : public Checked {
   public:
    explicit Reporting(CheckedHardware& hardware) : hardware_(hardware) {}
    ~Reporting() override {
      const std::scoped_lock lock(hardware_.mutex_);
      hardware_.races.insert(hardware_.races.end(), this->races().begin(), this->races().end());
      hardware_.crossings += this->crossings();
    }

   private:
    CheckedHardware& hardware_;
  };
  std::mutex mutex_;
};

TrainOptions moe_on(const Program& program, Hardware& hardware) {
  TrainOptions options = tiny(program, "moe");
  options.steps = 2;
  options.hardware = &hardware;
  return options;
}

BOOST_DATA_TEST_CASE(no_tensor_crosses_streams_unordered, data::make(family_names()), name) {
  const Program program = program_of(name, 2);
  for (const bool interleave : {true, false}) {
    for (const Recompute recompute : {Recompute::none, Recompute::full}) {
      CheckedHardware<StreamCheck> hardware;
      TrainOptions options = moe_on(program, hardware);
      options.shape.interleave = interleave;
      options.shape.recompute = recompute;
      static_cast<void>(train(program, options));
      BOOST_TEST(hardware.races == Log{}, boost::test_tools::per_element());
      BOOST_TEST(hardware.crossings > 0);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_wait_or_an_adoption_less_is_noticed) {
  const Program program = program_of("dualpipe", 2);
  CheckedHardware<Deaf> deaf;
  static_cast<void>(train(program, moe_on(program, deaf)));
  BOOST_TEST(deaf.races.size() > 0U);
  CheckedHardware<Careless> careless;
  static_cast<void>(train(program, moe_on(program, careless)));
  BOOST_TEST(careless.races.size() > 0U);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
