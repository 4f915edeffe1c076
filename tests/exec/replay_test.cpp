// The replay loop with stages that compute nothing, but know which tensors they should get.
#include "dualpipe/exec/replay/replay.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"
#include "tests/support.h"
#include "tests/verdict.h"

namespace dualpipe::test {
namespace {

using namespace std::chrono_literals;

// A tensor that says who made it, and what for.
at::Tensor letter(bool forward, int stage, std::uint32_t micro_batch) {
  return at::tensor({forward ? 1.0 : -1.0, static_cast<double>(stage), static_cast<double>(micro_batch)}, at::kDouble);
}

// Throws unless it is called as a stage must be. Its parameter's gradient is the sum of all micro-batches + 1.
class CheckingStage final : public Stage {
 public:
  static constexpr std::int64_t held_bytes = 1 << 20;

  CheckingStage(const Placement& placement, int stage, std::vector<std::string>& log)
      : number_(stage), previous_(placement.previous(stage)), next_(placement.next(stage)), log_(log) {
    parameter_.set_requires_grad(true);
  }

  Tensors forward(std::uint32_t micro_batch, Tensors inputs) override {
    log(Kind::forward, micro_batch);
    expect(inputs, true, previous_, micro_batch);
    if (c10::GradMode::is_enabled()) held_[micro_batch] = at::empty({held_bytes}, at::kChar);
    return {next_ ? letter(true, number_, micro_batch) : at::scalar_tensor(100.0 + micro_batch, at::kDouble)};
  }
  Tensors backward(std::uint32_t micro_batch, Tensors gradients) override {
    log(Kind::backward, micro_batch);
    expect(gradients, false, next_, micro_batch);
    accumulate(micro_batch);
    return input_gradients(micro_batch);
  }
  Tensors backward_input(std::uint32_t micro_batch, Tensors gradients) override {
    log(Kind::input_gradient, micro_batch);
    expect(gradients, false, next_, micro_batch);
    return input_gradients(micro_batch);
  }
  void backward_weight(std::uint32_t micro_batch) override {
    log(Kind::weight_gradient, micro_batch);
    accumulate(micro_batch);
  }
  std::vector<NamedTensor> named_parameters() override { return {{"parameter", parameter_}}; }

  [[nodiscard]] double gradient() const { return parameter_.grad().sum().item<double>(); }

 private:
  void log(Kind kind, std::uint32_t micro_batch) {
    log_.push_back(to_text({micro_batch, static_cast<std::uint16_t>(number_), kind, false}));
  }
  void expect(const Tensors& got, bool forward, std::optional<int> from, std::uint32_t micro_batch) const {
    const bool right = from ? got.size() == 1 && at::equal(got[0], letter(forward, *from, micro_batch)) : got.empty();
    if (!right) throw std::logic_error("not what the neighbour made");
  }
  Tensors input_gradients(std::uint32_t micro_batch) {
    if (held_.erase(micro_batch) != 1) throw std::logic_error("its forward did not run, or the backward did before");
    return previous_ ? Tensors{letter(false, number_, micro_batch)} : Tensors();
  }
  void accumulate(std::uint32_t micro_batch) {
    if (!parameter_.grad().defined()) parameter_.mutable_grad() = at::zeros_like(parameter_);
    parameter_.mutable_grad().add_(1.0 + micro_batch);
  }

  int number_;
  std::optional<int> previous_;
  std::optional<int> next_;
  std::vector<std::string>& log_;
  std::map<std::uint32_t, at::Tensor> held_;  // by micro-batch, between F and B or I
  at::Tensor parameter_ = at::ones({1}, at::kDouble);
};

// What all ranks did.
struct Run {
  std::vector<RankRecord> records;
  std::vector<std::vector<std::string>> logs;  // by rank, what its stages were called for
  std::vector<double> gradients;               // by stage; of none where it ran no backward
  std::vector<std::string> errors;             // by rank, "" where it came to the end
  std::vector<bool> failed_itself;             // by rank: it, and not another one, was the first to fail
  std::chrono::nanoseconds duration{};
};

struct RunOptions {
  TransportOptions transport{20s, 0ns};
  bool forward_only = false;
  std::function<void(int rank, Op)> before_op;
};

Run run(const Program& program, const RunOptions& options = {}) {
  const Placement& placement = program.schedule.placement;
  const auto ranks = static_cast<std::size_t>(placement.ranks);
  Run result{std::vector<RankRecord>(ranks),
             std::vector<std::vector<std::string>>(ranks),
             {},
             std::vector<std::string>(ranks),
             std::vector<bool>(ranks),
             {}};
  std::vector<std::unique_ptr<CheckingStage>> stages;
  for (int stage = 0; stage < placement.stages(); ++stage) {
    auto& log = result.logs[placement.rank_of[static_cast<std::size_t>(stage)]];
    stages.push_back(std::make_unique<CheckingStage>(placement, stage, log));
  }
  const auto transports = thread_transports(placement, options.transport);
  std::vector<char> failed(ranks);
  const auto run_rank = [&](std::size_t rank) {
    std::vector<Stage*> own;
    for (std::size_t stage = 0; stage < stages.size(); ++stage) {
      own.push_back(placement.rank_of[stage] == rank ? stages[stage].get() : nullptr);
    }
    ReplayOptions replay_options;
    replay_options.measure_memory = true;
    replay_options.forward_only = options.forward_only;
    if (options.before_op) replay_options.before_op = [&](Op op) { options.before_op(static_cast<int>(rank), op); };
    try {
      replay(program, static_cast<int>(rank), own, *transports[rank], result.records[rank], replay_options);
    } catch (const ReplayError& error) {
      failed[rank] = 1;
      result.errors[rank] = error.what();
    } catch (const std::exception& error) {
      result.errors[rank] = error.what();
    }
  };
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < ranks; ++rank) threads.emplace_back(run_rank, rank);
  for (std::thread& each : threads) each.join();
  result.duration = std::chrono::steady_clock::now() - begin;
  result.failed_itself.assign(failed.begin(), failed.end());
  for (const auto& stage : stages) {
    result.gradients.push_back(stage->parameters()[0].grad().defined() ? stage->gradient() : 0);
  }
  return result;
}

std::vector<std::string> texts_of(std::span<const Op> ops) {
  std::vector<std::string> texts;
  for (const Op op : ops) texts.push_back(to_text(op));
  return texts;
}

// The first thing wrong with a timeline of a run that came to its end, or nothing.
std::string flaw_of(const Timeline& timeline, const Program& program) {
  std::map<Op, Span> spans;  // of ops and messages
  Time first = time_max;
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const auto ops = program.schedule.rank(rank);
    const std::size_t begin = program.schedule.rank_begin[static_cast<std::size_t>(rank)];
    Time end = 0;
    Time busy = 0;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      const Span span = timeline.ops[begin + i];
      spans[{ops[i].micro_batch, ops[i].stage, ops[i].kind, false}] = span;
      first = std::min(first, span.start);
      if (i > 0 && ops[i - 1].with_next) {
        if (span != timeline.ops[begin + i - 1]) return to_text(ops[i]) + " has not its pair's span";
        continue;
      }
      if (span.start < end || span.end < span.start) return to_text(ops[i]) + " overlaps the op before it";
      end = span.end;
      busy += span.end - span.start;
    }
    const RankTimes& times = timeline.ranks[static_cast<std::size_t>(rank)];
    const RankTimes expected{timeline.ops[begin].start, end, busy};
    if (times != expected) return fmt::format("the times of rank {}", rank);
  }
  if (first != 0) return "time 0 is not the first start";

  for (std::size_t i = 0; i < program.communication.size(); ++i) {
    const Op op = program.communication[i];
    spans[{op.micro_batch, op.stage, op.kind, false}] = timeline.communication[i];
  }
  for (const auto& [op, span] : spans) {
    if (!is_send(op.kind)) continue;
    const bool forward = op.kind == Kind::send_forward;
    const Op receive = peer_of(op, program.schedule.placement);
    if (spans.at(receive) != span) return to_text(op) + " and its receive have two spans";
    if (span.end < span.start) return to_text(op) + " ends before it starts";
    const auto compute = [&](Op message) {
      const auto found =
          spans.find({message.micro_batch, message.stage, forward ? Kind::forward : Kind::backward, false});
      if (found != spans.end()) return found->second;
      return spans.at({message.micro_batch, message.stage, Kind::input_gradient, false});
    };
    if (span.start < compute(op).end) return to_text(op) + " is sent before it is made";
    if (span.end > compute(receive).start) return to_text(receive) + " comes after it is used";
  }
  return "";
}

std::vector<Case> cases() {
  auto all = small_cases(4, 6);
  for (const Case& large :
       {Case{"dualpipe", {4, 10, 1}}, Case{"dualpipev", {4, 10, 1}}, Case{"dualpipe", {6, 14, 1}}}) {
    all.push_back(large);
  }
  return all;
}

BOOST_AUTO_TEST_SUITE(exec_replay)

BOOST_DATA_TEST_CASE(runs_every_op_once_in_order, boost::unit_test::data::make(cases()), a_case) {
  const Program program = lower(generate(a_case.family, a_case.shape));
  const Schedule& schedule = program.schedule;
  const Run got = run(program);
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    const RankRecord& record = got.records[r];
    BOOST_TEST(got.errors[r] == "");
    BOOST_TEST(got.logs[r] == texts_of(schedule.rank(rank)), boost::test_tools::per_element());
    BOOST_TEST(record.done == schedule.rank(rank).size());
    Costs costs = uniform(1, 1, 1);
    costs.stages[0].activation = CheckingStage::held_bytes;
    const RankMemory memory = rank_memory(program, costs, rank);
    BOOST_TEST(record.peak_activations == memory.peak_activations);
    BOOST_TEST(record.peak_memory >= memory.peak);
    BOOST_TEST(record.peak_memory <= memory.peak + memory.peak / 50);
  }
  BOOST_TEST(flaw_of(merge(program, got.records), program) == "");
}

// In a 1F1B of 2 ranks stage 1 gets a letter of 24 bytes, keeps 1 MiB from F to B, and makes a loss of 8 bytes and a
// gradient of 24; from its first B on it has a parameter gradient of 8.
BOOST_AUTO_TEST_CASE(records_the_memory_around_each_op) {
  constexpr Bytes kept = CheckingStage::held_bytes;
  const Program program = lower(generate("1f1b", {2, 2, 1}));  // rank 1: F0 B0 F1 B1
  const Run got = run(program);
  const std::vector<OpMemory>& memory = got.records[1].memory;
  BOOST_TEST_REQUIRE(memory.size() == 4U);
  for (std::size_t i = 0; i < 2; ++i) {
    const OpMemory& forward = memory[2 * i];
    const OpMemory& backward = memory[2 * i + 1];
    const Bytes first = i == 0 ? 0 : 8 + 8;  // what the first micro-batch has left
    BOOST_TEST(forward.before == first + 24);
    BOOST_TEST(forward.peak >= first + kept + 8 + 24);
    BOOST_TEST(forward.peak < first + kept + 1000);  // the letter that it compares with
    BOOST_TEST(forward.after == first + kept + 8);
    BOOST_TEST(forward.output == 8);
    BOOST_TEST(backward.before == first + 8 + kept);
    BOOST_TEST(backward.peak >= first + 8 + kept);
    BOOST_TEST(backward.after == 8 + 8 * static_cast<Bytes>(i + 1) + 24);
    BOOST_TEST(backward.output == 0);
  }
  BOOST_TEST(got.records[1].peak_memory >= memory[2].peak);
}

BOOST_DATA_TEST_CASE(losses_and_gradients_come_back, boost::unit_test::data::make(cases()), a_case) {
  const Program program = lower(generate(a_case.family, a_case.shape));
  const Placement& placement = program.schedule.placement;
  const auto m = static_cast<double>(program.schedule.micro_batches);
  const Run got = run(program);
  double losses = 0;
  for (const RankRecord& record : got.records) {
    for (const double loss : record.losses) losses += loss;
  }
  BOOST_TEST(losses == placement.chains() * (100 * m + m * (m - 1) / 2));
  for (std::size_t stage = 0; stage < got.gradients.size(); ++stage) {
    const auto sharers = std::ranges::count(placement.weights_of, placement.weights_of[stage]);
    BOOST_TEST(got.gradients[stage] == static_cast<double>(sharers) * m * (m + 1) / 2);
  }
}

BOOST_AUTO_TEST_CASE(a_message_takes_the_link_delay) {
  const Program program = lower(generate("1f1b", {3, 4, 1}));
  RunOptions options;
  options.transport.link_delay = 3ms;
  const Run got = run(program, options);
  const Timeline timeline = merge(program, got.records);
  BOOST_TEST(flaw_of(timeline, program) == "");
  for (std::size_t i = 0; i < program.communication.size(); ++i) {
    const Span span = timeline.communication[i];
    BOOST_TEST(span.end - span.start >= 3'000'000);
  }
  BOOST_TEST(timeline.makespan() >= 4 * 3'000'000);  // to the last rank and back
  Time waited = 0;
  for (const Time each : got.records[2].waited) waited += each;
  BOOST_TEST(waited >= 2'000'000);
}

BOOST_AUTO_TEST_CASE(evaluation_runs_forwards_alone) {
  for (const Case& a_case : {Case{"1f1b", {3, 5, 1}}, Case{"dualpipe", {4, 8, 1}}, Case{"interleaved", {2, 4, 2}}}) {
    const Program program = lower(generate(a_case.family, a_case.shape));
    RunOptions options;
    options.forward_only = true;
    const Run got = run(program, options);
    for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
      const auto r = static_cast<std::size_t>(rank);
      std::vector<std::string> forwards;
      for (const Op op : program.schedule.rank(rank)) {
        if (op.kind == Kind::forward) forwards.push_back(to_text(op));
      }
      BOOST_TEST(got.errors[r] == "");
      BOOST_TEST(got.logs[r] == forwards, boost::test_tools::per_element());
      BOOST_TEST(got.records[r].peak_activations == 1);
      BOOST_TEST(got.records[r].peak_memory < CheckingStage::held_bytes);
    }
  }
}

// In the middle of its ops, on each rank in turn.
BOOST_AUTO_TEST_CASE(a_failure_ends_all_ranks_and_names_rank_and_op) {
  for (const Case& a_case : {Case{"1f1b", {4, 8, 1}}, Case{"zb1p", {3, 6, 1}}, Case{"dualpipe", {4, 8, 1}},
                             Case{"dualpipev", {3, 6, 1}}, Case{"interleaved", {2, 4, 2}}}) {
    const Program program = lower(generate(a_case.family, a_case.shape));
    for (int bad = 0; bad < program.schedule.ranks(); ++bad) {
      const auto ops = program.schedule.rank(bad);
      std::size_t at = ops.size() / 2;
      if (at > 0 && ops[at - 1].with_next) --at;
      const Op fatal = ops[at];
      RunOptions options;
      options.before_op = [&](int rank, Op op) {
        if (rank == bad && op == fatal) throw std::runtime_error("boom");
      };
      const Run got = run(program, options);
      const std::string expected = fmt::format("rank {} failed in {}: boom", bad, cell_text(ops.subspan(at)));
      for (std::size_t rank = 0; rank < got.errors.size(); ++rank) {
        BOOST_TEST(got.failed_itself[rank] == (static_cast<int>(rank) == bad));
        BOOST_TEST(got.errors[rank] == expected);
      }
      BOOST_TEST(got.records[static_cast<std::size_t>(bad)].done == at);
      BOOST_TEST((got.duration < 10s));  // well within the timeout
    }
  }
}

BOOST_AUTO_TEST_CASE(what_a_failed_run_did_is_a_timeline) {
  const Program program = lower(generate("1f1b", {3, 6, 1}));
  RunOptions options;
  options.before_op = [](int rank, Op op) {
    if (rank == 2 && op.kind == Kind::backward && op.micro_batch == 2) throw std::runtime_error("boom");
  };
  const Run got = run(program, options);
  const Timeline timeline = merge(program, got.records);
  const Time end = timeline.makespan();
  for (int rank = 0; rank < 3; ++rank) {
    const std::size_t begin = program.schedule.rank_begin[static_cast<std::size_t>(rank)];
    const std::size_t done = got.records[static_cast<std::size_t>(rank)].done;
    for (std::size_t i = 0; i < program.schedule.rank(rank).size(); ++i) {
      const Span span = timeline.ops[begin + i];
      BOOST_TEST((i < done ? span.end <= end : span.start == span.end && span.start >= end));
    }
  }
  BOOST_TEST(got.records[2].done == 5);  // F0 B0 F1 B1 F2
}

BOOST_AUTO_TEST_CASE(a_failure_of_libtorch_is_told_without_its_stack_trace) {
  const Program program = lower(generate("gpipe", {1, 1, 1}));
  RunOptions options;
  options.before_op = [](int, Op op) {
    if (op.kind == Kind::backward) (void)at::ones({2}).add(at::ones({3}));
  };
  const Run got = run(program, options);
  BOOST_TEST(got.errors[0] ==
             "rank 0 failed in 0B0: The size of tensor a (2) must match the size of tensor b (3) at non-singleton "
             "dimension 0");
}

// Rank 0 needs 1B0 before it makes 0F1, rank 1 needs 0F1 before it runs 1B0.
BOOST_AUTO_TEST_CASE(a_program_that_hangs_ends_by_timeout) {
  const Program program = lower(schedule_of(straight(2, 1), {"0F0 0B0 0F1 0B1", "1F1 1B1 1F0 1B0"}));
  RunOptions options;
  options.transport.timeout = 100ms;
  const Run got = run(program, options);
  const std::string rank_0 = "rank 0 failed in 0B0: nothing came from rank 1 for 0RECV_B0 within 0.1 s";
  const std::string rank_1 = "rank 1 failed in 1F1: nothing came from rank 0 for 1RECV_F1 within 0.1 s";
  for (const std::string& error : got.errors) BOOST_TEST((error == rank_0 || error == rank_1), error);
  BOOST_TEST((got.failed_itself[0] || got.failed_itself[1]));
  BOOST_TEST((got.duration >= 100ms));
  BOOST_TEST((got.duration < 50s));  // by its own timeout, not by that of another wait
  BOOST_TEST(got.records[0].done == 1);
  BOOST_TEST(got.records[1].done == 0);
}

BOOST_AUTO_TEST_CASE(a_rank_that_does_not_answer_is_found_out) {
  const Program program = lower(generate("1f1b", {2, 2, 1}));
  RunOptions options;
  options.transport.timeout = 100ms;
  options.before_op = [](int rank, Op op) {
    if (rank == 1 && op == Op{1, 1, Kind::forward, false}) std::this_thread::sleep_for(400ms);
  };
  const Run got = run(program, options);
  BOOST_TEST(got.errors[0] == "rank 0 failed in 0B1: nothing came from rank 1 for 0RECV_B1 within 0.1 s");
  BOOST_TEST(got.errors[1] == got.errors[0]);  // when it comes back
  BOOST_TEST((got.failed_itself == std::vector<bool>{true, false}));
}

// Rank 1 is to reduce the weights of stage 2 before it runs 1F0 and 1B0, rank 0 those of stage 0, the same, after 0B0,
// which needs 1B0.
BOOST_AUTO_TEST_CASE(a_reduction_does_not_hold_up_the_ops_behind_it) {
  const Program program = lower(schedule_of(two_way(2), {"3F0 3B0 0F0 0B0", "2F0 2B0 1F0 1B0"}));
  const auto slot = program.slot(1, 2);
  BOOST_REQUIRE(std::ranges::count(slot, Kind::reduce_gradients, &Op::kind) == 1);
  const Run got = run(program);
  BOOST_TEST(got.errors[0] == "");
  BOOST_TEST(got.errors[1] == "");
  for (const double gradient : got.gradients) BOOST_TEST(gradient == 2);
  const Timeline timeline = merge(program, got.records);
  BOOST_TEST(timeline.reduced >= timeline.ranks[0].last_end);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
