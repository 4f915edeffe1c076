// Trainings on a GPU, against the same without a pipeline there.
#include "exec/train/train.h"

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <memory>
#include <string>

#include "exec/device/device.h"
#include "exec/train/reference.h"
#include "tests/exec/training.h"
#include "tests/gpu/hardware.h"

namespace dualpipe::test {
namespace {

namespace data = boost::unit_test::data;

const auto models = data::make({"mlp", "gpt", "moe"});

TrainOptions small(const Program& program, const std::string& model, Precision precision) {
  TrainOptions options = tiny(program, model);
  options.steps = 2;
  options.shape.precision = precision;
  return options;
}

void check(const Program& program, TrainOptions options, Hardware& hardware) {
  options.hardware = &hardware;
  const CheckReport report = checked(program, options);
  BOOST_TEST(report.failure == "");
  // Its kernels are the host's, which add in the same order.
  if (gpu_is_double() && report.same_order) BOOST_TEST(report.gradients.bitwise_equal);
}

BOOST_AUTO_TEST_SUITE(gpu_train)

BOOST_DATA_TEST_CASE(a_pipeline_trains_like_the_model_by_itself, data::make(family_names()) * models, name, model) {
  const Program program = program_of(name, 4);
  check(program, small(program, model, Precision::float32), gpu());
}

BOOST_DATA_TEST_CASE(in_bfloat16_too, models, model) {
  const Program program = program_of("dualpipe", 2);
  TrainOptions options = small(program, model, Precision::bfloat16);
  options.shape.hidden = 64;
  check(program, options, gpu());
}

BOOST_DATA_TEST_CASE(messages_may_be_copied_and_ranks_have_parts, data::make(family_names()) * models, name, model) {
  const auto hardware = cuda_hardware({.copy = true, .sm_partition = true});
  const Program program = program_of(name, 2);
  check(program, small(program, model, Precision::float32), *hardware);
}

BOOST_DATA_TEST_CASE(recomputation_changes_nothing, models, model) {
  const Program program = program_of("dualpipe", 2);
  TrainOptions options = small(program, model, Precision::float32);
  options.shape.recompute = Recompute::full;
  check(program, options, gpu());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
