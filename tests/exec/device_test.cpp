// The replay on a device that does later what it is given (tests/exec/async_device.h). And what devices are made of.
#include "dualpipe/exec/device/device.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "dualpipe/exec/device/alias.h"
#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/exec/async_device.h"
#include "tests/exec/training.h"

namespace dualpipe::test {

using detail::device::alias_with_release;

namespace {

// Its ops are work of the device, and nothing else.
class AsyncStage final : public Stage {
 public:
  AsyncStage(const Placement& placement, int stage, AsyncDevice& device, Log& log) : device_(device), log_(log) {
    const auto here = placement.stages_on(placement.rank_of[static_cast<std::size_t>(stage)]);
    index_ = static_cast<std::uint16_t>(std::ranges::find(here, stage) - here.begin());
    const auto from = [&](std::optional<int> other) -> std::optional<AsyncDevice::From> {
      if (!other) return std::nullopt;
      return std::ranges::count(here, *other) > 0 ? AsyncDevice::From::adopt : AsyncDevice::From::take;
    };
    previous_ = from(placement.previous(stage));
    next_ = from(placement.next(stage));
  }

  Tensors forward(std::uint32_t micro_batch, Tensors inputs) override {
    Tensors outputs = run(Kind::forward, inputs, previous_, true);
    if (c10::GradMode::is_enabled()) kept_[micro_batch] = std::move(inputs);
    return outputs;
  }
  Tensors backward(std::uint32_t micro_batch, Tensors gradients) override {
    kept_.erase(micro_batch);
    return run(Kind::backward, gradients, next_, previous_.has_value());
  }
  Tensors backward_input(std::uint32_t micro_batch, Tensors gradients) override {
    Tensors result = run(Kind::input_gradient, gradients, next_, previous_.has_value());
    kept_[micro_batch] = std::move(gradients);
    return result;
  }
  void backward_weight(std::uint32_t micro_batch) override {
    kept_.erase(micro_batch);
    static_cast<void>(run(Kind::weight_gradient, {}, std::nullopt, false));
  }
  std::vector<NamedTensor> named_parameters() override { return {{"parameter", parameter_}}; }

 private:
  // Of several tensors, one of which is nothing.
  Tensors run(Kind kind, const Tensors& inputs, std::optional<AsyncDevice::From> from, bool makes) {
    if (device_.used() != Stream{Stream::Kind::compute, index_}) log_.flaw("an op is not on the stream of its stage");
    if (from && inputs.size() != 3) log_.flaw("a tensor is missing");
    for (const at::Tensor& input : inputs) {
      if (input.defined()) device_.read(input, from.value());
    }
    device_.run(kind);
    if (!makes) return {};
    Tensors results = {at::ones({1}, at::kDouble), {}, at::ones({2}, at::kDouble)};
    if (kind == Kind::forward && !next_) results = {at::ones({1}, at::kDouble)};
    for (const at::Tensor& result : results) {
      if (result.defined()) device_.made(result);
    }
    return results;
  }

  AsyncDevice& device_;
  Log& log_;
  std::uint16_t index_ = 0;
  std::optional<AsyncDevice::From> previous_;
  std::optional<AsyncDevice::From> next_;
  std::map<std::uint32_t, Tensors> kept_;
  at::Tensor parameter_ = at::ones({1}, at::kDouble);
};

struct AsyncRun {
  std::string flaws;
  std::vector<RankRecord> records;  // of the last step
  std::size_t still_handed_over = 0;
};

AsyncRun run(const Program& program, bool copies, bool forward_only = false) {
  const Placement& placement = program.schedule.placement;
  const auto ranks = static_cast<std::size_t>(placement.ranks);
  Log log;
  std::size_t stages_max = 0;
  for (int rank = 0; rank < placement.ranks; ++rank) {
    stages_max = std::max(stages_max, placement.stages_on(rank).size());
  }
  std::vector<std::unique_ptr<AsyncDevice>> devices;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    devices.push_back(std::make_unique<AsyncDevice>(log, rank, ranks, stages_max, copies));
  }
  std::vector<std::unique_ptr<AsyncStage>> stages;
  for (int stage = 0; stage < placement.stages(); ++stage) {
    AsyncDevice& device = *devices[placement.rank_of[static_cast<std::size_t>(stage)]];
    stages.push_back(std::make_unique<AsyncStage>(placement, stage, device, log));
  }
  AsyncRun result;
  result.records.resize(ranks);
  const auto transports = thread_transports(placement, {});
  const auto run_rank = [&](std::size_t rank) {
    at::set_num_threads(1);
    std::vector<Stage*> own;
    for (std::size_t stage = 0; stage < stages.size(); ++stage) {
      own.push_back(placement.rank_of[stage] == rank ? stages[stage].get() : nullptr);
    }
    ReplayOptions options;
    options.forward_only = forward_only;
    options.device = devices[rank].get();
    options.note_parts = true;
    options.before_op = [&](Op op) { devices[rank]->announce(op); };
    try {
      replay(program, static_cast<int>(rank), own, *transports[rank], result.records[rank], options);
    } catch (const std::exception& error) {
      log.flaw(error.what());
    }
  };
  for (int step = 0; step < 2; ++step) {
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < ranks; ++rank) threads.emplace_back(run_rank, rank);
    for (std::thread& each : threads) each.join();
  }
  result.flaws = log.flaws();
  for (const auto& device : devices) result.still_handed_over += device->handed_over();
  return result;
}

Costs costs(Time latency) {
  Costs costs;
  costs.latency = latency;
  costs.stages.resize(1);
  costs.stages[0].forward = forward_time;
  costs.stages[0].backward = backward_time;
  costs.stages[0].input_gradient = input_gradient_time;
  costs.stages[0].weight_gradient = weight_gradient_time;
  costs.stages[0].overlapped = std::max(forward_time, backward_time);
  return costs;
}

// A stage has one stream: a pair of its own F and B runs one after the other, which the simulator, to which all pairs
// of a stage are alike, does not know.
bool pairs_a_stage_with_itself(const Program& program) {
  const auto& ops = program.schedule.ops;
  for (std::size_t i = 0; i + 1 < ops.size(); ++i) {
    if (ops[i].with_next && ops[i].stage == ops[i + 1].stage) return true;
  }
  return false;
}

const std::vector<std::string> schedules = family_names();
const std::vector<int> rank_counts{2, 4};

BOOST_AUTO_TEST_SUITE(exec_device)

// Nothing is used before it is there, nothing of the rank runs at a time but the two of a pair; and so all happens when
// the simulator says.
BOOST_DATA_TEST_CASE(streams_wait_for_what_they_need_and_for_nothing_else,
                     boost::unit_test::data::make(schedules) * boost::unit_test::data::make(rank_counts), name, ranks) {
  const Program program = program_of(name, ranks);
  const AsyncRun got = run(program, false);
  BOOST_TEST_REQUIRE(got.flaws == "");
  BOOST_TEST(got.still_handed_over == 0U);
  const Timeline measured = merge(program, got.records);
  const Timeline planned = simulate(program, costs(0));
  BOOST_TEST_REQUIRE(planned.ops.size() == measured.ops.size());
  if (pairs_a_stage_with_itself(program)) {
    Costs in_turn = costs(0);
    in_turn.stages[0].overlapped.reset();
    BOOST_TEST(name == "interleaved-overlap");
    BOOST_TEST(measured.makespan() > planned.makespan());
    BOOST_TEST(measured.makespan() < simulate(program, in_turn).makespan());
    return;
  }
  for (std::size_t i = 0; i < planned.ops.size(); ++i) {
    BOOST_TEST((measured.ops[i] == planned.ops[i]), to_text(program.schedule.ops[i]));
  }
  for (const RankRecord& record : got.records) {
    BOOST_TEST(*std::ranges::min_element(record.waited) >= 0);
    for (const Span& span : record.communication) BOOST_TEST(span.start <= span.end);
  }
}

// Each has a stream, also where their number does not fit into a byte.
BOOST_AUTO_TEST_CASE(a_rank_may_have_any_number_of_stages) {
  for (const int chunks : {16, 40, 300}) {
    const Program program = lower(generate("looped-bfs", {2, 2, chunks}));
    const AsyncRun got = run(program, false);
    BOOST_TEST(got.flaws == "");
    for (std::size_t rank = 0; rank < 2; ++rank) {
      BOOST_TEST(got.records[rank].done == program.schedule.rank(static_cast<int>(rank)).size());
    }
  }
}

// Copies go on a stream of their own.
BOOST_DATA_TEST_CASE(messages_may_be_copied,
                     boost::unit_test::data::make(schedules) * boost::unit_test::data::make(rank_counts), name, ranks) {
  const Program program = program_of(name, ranks);
  const AsyncRun got = run(program, true);
  BOOST_TEST_REQUIRE(got.flaws == "");
  BOOST_TEST(got.still_handed_over == 0U);
  const Timeline measured = merge(program, got.records);
  BOOST_TEST(measured.makespan() >= simulate(program, costs(0)).makespan());
  // One for each message, one after the other, until that is there.
  BOOST_TEST(measured.parts.size() == static_cast<std::size_t>(std::ranges::count_if(
                                          program.communication, [](Op op) { return is_receive(op.kind); })));
  std::map<int, Time> free_since;
  for (const PartSpan& copy : measured.parts) {
    BOOST_TEST((copy.lane == PartSpan::Lane::copy));
    BOOST_TEST(copy.span.end - copy.span.start == 2 * AsyncDevice::copy_time);  // of two tensors
    Time& free = free_since[program.schedule.placement.rank_of[copy.op.stage]];
    BOOST_TEST(free <= copy.span.start);
    free = copy.span.end;
    const auto message = std::ranges::find_if(program.communication, [&](const Op& op) {
      return std::tuple(op.kind, op.stage, op.micro_batch) ==
             std::tuple(copy.op.kind, copy.op.stage, copy.op.micro_batch);
    });
    BOOST_TEST_REQUIRE((message != program.communication.end()));
    const auto place = static_cast<std::size_t>(message - program.communication.begin());
    BOOST_TEST(copy.span.end == measured.communication[place].end);
  }
}

BOOST_AUTO_TEST_CASE(a_copy_takes_its_time) {
  const Program program = program_of("gpipe", 2);
  const Timeline measured = merge(program, run(program, true).records);
  BOOST_TEST(measured.makespan() == simulate(program, costs(2 * AsyncDevice::copy_time)).makespan());
}

BOOST_AUTO_TEST_CASE(evaluation_uses_streams_too) {
  for (const auto* const name : {"1f1b", "dualpipe", "interleaved"}) {
    const AsyncRun got = run(program_of(name, 4), false, true);
    BOOST_TEST(got.flaws == "");
    BOOST_TEST(got.still_handed_over == 0U);
  }
}

// --- the double itself

struct Alone {
  Log log;
  AsyncDevice device{log, 0, 1, 2, false};

  static constexpr Stream other{Stream::Kind::compute, 1};
  at::Tensor made() {
    device.announce({});
    device.run(Kind::forward);
    at::Tensor tensor = at::ones({1});
    device.made(tensor);
    return tensor;
  }
};

BOOST_FIXTURE_TEST_CASE(it_sees_a_race, Alone) {
  device.begin_step();
  device.use({});
  const Event early = device.record_event();
  const at::Tensor tensor = made();
  const Event late = device.record_event();
  device.use(other);
  device.read(tensor);
  BOOST_TEST(log.flaws() == "a tensor is used before it is made");
  static_cast<void>(device.adopt(tensor, early));
  BOOST_TEST(log.flaws().find("not ready at its event") != std::string::npos);
  device.announce({});
  device.run(Kind::forward);
  BOOST_TEST(log.flaws().find("does not wait for what was before") != std::string::npos);
  static_cast<void>(device.time_of(late));
  BOOST_TEST(log.flaws().find("before finish()") != std::string::npos);
}

BOOST_FIXTURE_TEST_CASE(it_sees_what_was_not_handed_over, Alone) {
  device.begin_step();
  device.use({});
  const at::Tensor tensor = made();
  device.read(tensor, AsyncDevice::From::adopt);
  BOOST_TEST(log.flaws() == "what another stream made was not adopted");
  const at::Tensor adopted = device.adopt(tensor, device.record_event());
  device.read(adopted, AsyncDevice::From::take);
  BOOST_TEST(log.flaws().find("a message was not taken") != std::string::npos);
}

// --- the module

// The double of the CUDA module, tests/exec/module_double.cpp, which does as it is told.
class Module {
 public:
  explicit Module(const std::string& behaviour, const std::string& file = DUALPIPE_MODULE_DOUBLE) {
    setenv("DUALPIPE_CUDA_MODULE", file.c_str(), 1);
    setenv("DUALPIPE_DOUBLE", behaviour.c_str(), 1);
  }
  ~Module() {
    unsetenv("DUALPIPE_CUDA_MODULE");
    unsetenv("DUALPIPE_DOUBLE");
  }
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;
};

// The environment of a process that a launcher has started, or none has.
class Launched {
 public:
  explicit Launched(const std::map<std::string, std::string>& variables) {
    for (const char* const name : {"LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"}) {
      if (const char* const before = std::getenv(name)) before_[name] = before;
      unsetenv(name);
    }
    for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
    for (const auto& each : variables) set_.push_back(each.first);
  }
  ~Launched() {
    for (const std::string& name : set_) unsetenv(name.c_str());
    for (const auto& [name, value] : before_) setenv(name.c_str(), value.c_str(), 1);
  }
  Launched(const Launched&) = delete;
  Launched& operator=(const Launched&) = delete;

 private:
  std::vector<std::string> set_;
  std::map<std::string, std::string> before_;
};

BOOST_AUTO_TEST_CASE(a_module_is_loaded_when_it_is_asked_for) {
  const Module module("works");
  const Launched by_nobody({});
  const auto hardware = cuda_hardware({.copy = true});
  BOOST_TEST(hardware->description() == "a double that copies");
  const auto device = hardware->device(0, 1, 1);
  BOOST_TEST(device->where().is_cpu());
  BOOST_TEST(device->record_event().time > 0);
  BOOST_TEST(hardware->event_cost().between == 2);
  BOOST_TEST(cuda_hardware({})->description() == "a double");
}

// Somebody else's program has loaded the library.
BOOST_AUTO_TEST_CASE(a_module_is_found_beside_the_library_that_asks) {
  const Launched by_nobody({});
  void* const library = dlopen(DUALPIPE_MODULE_USER, RTLD_NOW | RTLD_LOCAL);
  BOOST_TEST_REQUIRE(library != nullptr, dlerror());
  const auto text = reinterpret_cast<const char* (*)()>(dlsym(library, "dualpipe_hardware_text"));
  BOOST_TEST_REQUIRE(text != nullptr);
  BOOST_TEST(text() == std::string("a double"));
}

// Which of the GPUs a process has is known on this side, and told to the module.
BOOST_AUTO_TEST_CASE(a_module_hears_which_process_of_its_host_it_serves) {
  const Module module("works");
  const auto described = [](const std::map<std::string, std::string>& variables, const CudaOptions& options = {}) {
    const Launched launched(variables);
    return cuda_hardware(options)->description();
  };
  BOOST_TEST(described({}) == "a double");
  BOOST_TEST(described({{"LOCAL_RANK", "3"}}) == "a double, 3 by LOCAL_RANK");
  BOOST_TEST(described({{"OMPI_COMM_WORLD_LOCAL_RANK", "2"}}) == "a double, 2 by OMPI_COMM_WORLD_LOCAL_RANK");
  BOOST_TEST(described({{"SLURM_LOCALID", "1"}}) == "a double, 1 by SLURM_LOCALID");
  BOOST_TEST(described({{"SLURM_LOCALID", "1"}, {"LOCAL_RANK", "0"}}) == "a double, 0 by LOCAL_RANK");
  BOOST_TEST(described({{"LOCAL_RANK", "3"}}, {.local = LocalProcess{"the test", 5}}) == "a double, 5 by the test");
  BOOST_CHECK_THROW((void)described({{"LOCAL_RANK", "third"}}), InputError);
}

// Types of exceptions are known on both sides.
BOOST_AUTO_TEST_CASE(what_a_module_throws_arrives_as_it_is) {
  const auto says = [](const std::string& text) {
    return [text](const std::exception& error) { return error.what() == text; };
  };
  {
    const Module module("no GPU");
    BOOST_CHECK_EXCEPTION(static_cast<void>(cuda_hardware({})), InputError, says("there is no GPU"));
  }
  const Module module("too few");
  const auto hardware = cuda_hardware({});
  BOOST_CHECK_EXCEPTION(static_cast<void>(hardware->device(1, 2, 1)), InputError, says("too few for 2 ranks"));
  const auto device = hardware->device(0, 1, 1);
  BOOST_CHECK_EXCEPTION(device->finish(), std::runtime_error, says("the device failed"));
}

BOOST_AUTO_TEST_CASE(a_module_that_cannot_be_used_says_why) {
  const auto fails = [](const std::vector<std::string>& texts) {
    try {
      static_cast<void>(cuda_hardware({}));
    } catch (const InputError& error) {
      for (const std::string& text : texts) {
        if (std::string(error.what()).find(text) == std::string::npos) return std::string(error.what());
      }
      return std::string();
    }
    return std::string("it was used");
  };
  {
    const Module module("works", "no-such-file.so");
    BOOST_TEST(fails({"there is no file no-such-file.so, which DUALPIPE_CUDA_MODULE names"}) == "");
  }
  {
    const Module module("works", DUALPIPE_TESTS_DIR "/CMakeLists.txt");
    BOOST_TEST(fails({"CMakeLists.txt cannot be loaded: ", "invalid ELF header"}) == "");
  }
  const Module module("other version");
  BOOST_TEST(fails({"is of another version of DualPipe", "build both together"}) == "");
}

// --- leases

BOOST_AUTO_TEST_CASE(a_lease_is_the_same_tensor) {
  const at::Tensor whole = at::arange(24, at::kInt).view({4, 6});
  const at::Tensor part = whole.narrow(0, 1, 2).t();
  at::Tensor given_back;
  at::Tensor aliased = alias_with_release(part, [&](at::Tensor tensor) { given_back = std::move(tensor); });
  BOOST_TEST(at::equal(aliased, part));
  BOOST_TEST(aliased.strides() == part.strides());
  BOOST_TEST(aliased.data_ptr() == part.data_ptr());
  BOOST_TEST(aliased.storage().data() == whole.storage().data());
  BOOST_TEST((aliased.scalar_type() == at::kInt));
  BOOST_TEST(aliased.key_set() == part.key_set());
  at::Tensor view = aliased.select(0, 0);
  aliased.reset();
  BOOST_TEST(!given_back.defined());
  view.reset();
  BOOST_TEST(given_back.is_same(part));
}

BOOST_AUTO_TEST_CASE(a_lease_takes_part_in_autograd_by_itself) {
  const at::Tensor leaf = at::ones({3}, at::kDouble).set_requires_grad(true);
  int ended = 0;
  {
    at::Tensor aliased = alias_with_release((leaf * 2).detach(), [&](const at::Tensor&) { ++ended; });
    BOOST_TEST(!aliased.requires_grad());
    aliased.set_requires_grad(true);
    (aliased * aliased).sum().backward();
    BOOST_TEST(at::equal(aliased.grad(), at::full({3}, 4.0, at::kDouble)));
    BOOST_TEST(!leaf.grad().defined());
    BOOST_TEST(ended == 0);
  }
  BOOST_TEST(ended == 1);
}

BOOST_AUTO_TEST_CASE(a_lease_ends_on_any_thread_and_may_fail_to_end) {
  std::thread::id where;
  at::Tensor aliased = alias_with_release(at::ones({3}), [&](const at::Tensor&) {
    where = std::this_thread::get_id();
    throw std::runtime_error("the device is gone");
  });
  std::thread other([tensor = std::move(aliased)]() mutable { tensor.reset(); });
  const auto id = other.get_id();
  other.join();
  BOOST_TEST((where == id));
}

BOOST_AUTO_TEST_CASE(what_has_no_memory_is_not_leased) {
  int ended = 0;
  const auto count = [&](const at::Tensor&) { ++ended; };
  BOOST_TEST(!alias_with_release(at::Tensor(), count).defined());
  BOOST_TEST(ended == 0);
  BOOST_TEST(alias_with_release(at::empty({0, 3}), count).sizes() == at::IntArrayRef({0, 3}));
  BOOST_TEST(ended == 1);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
