// A day of work in small: what a run holds does not grow with its steps.
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <vector>

#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"

namespace dualpipe::test {

using detail::replay::held_by_this_thread;

namespace {

// Pages in memory (VmRSS), by proc(5).
Bytes resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  Bytes total_pages = 0;
  Bytes resident_pages = 0;
  statm >> total_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_endurance)

// From step 100 on: the tensors of each rank to the byte; the process but for the 16 bytes that a step's loss and
// duration take, and what the allocator may do with a little. To keep all that the ops of a step did would take 22 MB,
// to forget a tensor a step 9 MB.
BOOST_AUTO_TEST_CASE(memory_is_flat_over_ten_thousand_steps) {
  constexpr int ranks = 4;
  constexpr int settled = 101;  // steps after which train() keeps no more of them
  constexpr int steps = 10'000;
  constexpr Bytes growth_max = 1'000'000;
  const Program program = lower(generate("1f1b", {ranks, 2, 1}));
  const std::filesystem::path saved =
      std::filesystem::temp_directory_path() / fmt::format("dualpipe-endurance-{}", getpid());
  TrainOptions options;
  options.shape.model = "mlp";
  options.shape.hidden = 4;
  options.shape.batch = 1;
  options.shape.layers = {1, 1, 1, 1};
  options.optimizer = OptimizerKind::adamw;
  options.clip = 1;
  options.steps = steps;
  options.save = saved.string();
  options.save_every = 100;

  int step_now = 0;
  std::array<Bytes, ranks> tensors_settled{};
  std::array<Bytes, ranks> tensors_last{};
  options.before_op = [&](int rank, Op op) {
    if (op.kind != Kind::forward || op.micro_batch != 0) return;
    const auto index = static_cast<std::size_t>(rank);
    if (step_now == settled) tensors_settled[index] = held_by_this_thread();
    if (step_now == steps - 1) tensors_last[index] = held_by_this_thread();
  };
  Bytes process_settled = 0;
  Bytes process_last = 0;
  TrainObserver observer;
  observer.on_step = [&](const StepReport& step) {
    step_now = step.step + 1;
    if (step_now == settled) process_settled = resident_bytes();
    if (step_now == steps) process_last = resident_bytes();
  };
  const TrainResult result = train(program, options, observer);
  std::filesystem::remove(saved);

  BOOST_TEST(result.losses.size() == static_cast<std::size_t>(steps));
  BOOST_TEST(tensors_last == tensors_settled, boost::test_tools::per_element());
  BOOST_TEST_MESSAGE("resident after step 100: " << process_settled << " bytes, at the end: " << process_last);
  BOOST_TEST(process_settled > 0);
  BOOST_TEST(process_last - process_settled < growth_max);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
