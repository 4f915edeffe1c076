// Training on ranks in several processes: to be run by mpirun, with as many as it likes, every process the same tests.
// Alone, a process holds all ranks, and their messages go over MPI nevertheless.
#include <ATen/Parallel.h>
#include <ATen/ops/full.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dualpipe/exec/train/reference.h"
#include "dualpipe/exec/train/safetensors.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "tests/exec/training.h"
#include "tests/exec/triple.h"
#include "tests/scratch.h"
#include "tests/thinned.h"

namespace dualpipe::test {

using detail::train::read_safetensors;
using detail::train::SafeTensors;
using detail::train::view_of;
using detail::train::write_safetensors;

namespace {

namespace data = boost::unit_test::data;
using namespace std::chrono_literals;

std::unique_ptr<World> shared_world;

// MPI can be started only once.
World& world() {
#ifdef DUALPIPE_HAS_MPI
  if (!shared_world) {
    shared_world = mpi_processes({.through_mpi = !started_by_mpi_launcher(), .measure_clock = true});
  }
#else
  if (!shared_world) shared_world = one_process();
#endif
  return *shared_world;
}

struct EndOfWorld {
  ~EndOfWorld() {
    if (!shared_world) return;
    (void)shared_world->end({});
    (void)shared_world->close();
  }
};
BOOST_TEST_GLOBAL_FIXTURE(EndOfWorld);

TrainOptions small(const Program& program, const std::string& model) {
  TrainOptions options = tiny(program, model);
  options.clip = 0.5;
  options.steps = 2;
  return options;
}

std::string failure_of(const Program& program, const TrainOptions& options, const TrainObserver& observer = {}) {
  try {
    (void)train(world(), program, options, observer);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

// Waits for all: what the first one has written can be read. (A new run, as the one before may have failed.)
void meet() { (void)world().transports(straight(8, 1), {}); }

// Of process 0, for all of them.
std::string shared_folder(const Scratch& own) {
  meet();
  return world().all_gather("the folder", own.folder()).front() + "/";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_processes)

BOOST_DATA_TEST_CASE(a_pipeline_of_processes_trains_like_the_model_by_itself,
                     thinned(5, data::make(family_names()) * data::make({"mlp", "gpt", "moe"}) * data::make({2, 4, 8})),
                     name, model, ranks) {
  if (ranks < world().processes() || (ranks == 8 && std::string(model) != "mlp")) return;
  at::set_num_threads(1);
  const Program program = program_of(name, ranks);
  const TrainOptions options = small(program, model);
  Check check(world(), program.schedule, options);
  TrainObserver observer;
  observer.on_gradients = [&](int step, std::span<Stage* const> stages) { check.on_gradients(step, stages); };
  observer.on_step = [&](const StepReport& step) { check.on_step(step); };
  (void)train(world(), program, options, observer);
  const CheckReport& report = check.report();
  BOOST_TEST(report.failure == "");
  BOOST_TEST(report.steps == options.steps);
  if (report.same_order) BOOST_TEST(report.losses_bitwise_equal);
  if (report.same_order) BOOST_TEST(report.gradients.bitwise_equal);
}

// The last micro-batch of a chain may have fewer rows than the others.
BOOST_DATA_TEST_CASE(three_tensors_go_between_stages,
                     data::make({"1f1b", "zb1p", "dualpipe"}) * data::make({2, 4}) * data::make({3, 1}), name, ranks,
                     last_rows) {
  if (ranks < world().processes()) return;
  const Program program = program_of(name, ranks);
  const StepInput input = triple_step(program, 3, last_rows);
  const auto transports = world().transports(program.schedule.placement, {20s, 0ns});
  std::vector<std::string> flaws(static_cast<std::size_t>(ranks));
  {
    std::vector<std::jthread> threads;
    for (const int rank : world().ranks_here(ranks)) {
      threads.emplace_back([&, place = static_cast<std::size_t>(rank)] {
        at::set_num_threads(1);
        flaws[place] = triple_flaw(program, static_cast<int>(place), *transports[place], input);
      });
    }
  }
  for (const std::string& flaw : flaws) BOOST_TEST(flaw == "");
}

BOOST_AUTO_TEST_CASE(a_wrong_gradient_is_noticed_in_every_process) {
  const Program program = program_of("1f1b", 4);
  const TrainOptions options = small(program, "mlp");
  Check check(world(), program.schedule, options);
  TrainObserver observer;
  observer.on_gradients = [&](int step, std::span<Stage* const> stages) {
    if (stages[3] != nullptr) stages[3]->parameters()[0].mutable_grad().mul_(1.01);
    check.on_gradients(step, stages);
  };
  (void)train(world(), program, options, observer);
  BOOST_TEST(contains(check.report().failure, "the gradients of stage 3"), check.report().failure);
}

// Everything but times.
BOOST_AUTO_TEST_CASE(results_are_the_same_in_every_process_and_in_one) {
  const Program program = program_of("dualpipe", 4);
  TrainOptions options = small(program, "gpt");
  options.warmup = 1;
  const TrainResult apart = train(world(), program, options);
  const TrainResult together = train(program, options);
  BOOST_TEST(apart.losses == together.losses);
  BOOST_TEST((apart.stages == together.stages));
  for (std::size_t rank = 0; rank < 4; ++rank) {
    BOOST_TEST(apart.peaks[rank].activations == together.peaks[rank].activations);
    BOOST_TEST(apart.peaks[rank].memory == together.peaks[rank].memory);
  }
  BOOST_TEST(apart.warm_up.size() == 1U);
  BOOST_TEST(apart.measured.size() == 2U);
  for (const RankRecords& step : apart.measured) {
    for (std::size_t rank = 0; rank < 4; ++rank) {
      BOOST_TEST(step[rank].done == program.schedule.rank(static_cast<int>(rank)).size());
    }
  }
  const auto times = world().all_gather("the comparison", fmt::format("{}", fmt::join(apart.durations, " ")));
  for (const std::string& each : times) BOOST_TEST(each == times[0]);
}

BOOST_AUTO_TEST_CASE(every_process_has_the_parts_of_all_ranks) {
  const Program program = program_of("dualpipe", 4);
  TrainOptions options = small(program, "moe");
  options.note_parts = true;
  std::size_t devices = 0;
  TrainObserver observer;
  observer.on_begin = [&](std::span<const std::string> each) { devices = each.size(); };
  const TrainResult apart = train(world(), program, options, observer);
  const TrainResult together = train(program, options);
  BOOST_TEST(devices == 4U);
  for (std::size_t rank = 0; rank < 4; ++rank) {
    const RankRecord& record = apart.records[rank];
    BOOST_TEST(record.parts.size() == together.records[rank].parts.size());
    BOOST_TEST(!record.parts.empty());
    BOOST_TEST(record.ops.front().start <= record.parts.front().span.start);
    BOOST_TEST(record.parts.back().span.end <= record.ops.back().end);
  }
}

// Rank 1's op ends before that of rank 2, which needs it, begins: also where they are in different processes.
BOOST_AUTO_TEST_CASE(times_are_by_one_clock) {
  const Program program = program_of("gpipe", 4);
  TrainOptions options = small(program, "mlp");
  options.before_op = [](int, Op) { std::this_thread::sleep_for(2ms); };
  const TrainResult result = train(world(), program, options);
  constexpr Time error = 1'000'000;  // of the clocks, which are measured as if they were several
  for (std::size_t rank = 0; rank + 1 < 4; ++rank) {
    BOOST_TEST(result.records[rank].ops[0].end < result.records[rank + 1].ops[0].start + error);
  }
  BOOST_TEST(std::abs(world().clock_offset()) < error);
}

BOOST_AUTO_TEST_CASE(a_stage_that_fails_ends_the_run_everywhere) {
  const Program program = program_of("zb1p", 4);
  TrainOptions options = small(program, "mlp");
  options.before_op = [](int rank, Op op) {
    if (rank == 2 && op.kind == Kind::input_gradient && op.micro_batch == 1) throw std::runtime_error("out of paper");
  };
  RankRecords records;
  TrainObserver observer;
  observer.on_failure = [&](int, const Program&, std::span<const RankRecord> all) {
    records.assign(all.begin(), all.end());
  };
  BOOST_TEST(failure_of(program, options, observer) == "rank 2 failed in 2I1: out of paper");
  BOOST_TEST(records.size() == (world().process() == 0 ? 4U : 0U));
  if (world().process() != 0) return;
  BOOST_TEST(records[2].stopped_at == "2I1");
  for (const RankRecord& each : records) BOOST_TEST(each.done > 0U);
  const PartialRun partial = reached(program, records);
  BOOST_TEST(merge(partial.program, partial.records).ops.size() > 4U);
}

BOOST_AUTO_TEST_CASE(a_rank_that_does_not_answer_is_named) {
  const Program program = program_of("1f1b", 4);
  TrainOptions options = small(program, "mlp");
  options.transport.timeout = 300ms;
  options.before_op = [](int rank, Op op) {
    if (rank == 1 && op.micro_batch == 2) std::this_thread::sleep_for(900ms);
  };
  const std::string failure = failure_of(program, options);
  BOOST_TEST(contains(failure, "within 0.3 s"), failure);
}

BOOST_AUTO_TEST_CASE(what_differs_between_command_lines_is_named) {
  const Program program = program_of("1f1b", 4);
  TrainOptions options = small(program, "mlp");
  options.learning_rate += world().process();
  const std::string expected = world().processes() == 1 ? ""
                                                        : "process 0 and process 1 were started with different command "
                                                          "lines: --learning-rate is '0.1' and '1.1'";
  BOOST_TEST(failure_of(program, options) == expected);
}

// The other processes have another file, or none. Where there is but one process there is nothing to compare.
BOOST_AUTO_TEST_CASE(files_that_differ_between_processes_are_refused_everywhere) {
  const Scratch scratch;
  const Program program = program_of("1f1b", 4);
  const bool is_alone = world().processes() == 1;
  const bool is_first = world().process() == 0;
  TrainOptions options = small(program, "gpt");
  options.data = scratch / "tokens";
  std::ofstream(options.data) << std::string(400, '\0');
  BOOST_TEST(failure_of(program, options) == "");  // under different names
  std::ofstream(options.data) << std::string(396, '\0') << (is_first ? '\1' : '\2') << std::string(3, '\0');
  const std::string other_data = failure_of(program, options);
  BOOST_TEST(other_data.starts_with(is_alone ? "" : "--data: the processes do not find the same file"), other_data);
  BOOST_TEST(contains(other_data, is_alone ? "" : ": 100 tokens, checksum "), other_data);
  if (!is_first) std::filesystem::remove(options.data);
  const std::string no_data = failure_of(program, options);
  BOOST_TEST(contains(no_data, is_alone ? "" : "cannot be opened: No such file"), no_data);

  options = small(program, "mlp");
  options.save = scratch / "save";
  options.learning_rate = is_first ? 0.1 : 0.2;
  (void)train(program, options);  // each by itself
  options.save.clear();
  options.learning_rate = 0.1;
  options.resume = scratch / "save";
  const std::string other_training = failure_of(program, options);
  BOOST_TEST(other_training.starts_with(is_alone ? "" : "--resume: the processes do not find the same"),
             other_training);
  BOOST_TEST(contains(other_training, is_alone ? "" : "save: 2 steps, checksum "), other_training);
  options.resume = scratch / "nowhere";
  BOOST_TEST(contains(failure_of(program, options), "cannot be opened: No such file"));
}

// In a rank of one process alone.
BOOST_AUTO_TEST_CASE(what_is_not_finite_is_neither_saved_nor_loaded_by_any_process) {
  const Scratch scratch;
  const std::string folder = shared_folder(scratch);
  const Program program = program_of("1f1b", 4);
  TrainOptions options = small(program, "mlp");
  options.clip = 0;
  options.save = folder + "save";
  options.save_every = 1;
  TrainObserver observer;
  observer.on_gradients = [&](int step, std::span<Stage* const> stages) {
    if (step == 1 && stages[3] != nullptr) stages[3]->parameters()[0].mutable_grad().mul_(std::nan(""));
  };
  const std::string unsaved = failure_of(program, options, observer);
  BOOST_TEST(contains(unsaved, "rank 3: tensor 'layers."), unsaved);
  BOOST_TEST(contains(unsaved, "' has nan at element 0 of "), unsaved);
  meet();
  std::string bytes = bytes_of(options.save);
  SafeTensors contents = read_safetensors(std::as_bytes(std::span(bytes)), "the save");
  BOOST_TEST(contents.metadata.at("steps") == "1");

  const auto last = std::prev(contents.tensors.end());  // of the last layer
  const at::Tensor values = at::full(last->second.shape, INFINITY, at::kDouble);
  last->second = view_of(values);
  options.save.clear();
  options.resume = folder + "infinite";
  if (world().process() == 0) {
    std::ofstream file(options.resume);
    write_safetensors(file, contents);
  }
  meet();
  const std::string unloaded = failure_of(program, options);
  BOOST_TEST(contains(unloaded, fmt::format("tensor '{}' has inf at element 0 of ", last->first)), unloaded);
  meet();
}

BOOST_AUTO_TEST_CASE(an_all_gather_brings_all_parts_in_order) {
  (void)world().transports(straight(8, 1), {});
  for (int round = 0; round < 50; ++round) {
    const std::string large(static_cast<std::size_t>(round) * 1000, 'x');
    const auto all = world().all_gather("a round", fmt::format("{} {} {}", round, world().process(), large));
    BOOST_REQUIRE(std::ssize(all) == world().processes());
    for (int each = 0; each < world().processes(); ++each) {
      BOOST_TEST(all[static_cast<std::size_t>(each)] == fmt::format("{} {} {}", round, each, large));
    }
  }
  if (world().processes() == 1) return;
  const std::string place = world().process() == 0 ? "here" : "there";
  BOOST_CHECK_EXCEPTION((void)world().all_gather(place, ""), std::runtime_error, [](const auto& error) {
    return contains(error.what(), "process 0 is at here, and process") && contains(error.what(), "at there");
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
