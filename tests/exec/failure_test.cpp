// A run in which one rank fails, in every way it can: all ranks end, soon, and say which rank, in which op, and why.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/exec/train/stage_set.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/report/compare.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "dualpipe/sim/trace/chrome_trace.h"
#include "tests/exec/absence.h"
#include "tests/support.h"

namespace dualpipe::test {

using detail::train::set_up_thread;

namespace {

namespace data = boost::unit_test::data;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

// What goes wrong, and where: in the stage, while it runs this op.
struct Fault {
  Op op;
  std::function<void()> happen;
};

// Every tensor that was made, without keeping it alive.
class Watched {
 public:
  at::Tensor make() {
    at::Tensor tensor = at::ones({1024});
    const std::lock_guard lock(mutex_);
    made_.emplace_back(tensor.getIntrusivePtr());
    return tensor;
  }
  [[nodiscard]] std::size_t made() const { return made_.size(); }
  [[nodiscard]] std::ptrdiff_t alive() const {
    return std::ranges::count_if(made_, [](const auto& each) { return !each.expired(); });
  }

 private:
  std::mutex mutex_;
  std::vector<c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>> made_;
};

// Passes tensors on, and holds one from F to B or I, and another from I to W.
class FaultyStage final : public Stage {
 public:
  FaultyStage(int number, const Fault& fault, Watched& watched)
      : number_(static_cast<std::uint16_t>(number)), fault_(fault), watched_(watched) {}

  Tensors forward(std::uint32_t micro_batch, Tensors /*inputs*/) override {
    held_.push_back(watched_.make());
    run(Kind::forward, micro_batch);
    return {watched_.make().sum()};
  }
  Tensors backward(std::uint32_t micro_batch, Tensors /*gradients*/) override {
    held_.pop_back();
    run(Kind::backward, micro_batch);
    return {watched_.make().sum()};
  }
  Tensors backward_input(std::uint32_t micro_batch, Tensors /*gradients*/) override {
    run(Kind::input_gradient, micro_batch);
    return {watched_.make().sum()};
  }
  void backward_weight(std::uint32_t micro_batch) override {
    held_.pop_back();
    run(Kind::weight_gradient, micro_batch);
  }
  std::vector<NamedTensor> named_parameters() override { return {}; }

 private:
  void run(Kind kind, std::uint32_t micro_batch) const {
    if (Op{micro_batch, number_, kind, false} == fault_.op) fault_.happen();
  }

  std::uint16_t number_;
  const Fault& fault_;
  Watched& watched_;
  std::vector<at::Tensor> held_;
};

struct FailedRun {
  std::vector<std::string> errors;  // by rank, "" where it came to the end
  std::vector<bool> failed_itself;  // by rank: and not because another one did
  std::vector<std::chrono::nanoseconds> durations;
  std::vector<RankRecord> records;
};

// `ended`: called by each rank at its end.
FailedRun run(const Program& program, const Fault& fault, Watched& watched, std::chrono::nanoseconds timeout = 20s,
              const std::function<void(int rank)>& ended = {}) {
  const Placement& placement = program.schedule.placement;
  const auto ranks = static_cast<std::size_t>(placement.ranks);
  const auto transports = thread_transports(placement, {timeout, 0ns});
  FailedRun result{std::vector<std::string>(ranks),
                   {},
                   std::vector<std::chrono::nanoseconds>(ranks),
                   std::vector<RankRecord>(ranks)};
  std::vector<char> itself(ranks);
  const auto run_rank = [&](std::size_t rank) {
    set_up_thread(1);
    std::vector<std::unique_ptr<Stage>> stages;
    std::vector<Stage*> own(placement.rank_of.size());
    for (const int number : placement.stages_on(static_cast<int>(rank))) {
      stages.push_back(std::make_unique<FaultyStage>(number, fault, watched));
      own[static_cast<std::size_t>(number)] = stages.back().get();
    }
    const auto begin = Clock::now();
    try {
      replay(program, static_cast<int>(rank), own, *transports[rank], result.records[rank]);
    } catch (const std::exception& error) {
      result.errors[rank] = error.what();
      itself[rank] = dynamic_cast<const ReplayError*>(&error) != nullptr ? 1 : 0;
    }
    result.durations[rank] = Clock::now() - begin;
    if (ended) ended(static_cast<int>(rank));
  };
  {
    std::vector<std::jthread> threads;
    for (std::size_t rank = 0; rank < ranks; ++rank) threads.emplace_back(run_rank, rank);
  }
  result.failed_itself.assign(itself.begin(), itself.end());
  return result;
}

// Where it goes wrong: each kind of op that a rank runs, at its last but one of that kind.
struct Place {
  Op op;
  std::size_t position = 0;  // of its unit in the rank
  std::string cell;
};

std::vector<Place> places(const Schedule& schedule, int rank) {
  const auto ops = schedule.rank(rank);
  std::vector<Place> found;
  for (const Kind kind : {Kind::forward, Kind::backward, Kind::input_gradient, Kind::weight_gradient}) {
    std::vector<std::size_t> of_kind;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      if (ops[i].kind == kind) of_kind.push_back(i);
    }
    if (of_kind.empty()) continue;
    std::size_t at = of_kind[of_kind.size() < 2 ? 0 : of_kind.size() - 2];
    Op op = ops[at];
    op.with_next = false;
    if (at > 0 && ops[at - 1].with_next) --at;
    found.push_back({op, at, cell_text(ops.subspan(at))});
  }
  return found;
}

// The rank says what went wrong, unless it is another one and had come to its end.
void check_error(const Schedule& schedule, const FailedRun& got, std::size_t rank, int bad,
                 const std::string& expected) {
  const bool at_end = got.records[rank].done == schedule.rank(static_cast<int>(rank)).size();
  if (got.errors[rank].empty() && at_end && static_cast<int>(rank) != bad) return;
  BOOST_TEST(got.errors[rank] == expected);
}

const std::vector<Case> cases = {{"1f1b", {3, 6, 1}},
                                 {"zb1p", {3, 6, 1}},
                                 {"dualpipe", {4, 8, 1}},
                                 {"dualpipev", {3, 6, 1}},
                                 {"interleaved", {2, 4, 2}}};

TrainOptions small(const Program& program, const std::string& model) {
  const Placement& placement = program.schedule.placement;
  TrainOptions options;
  options.shape.model = model;
  options.shape.hidden = 8;
  options.shape.batch = 1;
  options.shape.layers.assign(placement.chain_begin[1], 1);
  return options;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_failure)

BOOST_DATA_TEST_CASE(a_stage_that_throws_in_any_op_on_any_rank, data::make(cases), a_case) {
  const Program program = lower(generate(a_case.family, a_case.shape));
  for (int bad = 0; bad < program.schedule.ranks(); ++bad) {
    for (const Place& place : places(program.schedule, bad)) {
      Watched watched;
      const Fault fault{place.op, [] { throw std::runtime_error("boom"); }};
      const FailedRun got = run(program, fault, watched);
      for (std::size_t rank = 0; rank < got.errors.size(); ++rank) {
        check_error(program.schedule, got, rank, bad, fmt::format("rank {} failed in {}: boom", bad, place.cell));
        BOOST_TEST(got.failed_itself[rank] == (static_cast<int>(rank) == bad));
        BOOST_TEST((got.durations[rank] < 10s));  // and did not wait for the timeout
      }
      BOOST_TEST(got.records[static_cast<std::size_t>(bad)].done == place.position);
      BOOST_TEST(watched.made() > 0U);
      BOOST_TEST(watched.alive() == 0);
    }
  }
}

// What is not derived from std::exception, too.
BOOST_AUTO_TEST_CASE(whatever_a_stage_throws_ends_the_run) {
  const Program program = lower(generate("1f1b", {2, 4}));
  Watched watched;
  const FailedRun got = run(program, {{1, 1, Kind::forward, false}, [] { throw 1; }}, watched);
  BOOST_TEST(got.errors[0] == "rank 1 failed in 1F1: an exception without a message");
  BOOST_TEST(got.errors[1] == got.errors[0]);
}

// LibTorch's allocator, asked for more than any machine has; and what the C++ library's would throw then (under
// AddressSanitizer it does not).
BOOST_AUTO_TEST_CASE(a_stage_that_runs_out_of_memory) {
  const Program program = lower(generate("zb1p", {3, 6}));
  const auto tensor = [] { (void)at::empty({std::int64_t{1} << 55U}, at::kByte); };
  const auto container = [] { throw std::bad_alloc(); };
  for (const auto& [happen, cause] : {std::pair<std::function<void()>, std::string>{tensor, "can't allocate memory"},
                                      std::pair<std::function<void()>, std::string>{container, "bad_alloc"}}) {
    for (const Place& place : places(program.schedule, 1)) {
      Watched watched;
      const FailedRun got = run(program, {place.op, happen}, watched);
      const std::string& error = got.errors[1];
      BOOST_TEST(error.find(fmt::format("rank 1 failed in {}: ", place.cell)) == 0U, error);
      BOOST_TEST(error.find(cause) != std::string::npos, error);
      BOOST_TEST(error.find('\n') == std::string::npos, error);
      for (const std::size_t rank : {0U, 2U}) check_error(program.schedule, got, rank, 1, error);
      BOOST_TEST(watched.alive() == 0);
    }
  }
}

// All others end in time, at the first timeout or their own at the same moment; it ends as soon as it is back.
BOOST_AUTO_TEST_CASE(a_rank_that_stops_answering) {
  constexpr auto timeout = 100ms;
  const Program program = lower(generate("1f1b", {3, 6}));
  for (int bad = 0; bad < 3; ++bad) {
    Watched watched;
    Absence absence(2);
    const Fault fault{{2, static_cast<std::uint16_t>(bad), Kind::backward, false}, [&] { absence.begin(); }};
    const FailedRun got = run(program, fault, watched, timeout, [&](int rank) {
      if (rank != bad) absence.one_has_ended();
    });
    BOOST_TEST(!absence.was_too_short());
    BOOST_TEST(std::ranges::count(got.failed_itself, true) >= 1);
    for (std::size_t rank = 0; rank < 3; ++rank) {
      const bool is_bad = static_cast<int>(rank) == bad;
      const std::string& error = got.errors[rank];
      BOOST_TEST(error.find(" failed in ") == 6U, error);  // "rank 0"
      BOOST_TEST(error.find(": nothing came from rank ") != std::string::npos, error);
      BOOST_TEST(error.find(" within 0.1 s") != std::string::npos, error);
      BOOST_TEST((got.failed_itself[rank] ? error.find(fmt::format("rank {}", rank)) == 0 : true), error);
      BOOST_TEST((is_bad && got.failed_itself[rank]) == false);
    }
    BOOST_TEST(watched.alive() == 0);
  }
}

// The trace of what a failed run did is one that can be read, and compared with the plan.
BOOST_DATA_TEST_CASE(the_partial_trace_is_valid, data::make(cases), a_case) {
  const Program program = lower(generate(a_case.family, a_case.shape));
  const Costs costs = uniform(1000, 1000, 1000, 100, 3000);
  const auto read = [&](const Program& ran, const Timeline& timeline) {
    std::stringstream trace;
    write_chrome_trace(trace, ran, costs, timeline);
    return NamedRun{"trace", read_chrome_trace(trace, "trace")[0]};
  };
  const NamedRun planned = read(program, simulate(program, costs));
  for (const Place& place : places(program.schedule, 1)) {
    Watched watched;
    const FailedRun got = run(program, {place.op, [] { throw std::runtime_error("boom"); }}, watched);
    const PartialRun partial = reached(program, got.records);
    const Comparison comparison = compare(planned, read(partial.program, merge(partial.program, partial.records)));
    std::size_t done = 0;
    for (const RankRecord& record : got.records) done += record.done;
    BOOST_TEST(comparison.compared == done);
    BOOST_TEST(comparison.ops.measured == done);
    BOOST_TEST(comparison.ops.planned == program.schedule.ops.size());
  }
}

// Rank 0 needs 1B0 before it makes 0F1, rank 1 needs 0F1 before it runs 1B0. validate() would say so.
BOOST_AUTO_TEST_CASE(training_by_a_program_that_deadlocks_ends_by_timeout) {
  const Program program = lower(schedule_of(straight(2, 1), {"0F0 0B0 0F1 0B1", "1F1 1B1 1F0 1B0"}));
  TrainOptions options = small(program, "mlp");
  options.transport.timeout = 200ms;
  std::size_t done = 0;
  TrainObserver observer;
  observer.on_failure = [&](int, const Program&, std::span<const RankRecord> records) { done = records[0].done; };
  const auto begin = Clock::now();
  BOOST_CHECK_EXCEPTION((void)train(program, options, observer), ReplayError, [](const ReplayError& error) {
    const std::string text = error.what();
    return text == "rank 0 failed in 0B0: nothing came from rank 1 for 0RECV_B0 within 0.2 s" ||
           text == "rank 1 failed in 1F1: nothing came from rank 0 for 1RECV_F1 within 0.2 s";
  });
  BOOST_TEST((Clock::now() - begin < 10s));
  BOOST_TEST(done == 1U);
}

// The parameters of the last stage become infinite after step 1: in step 2 the loss is not a number any more.
BOOST_AUTO_TEST_CASE(a_loss_that_is_no_number_names_rank_op_and_step) {
  for (const char* family : {"1f1b", "dualpipe"}) {
    const Program program = lower(generate(family, {2, 4}));
    TrainOptions options = small(program, "mlp");
    options.steps = 5;
    int failed_in = -1;
    TrainObserver observer;
    observer.on_gradients = [&](int step, std::span<Stage* const> stages) {
      if (step == 1) stages[1]->parameters()[0].detach().fill_(std::numeric_limits<float>::infinity());
    };
    observer.on_failure = [&](int step, const Program&, std::span<const RankRecord>) { failed_in = step; };
    BOOST_CHECK_EXCEPTION((void)train(program, options, observer), ReplayError, [](const ReplayError& error) {
      const std::string text = error.what();
      return text.find("rank ") == 0 && text.find("F0: the loss is ") != std::string::npos &&
             text.find(" in step 2;") != std::string::npos;
    });
    BOOST_TEST(failed_in == 2);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
