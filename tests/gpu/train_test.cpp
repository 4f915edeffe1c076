// Trainings on a GPU, against the same without a pipeline there.
#include "dualpipe/exec/train/train.h"

#include <fmt/format.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/train/reference.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "tests/exec/training.h"
#include "tests/gpu/hardware.h"
#include "tests/support.h"

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

// More than there are streams, and than a byte can number.
BOOST_DATA_TEST_CASE(a_rank_may_have_any_number_of_stages, data::make({20, 40, 260}) * data::make({false, true}),
                     chunks, copies) {
  const auto hardware = cuda_hardware({.copy = copies});
  const Program program = lower(generate("looped-bfs", {2, 2, chunks}));
  TrainOptions options = small(program, "mlp", Precision::float32);
  options.steps = 1;
  check(program, options, *hardware);
}

// Stages 0 and 31 have one stream.
BOOST_DATA_TEST_CASE(a_pair_may_share_a_stream, data::make({"mlp", "moe"}), model) {
  constexpr int stages = 32;
  const auto down = [](int first, char pass, int micro_batch) {
    std::string text;
    for (int stage = first; stage >= 0; --stage) text += fmt::format("{}{}{} ", stage, pass, micro_batch);
    return text;
  };
  const auto up = [](int first, int micro_batch) {
    std::string text;
    for (int stage = first; stage < stages; ++stage) text += fmt::format("{}F{} ", stage, micro_batch);
    return text;
  };
  const std::string pair = fmt::format("(0F1;{}B0)OVERLAP_F_B ", stages - 1);
  const Program program = lower(schedule_of(
      straight(1, stages), {up(0, 0) + pair + down(stages - 2, 'B', 0) + up(1, 1) + down(stages - 1, 'B', 1)}));
  check(program, small(program, model, Precision::float32), gpu());
}

// A calibration on 1F1B tells how much memory ranks of other schedules hold, what waits for the GPU included. (In moe
// that is also what was exchanged, and how much of it depends on how far the GPU is.)
BOOST_AUTO_TEST_CASE(measured_memory_is_the_predicted_one) {
  const Program program = program_of("1f1b", 4);
  TrainOptions options = small(program, "gpt", Precision::float32);
  options.hardware = &gpu();
  options.shape.hidden = 32;
  options.shape.batch = 4;
  options.shape.sequence = 16;
  const std::vector<Program> others = {program_of("gpipe", 4), program_of("zb1p", 4), program_of("zb-h2", 4)};
  check_memory_is_predicted(program, options, others);
}

// The thread is not so far ahead of the GPU that what it has received piles up.
BOOST_AUTO_TEST_CASE(more_micro_batches_take_no_more_memory) {
  const auto peaks_with = [](std::int64_t micro_batches) {
    const Program program = program_of("1f1b", 2, micro_batches);
    TrainOptions options = small(program, "gpt", Precision::float32);
    options.shape.sequence = 64;
    options.shape.hidden = 32;
    options.hardware = &gpu();
    std::vector<Bytes> peaks;
    for (const RankRecord& record : train(program, options).records) peaks.push_back(record.peak_memory);
    return peaks;
  };
  constexpr Bytes message = 64 * 32 * 4;
  const std::vector<Bytes> few = peaks_with(4);
  const std::vector<Bytes> many = peaks_with(16);
  for (std::size_t rank = 0; rank < few.size(); ++rank) BOOST_TEST(many[rank] <= few[rank] + 2 * message);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
