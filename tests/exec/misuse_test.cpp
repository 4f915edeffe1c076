// What a user of the library can get wrong, in a program made by hand or read from a file, or in stages of his own: it
// ends with an error that says where, and what to do.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <functional>
#include <memory>
#include <string>

#include "dualpipe/exec/stage/device_data.h"
#include "dualpipe/exec/stage/model.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/sim/schedule/error.h"
#include "tests/exec/training.h"

namespace dualpipe::test {
namespace {

namespace data = boost::unit_test::data;

BOOST_AUTO_TEST_SUITE(exec_misuse)

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
