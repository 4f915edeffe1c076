// A process and a GPU for each rank, over NCCL: the processes are threads, and the host stands for GPUs and NCCL. On
// GPUs tests/gpu/run.sh does this.
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/train/reference.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/nccl_api.h"
#include "tests/exec/training.h"
#include "tests/exec/worlds.h"
#include "tests/gpu/hardware.h"

namespace dualpipe::test {
namespace {

namespace data = boost::unit_test::data;
using namespace std::chrono_literals;

void check_over_nccl(const std::string& name, const std::string& model, int ranks) {
  BOOST_REQUIRE(gpu_is_double());
  const Program program = program_of(name, ranks);
  TrainOptions options = tiny(program, model);
  options.shape.precision = Precision::float32;
  options.steps = 1;
  options.transport.timeout = 60s;
  std::mutex mutex;
  std::vector<CheckReport> reports;
  const auto run = [&](World& world) {
    const auto hardware = cuda_hardware({});
    TrainOptions mine = options;
    mine.hardware = hardware.get();
    const CheckReport report = checked(world, program, mine);
    const std::lock_guard lock(mutex);
    reports.push_back(report);
  };
  const auto errors = in_worlds(ranks, cuda_nccl(), {.timeout = 60s}, run);
  BOOST_TEST(errors == std::vector<std::string>(errors.size()), boost::test_tools::per_element());
  BOOST_TEST(reports.size() == errors.size());
  for (const CheckReport& report : reports) {
    BOOST_TEST(report.failure == "");
    if (report.same_order) BOOST_TEST(report.gradients.bitwise_equal);
  }
}

BOOST_AUTO_TEST_SUITE(cuda_double_ranks)

BOOST_DATA_TEST_CASE(two_train_like_the_model_by_itself, data::make(family_names()) * data::make({"mlp", "gpt", "moe"}),
                     name, model) {
  check_over_nccl(name, model, 2);
}

BOOST_DATA_TEST_CASE(four_too, data::make(family_names()), name) { check_over_nccl(name, "mlp", 4); }

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
