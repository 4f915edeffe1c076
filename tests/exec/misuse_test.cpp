// What a user of the library can get wrong, in a program made by hand or read from a file, or in stages of his own: it
// ends with an error that says where, and what to do.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/model/device_data.h"
#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/stage/segment.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "tests/exec/training.h"
#include "tests/support.h"

namespace dualpipe::test {

using detail::model::DeviceData;
using detail::stage::Segment;

namespace {

using namespace std::chrono_literals;
namespace data = boost::unit_test::data;

// Gives what it is told to, and asks for nothing.
class ToldStage final : public Stage {
 public:
  Tensors outputs = {at::scalar_tensor(1.0)};
  Tensors gradients = {at::scalar_tensor(2.0)};

  Tensors forward(std::uint32_t, Tensors) override { return outputs; }
  Tensors backward(std::uint32_t, Tensors) override { return gradients; }
  Tensors backward_input(std::uint32_t, Tensors) override { return gradients; }
  void backward_weight(std::uint32_t) override {}
  std::vector<NamedTensor> named_parameters() override { return {}; }
};

// The stages of all ranks, and what one rank says to them.
struct Ranks {
  explicit Ranks(Program its_program) : program(std::move(its_program)) {
    const auto count = program.schedule.placement.rank_of.size();
    for (std::size_t i = 0; i < count; ++i) stages.push_back(own.emplace_back(std::make_unique<ToldStage>()).get());
    transports = thread_transports(program.schedule.placement, {20s, 0ns});
  }

  std::string error_of(int rank, RankRecord* record = nullptr) {
    RankRecord own_record;
    const auto place = static_cast<std::size_t>(rank < 0 || rank >= std::ssize(transports) ? 0 : rank);
    try {
      replay(program, rank, stages, *transports[place], record == nullptr ? own_record : *record);
    } catch (const ReplayError& error) {
      return error.what();
    } catch (const TransportError& error) {
      return fmt::format("told: {}", error.what());
    }
    return "";
  }

  Program program;
  std::vector<std::unique_ptr<ToldStage>> own;
  std::vector<Stage*> stages;
  std::vector<std::unique_ptr<Transport>> transports;
};

Program two_ranks() { return lower(generate("1f1b", {2, 2, 1})); }

constexpr auto see = "; validate() says what else is wrong with the program";

BOOST_AUTO_TEST_SUITE(exec_misuse)

BOOST_AUTO_TEST_CASE(a_stage_that_is_not_given_ends_all_ranks_at_once) {
  Ranks ranks(two_ranks());
  ranks.stages[1] = nullptr;
  const std::string expected =
      "rank 1 failed in its start: rank 1 holds stage 1, and no Stage is given for it; stages are given by their "
      "number "
      "in the placement";
  const auto begin = std::chrono::steady_clock::now();
  std::string of_other;
  std::thread other([&] { of_other = ranks.error_of(0); });
  RankRecord record;
  BOOST_TEST(ranks.error_of(1, &record) == expected);
  other.join();
  BOOST_TEST(of_other == "told: " + expected);
  BOOST_TEST((std::chrono::steady_clock::now() - begin < 10s));  // well within the timeout
  BOOST_TEST(record.stopped_at == "its start");
  BOOST_TEST(record.done == 0U);
  BOOST_TEST(record.ops.size() == 4U);  // so that merge() takes it
}

BOOST_AUTO_TEST_CASE(ranks_and_stages_are_those_of_the_program) {
  Ranks ranks(two_ranks());
  BOOST_TEST(ranks.error_of(2) == "rank 2 failed in its start: the program has 2 ranks, from 0 on, and no rank 2");
  BOOST_TEST(ranks.error_of(-1) == "rank -1 failed in its start: the program has 2 ranks, from 0 on, and no rank -1");
  RankRecord record;
  ReplayOptions without_device;
  without_device.device = nullptr;
  BOOST_CHECK_EXCEPTION(replay(ranks.program, 0, ranks.stages, *ranks.transports[0], record, without_device),
                        ReplayError, [](const ReplayError& error) {
                          return std::string(error.what()).find("no device is given") != std::string::npos;
                        });
  ranks.stages.pop_back();
  BOOST_TEST(
      ranks.error_of(0) ==
      "rank 0 failed in its start: the placement has 2 stages, and 1 are given: there must be one for each, null "
      "for those of other ranks");
}

BOOST_AUTO_TEST_CASE(a_program_is_of_one_piece) {
  const auto refused = [](const std::function<void(Program&)>& spoil) {
    Program program = two_ranks();
    spoil(program);
    return Ranks(std::move(program))
        .error_of(0)
        .starts_with("rank 0 failed in its start: the program is not of one piece");
  };
  BOOST_TEST(refused([](Program& program) { program.slot_begin.clear(); }));
  BOOST_TEST(refused([](Program& program) { program.slot_begin.pop_back(); }));
  BOOST_TEST(refused([](Program& program) { program.slot_begin[1] = 1000; }));
  BOOST_TEST(refused([](Program& program) { program.communication.pop_back(); }));
  BOOST_TEST(refused([](Program& program) { program.schedule.ops.pop_back(); }));
  BOOST_TEST(refused([](Program& program) { program.schedule.rank_begin.clear(); }));
  BOOST_TEST(refused([](Program& program) { program.schedule.rank_begin = {0, 9, 8}; }));
}

// In rank 0 of "0F0 0F1 0B0 0B1".
BOOST_AUTO_TEST_CASE(an_op_that_the_rank_cannot_do_is_refused_before_it_runs) {
  const auto error = [](std::size_t place, Op op) {
    Program program = two_ranks();
    program.schedule.ops[place] = op;
    return Ranks(std::move(program)).error_of(0);
  };
  const std::string start = "rank 0 failed in its start: rank 0, op ";
  BOOST_TEST(error(1, {1, 9, Kind::forward, false}) ==
             start + "1, 9F1: there is no stage 9, the placement has 2" + see);
  BOOST_TEST(error(1, {7, 0, Kind::forward, false}) == start + "1, 0F7: there is no micro-batch 7" + see);
  BOOST_TEST(error(1, {1, 1, Kind::forward, false}) == start + "1, 1F1: stage 1 is held by rank 1" + see);
  BOOST_TEST(error(1, {1, 0, Kind::send_forward, false}) ==
             start + "1, 0SEND_F1: is communication, and a schedule holds only F, B, I and W" + see);
  BOOST_TEST(error(1, {1, 0, Kind::backward, true}).starts_with(start + "1, 0B1: cannot overlap with 0B0"));
  BOOST_TEST(error(1, {0, 0, Kind::forward, true}).starts_with(start + "1, 0F0: cannot overlap with 0B0"));
  BOOST_TEST(error(3, {1, 0, Kind::backward, true}).starts_with(start + "3, 0B1: is the first half of an F&B pair"));
}

BOOST_AUTO_TEST_CASE(a_message_that_the_rank_cannot_send_or_get_is_refused) {
  const auto error = [](Op op) {
    Program program = two_ranks();
    program.communication[0] = op;
    return Ranks(std::move(program)).error_of(0);
  };
  const std::string start = "rank 0 failed in its start: rank 0, slot 1, ";
  BOOST_TEST(error({0, 9, Kind::send_forward, false}) ==
             start + "9SEND_F0: there is no stage 9, the placement has 2" + see);
  BOOST_TEST(error({0, 1, Kind::send_backward, false}) == start + "1SEND_B0: stage 1 is held by rank 1" + see);
  BOOST_TEST(error({0, 0, Kind::receive_forward, false}) ==
             start + "0RECV_F0: is a message that no stage on another rank needs or makes" + see);
  BOOST_TEST(error({0, 0, Kind::forward, false}).starts_with("rank 0 failed in its start: rank 0, op 1, 0F0"));
}

BOOST_AUTO_TEST_CASE(a_message_that_is_missing_or_misplaced_is_named) {
  const auto error = [](int rank, const std::vector<std::string>& ops) {
    return Ranks(program_of(straight(2, 1), ops)).error_of(rank);
  };
  const std::string rest = "validate() says what is wrong with the program";
  const std::string other = "1RECV_F0 1F0 1B0 1SEND_B0";
  BOOST_TEST(error(1, {"0F0 0SEND_F0 0RECV_B0 0B0", "1F0 1B0 1SEND_B0"}) ==
             "rank 1 failed in 1F0: the program has no 1RECV_F0 before it, which brings its input; " + rest);
  BOOST_TEST(error(0, {"0F0 0SEND_F0 0B0", other}) ==
             "rank 0 failed in 0B0: the program has no 0RECV_B0 before it, which brings its input; " + rest);
  BOOST_TEST(error(0, {"0SEND_F0 0F0 0RECV_B0 0B0", other}) ==
             "rank 0 failed in 0SEND_F0: what it takes has not been made yet, or was taken before; " + rest);
  BOOST_TEST(error(0, {"0F0 0SEND_F0 0SEND_F0 0RECV_B0 0B0", other}) ==
             "rank 0 failed in 0SEND_F0: what it takes has not been made yet, or was taken before; " + rest);
}

BOOST_AUTO_TEST_CASE(an_op_before_the_one_that_it_needs_is_named) {
  const auto error = [](const std::string& ops) { return Ranks(program_of(straight(1, 2), {ops})).error_of(0); };
  BOOST_TEST(error("1F0 0F0 1B0 0B0") ==
             "rank 0 failed in 1F0: what it takes has not been made yet, or was taken before; validate() says what is "
             "wrong with the program");
  BOOST_TEST(error("0F0 1F0 1F0 1B0 0B0").starts_with("rank 0 failed in 1F0: what it takes"));
  BOOST_TEST(error("0F0 1F0 1B0 0B0") == "");
}

BOOST_AUTO_TEST_CASE(what_a_stage_returns_is_looked_at) {
  const auto error_of = [](std::size_t stage, const Tensors& outputs, const Tensors& gradients) {
    Ranks ranks(program_of(straight(1, 2), {"0F0 1F0 1B0 0B0"}));
    ranks.own[stage]->outputs = outputs;
    ranks.own[stage]->gradients = gradients;
    return ranks.error_of(0);
  };
  const auto error = [&](std::size_t stage, const at::Tensor& output, const at::Tensor& gradient) {
    return error_of(stage, {output}, {gradient});
  };
  const at::Tensor one = at::scalar_tensor(1.0);
  const at::Tensor with_graph = at::ones({1}).requires_grad_(true) * 2;
  BOOST_TEST(error(0, one, {}) == "");  // nobody takes it
  BOOST_TEST(
      error(0, {}, one) ==
      "rank 0 failed in 0F0: stage 0 returned an undefined tensor as the output, which the stage next to it waits "
      "for");
  BOOST_TEST(
      error(1, {}, one) ==
      "rank 0 failed in 1F0: stage 1 returned an undefined tensor as the loss, which the last stage of a chain has "
      "to compute");
  BOOST_TEST(error(1, one, {}) ==
             "rank 0 failed in 1B0: stage 1 returned an undefined tensor as the gradient of its input, which the stage "
             "next to it waits for");
  BOOST_TEST(
      error(1, at::ones({2}), one) ==
      "rank 0 failed in 1F0: stage 1 is the last of its chain, and has to return the loss, a scalar; it returned 2 "
      "numbers");
  BOOST_TEST(
      error(0, with_graph, one) ==
      "rank 0 failed in 0F0: stage 0 returned the output with its autograd graph, and stages have graphs of their "
      "own; return it detached (at::Tensor::detach())");
  BOOST_TEST(
      error(1, one, with_graph).starts_with("rank 0 failed in 1B0: stage 1 returned the gradient of its input with"));

  BOOST_TEST(error_of(0, {{}, one}, {}) == "");  // one may be missing, not all
  BOOST_TEST(error_of(1, {one}, {{}, one}) == "");
  BOOST_TEST(error_of(0, {}, {one}).starts_with("rank 0 failed in 0F0: stage 0 returned no tensor as the output"));
  BOOST_TEST(error_of(0, {{}, {}}, {}).starts_with("rank 0 failed in 0F0: stage 0 returned an undefined tensor as"));
  BOOST_TEST(error_of(1, {}, {one}).starts_with("rank 0 failed in 1F0: stage 1 returned no tensor as the loss"));
  BOOST_TEST(error_of(1, {one, one}, {one}).ends_with("has to return the loss, a scalar; it returned 2 numbers"));
  BOOST_TEST(error_of(1, {one}, {}).starts_with("rank 0 failed in 1B0: stage 1 returned no tensor as the gradient"));
  BOOST_TEST(error_of(0, {one, with_graph}, {}).starts_with("rank 0 failed in 0F0: stage 0 returned the output with"));
}

BOOST_AUTO_TEST_CASE(records_of_another_program_are_no_timeline) {
  const Program program = two_ranks();
  std::vector<RankRecord> records(2);
  const auto says = [](const std::string& text) {
    return [text](const InputError& error) { return std::string(error.what()) == text; };
  };
  BOOST_CHECK_EXCEPTION(static_cast<void>(merge(program, {records.data(), 1})), InputError,
                        says("the program has 2 ranks, and there are records of 1; merge() takes one of each"));
  BOOST_CHECK_EXCEPTION(static_cast<void>(merge(program, records)), InputError,
                        says("the record of rank 0 has 0 ops, and the program 4: it is of another program"));
  for (RankRecord& record : records) record.ops.resize(4);
  BOOST_CHECK_EXCEPTION(static_cast<void>(merge(program, records)), InputError,
                        says("the records have 0 messages, and the program 8: they are of another program"));
}

// --- stages

// Of the kind that autograd differentiates as a whole, and of the kind with parts.
BOOST_DATA_TEST_CASE(a_stage_says_which_pass_is_missing, data::make({"mlp", "moe"}) * data::make({false, true}), model,
                     recomputes) {
  const Program program = program_of("gpipe", 1);
  TrainOptions options = tiny(program, model);
  if (recomputes) options.shape.recompute = Recompute::full;
  const auto samples = synthetic_data(options.shape, 1);
  const Feed feed{samples.get(), 0, 0};
  const auto stage = make_stage(options.shape, 0, feed);
  const auto refuses = [](const std::function<void()>& pass, const std::string& text) {
    try {
      pass();
    } catch (const InputError& error) {
      return std::string(error.what()).starts_with(text);
    }
    return false;
  };
  const auto b = [&](std::uint32_t i) { return [&stage, i] { static_cast<void>(stage->backward(i, {})); }; };
  const auto i_pass = [&](std::uint32_t i) { return [&stage, i] { static_cast<void>(stage->backward_input(i, {})); }; };
  const auto w = [&](std::uint32_t i) { return [&stage, i] { stage->backward_weight(i); }; };
  const std::string no_forward = "the stage holds nothing of micro-batch 0 for this backward: its forward did not run";
  const std::string no_input = "the stage holds nothing of micro-batch 0 for this W: its I did not run";

  BOOST_TEST(refuses(b(0), no_forward));
  BOOST_TEST(refuses(w(0), no_input));
  {
    const c10::NoGradGuard evaluation;
    static_cast<void>(stage->forward(0, {}));
  }
  BOOST_TEST(refuses(b(0), no_forward));
  static_cast<void>(stage->forward(0, {}));
  BOOST_TEST(refuses(w(0), no_input));
  i_pass(0)();
  BOOST_TEST(refuses(i_pass(0), no_forward));
  BOOST_TEST(refuses(b(0), no_forward));
  w(0)();
  BOOST_TEST(refuses(w(0), no_input));
  static_cast<void>(stage->forward(0, {}));
  b(0)();
  BOOST_TEST(refuses(b(0), no_forward));
}

// What another rank sends, or a stage of the same rank returns. Some of it LibTorch would broadcast, or convert.
BOOST_AUTO_TEST_CASE(a_gradient_has_the_shape_and_type_of_its_activation) {
  const auto error_of = [](const at::Tensor& gradient) -> std::string {
    Segment segment;
    (void)segment.forward({at::ones({2, 3})}, [](const Tensors& inputs) { return Tensors{inputs[0] * 2}; });
    try {
      const Tensors gradients = segment.backward({gradient});
      BOOST_TEST(at::equal(gradients.at(0), at::full({2, 3}, 2.0)));
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  const std::string rest = ", and its activation float[2, 3]; a gradient has the shape and type of its activation";
  BOOST_TEST(error_of(at::ones({2, 3})) == "");
  BOOST_TEST(error_of(at::ones({2, 4})) == "a gradient is float[2, 4]" + rest);
  BOOST_TEST(error_of(at::ones({3})) == "a gradient is float[3]" + rest);
  BOOST_TEST(error_of(at::ones({1, 3})) == "a gradient is float[1, 3]" + rest);
  BOOST_TEST(error_of(at::ones({5, 2, 3})) == "a gradient is float[5, 2, 3]" + rest);
  BOOST_TEST(error_of(at::ones({2, 3}, at::kDouble)) == "a gradient is double[2, 3]" + rest);
}

BOOST_AUTO_TEST_CASE(shapes_and_samples_are_looked_at) {
  const auto says = [](const std::string& text) {
    return [text](const InputError& error) { return std::string(error.what()).starts_with(text); };
  };
  ModelShape shape = tiny(program_of("gpipe", 2), "mlp").shape;
  BOOST_CHECK_EXCEPTION(static_cast<void>(make_stage(shape, 2, {})), InputError,
                        says("the chain has 2 stages, from 0 on, and no stage 2"));
  BOOST_CHECK_EXCEPTION(static_cast<void>(make_stage(shape, -1, {})), InputError,
                        says("the chain has 2 stages, from 0 on, and no stage -1"));
  BOOST_CHECK_EXCEPTION(static_cast<void>(split_evenly(4, 0)), InputError,
                        says("4 layers cannot be split over 0 stages"));
  BOOST_CHECK_EXCEPTION(static_cast<void>(split_evenly(-1, 2)), InputError,
                        says("-1 layers cannot be split over 2 stages"));

  DeviceData samples(synthetic_data(shape, 1), host_device());
  BOOST_CHECK_EXCEPTION(static_cast<void>(samples.input(0, 0)), InputError,
                        says("the input of micro-batch 0 of step 0 is not on the device"));
  samples.begin_step(0, {{0, 2}}, {{1, 1}});
  BOOST_TEST(samples.input(0, 1).defined());
  BOOST_CHECK_EXCEPTION(static_cast<void>(samples.target(0, 0)), InputError,
                        says("the target of micro-batch 0 of step 0 is not on the device"));
  BOOST_CHECK_EXCEPTION(static_cast<void>(samples.input(1, 0)), InputError,
                        says("the input of micro-batch 0 of step 1 is not on the device"));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
