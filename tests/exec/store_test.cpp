// Processes that meet at a TCP store: what launchers tell them, the World that they make, and how it ends.
#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dualpipe/exec/train/probe.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/launch.h"
#include "dualpipe/exec/transport/store_world.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/placement.h"
#include "tests/exec/stream_device.h"
#include "tests/exec/training.h"
#include "tests/exec/worlds.h"
#include "tests/scratch.h"

namespace dualpipe::test {

using detail::train::probe_links;

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Variables = std::map<std::string, std::string>;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Environment environment_of(const Variables& variables) {
  return [&variables](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  };
}
Launch launch_from(const Variables& variables) { return launch_of(environment_of(variables)); }
std::optional<LocalProcess> local_from(const Variables& variables) { return local_process(environment_of(variables)); }
Started started_from(const Variables& variables) { return started(environment_of(variables)); }

std::string refusal_of(const Variables& variables) {
  try {
    (void)launch_from(variables);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

Variables without(Variables variables, const std::string& name) {
  variables.erase(name);
  return variables;
}
Variables with(Variables variables, const std::string& name, const std::string& value) {
  variables[name] = value;
  return variables;
}

const Variables torchrun{{"RANK", "3"},
                         {"WORLD_SIZE", "4"},
                         {"LOCAL_RANK", "1"},
                         {"MASTER_ADDR", "node7"},
                         {"MASTER_PORT", "29500"},
                         {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                         {"TORCHELASTIC_RUN_ID", "job"},
                         {"TORCHELASTIC_RESTART_COUNT", "2"}};
const Variables mpirun{{"OMPI_COMM_WORLD_RANK", "1"},
                       {"OMPI_COMM_WORLD_SIZE", "2"},
                       {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                       {"MASTER_ADDR", "node1"},
                       {"MASTER_PORT", "1234"}};
const Variables srun{{"SLURM_PROCID", "5"},
                     {"SLURM_STEP_NUM_TASKS", "8"},
                     {"SLURM_LOCALID", "1"},
                     {"SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1"},
                     {"MASTER_PORT", "1234"}};

StoreOptions soon() { return {.timeout = 10s, .measure_clock = true}; }

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_store)

// --- launchers

BOOST_AUTO_TEST_CASE(launchers_are_understood) {
  BOOST_TEST((launch_from(torchrun) == Launch{3, 4, "node7", 29500, true, "job/2"}));
  BOOST_TEST((launch_from(mpirun) == Launch{1, 2, "node1", 1234, false, "/"}));
  BOOST_TEST((launch_from(srun) == Launch{5, 8, "10.0.0.1", 1234, false, "/"}));
  BOOST_TEST((launch_from(with(srun, "MASTER_ADDR", "node3")).address == "node3"));
  BOOST_TEST((launch_from({}) == Launch{0, 1, "localhost", 0, false, ""}));
  BOOST_TEST(
      (launch_from({{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_LOCALID", "0"}}).processes == 1));
}

// torchrun within srun, mpirun within a batch job.
BOOST_AUTO_TEST_CASE(the_inner_launcher_counts) {
  Variables both = torchrun;
  both.insert(srun.begin(), srun.end());
  BOOST_TEST(launch_from(both).process == 3);
  both = mpirun;
  both.insert(srun.begin(), srun.end());
  BOOST_TEST(launch_from(both).process == 1);
}

// What sbatch sets for the script, which runs by itself.
BOOST_AUTO_TEST_CASE(a_batch_script_is_no_step) {
  const Variables script{{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_LOCALID", "0"}};
  BOOST_TEST((launch_from(script) == launch_from({})));
  BOOST_TEST((started_from(script) == Started{}));
}

BOOST_AUTO_TEST_CASE(a_process_knows_how_many_were_started) {
  BOOST_TEST((started_from({}) == Started{"", 1}));
  BOOST_TEST((started_from(torchrun) == Started{"torchrun", 4}));
  BOOST_TEST((started_from(mpirun) == Started{"mpirun", 2}));
  BOOST_TEST((started_from(srun) == Started{"srun", 8}));
  BOOST_TEST((started_from(with(srun, "SLURM_STEP_NUM_TASKS", "1")) == Started{"srun", 1}));  // salloc's own shell
  BOOST_TEST((started_from({{"PMI_RANK", "0"}, {"PMI_SIZE", "3"}}).processes == 3));
  BOOST_TEST((started_from({{"RANK", "3"}}) == Started{}));  // of something else
  BOOST_CHECK_THROW((void)started_from(with(torchrun, "WORLD_SIZE", "many")), InputError);
}

BOOST_AUTO_TEST_CASE(a_process_knows_which_it_is_on_its_host) {
  BOOST_TEST(!local_from({}).has_value());
  BOOST_TEST((local_from(torchrun) == LocalProcess{"LOCAL_RANK", 1}));
  BOOST_TEST((local_from(mpirun) == LocalProcess{"OMPI_COMM_WORLD_LOCAL_RANK", 0}));
  BOOST_TEST((local_from(srun) == LocalProcess{"SLURM_LOCALID", 1}));
  BOOST_TEST((local_from(with(srun, "OMPI_COMM_WORLD_LOCAL_RANK", "0")) == local_from(mpirun)));
  BOOST_TEST((local_from(with(mpirun, "LOCAL_RANK", "1")) == local_from(torchrun)));
  for (const char* const number : {"", "-1", "1x", "many"}) {
    BOOST_CHECK_EXCEPTION((void)local_from({{"SLURM_LOCALID", number}}), InputError, [&](const InputError& error) {
      return contains(error.what(), fmt::format("SLURM_LOCALID is '{}'", number));
    });
  }
}

BOOST_AUTO_TEST_CASE(what_is_missing_or_wrong_is_named) {
  BOOST_TEST(contains(refusal_of(without(torchrun, "LOCAL_RANK")), "LOCAL_RANK is not set"));
  BOOST_TEST(contains(refusal_of(without(torchrun, "WORLD_SIZE")), "WORLD_SIZE is not set"));
  BOOST_TEST(contains(refusal_of(with(torchrun, "RANK", "4")), "RANK is '4'"));
  BOOST_TEST(contains(refusal_of(with(torchrun, "RANK", "")), "RANK is ''"));
  BOOST_TEST(contains(refusal_of(with(torchrun, "RANK", "-1")), "a number from 0 to 3"));
  BOOST_TEST(contains(refusal_of(with(torchrun, "MASTER_PORT", "65536")), "MASTER_PORT is '65536'"));
  BOOST_TEST(contains(refusal_of(with(torchrun, "MASTER_PORT", "0")), "MASTER_PORT is '0'"));
  BOOST_TEST(contains(refusal_of(without(mpirun, "MASTER_ADDR")), "mpirun does not say where"));
  BOOST_TEST(contains(refusal_of(without(mpirun, "MASTER_PORT")), "set MASTER_PORT"));
  BOOST_TEST(contains(refusal_of(without(srun, "SLURM_LAUNCH_NODE_IPADDR")), "srun does not say where"));
}

// --- processes that are threads

BOOST_AUTO_TEST_CASE(an_all_gather_brings_all_parts_in_order) {
  const auto errors = in_worlds(3, nullptr, soon(), [](World& world) {
    if (std::abs(world.clock_offset()) >= 5'000'000) throw std::runtime_error("another clock");
    (void)world.transports(straight(3, 1), {});
    for (int round = 0; round < 20; ++round) {
      const std::string large(static_cast<std::size_t>(round) * 1000, 'x');
      const auto all = world.all_gather("a round", fmt::format("{} {} {}", round, world.process(), large));
      for (int each = 0; each < 3; ++each) {
        if (all.at(static_cast<std::size_t>(each)) != fmt::format("{} {} {}", round, each, large)) {
          throw std::runtime_error("another's part");
        }
      }
    }
  });
  BOOST_TEST(errors == std::vector<std::string>(3), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(processes_at_different_places_are_named) {
  const auto errors = in_worlds(
      2, nullptr, soon(), [](World& world) { (void)world.all_gather(world.process() == 0 ? "here" : "there", ""); });
  for (const std::string& each : errors)
    BOOST_TEST(contains(each, "process 0 is at here, and process 1 at there"), each);
}

BOOST_AUTO_TEST_CASE(one_that_does_not_come_is_named) {
  const auto errors = in_worlds(3, nullptr, soon(), [](World& world) {
    (void)world.transports(straight(3, 1), {.timeout = 300ms});
    if (world.process() == 1) return;
    (void)world.all_gather("the feast", "");
  });
  BOOST_TEST(contains(errors[0], "rank 1 did not come to the feast within 0.3 s"), errors[0]);
  BOOST_TEST(contains(errors[2], "rank 1"), errors[2]);
}

// More than a store takes at once.
BOOST_AUTO_TEST_CASE(what_is_large_comes_whole) {
  const auto errors = in_worlds(2, nullptr, soon(), [](World& world) {
    (void)world.transports(straight(2, 1), {});
    const auto part_of = [](int process) {
      return std::string(std::size_t{20} << 20U, static_cast<char>('a' + process));
    };
    const auto all = world.all_gather("the feast", part_of(world.process()));
    for (int each = 0; each < 2; ++each) {
      if (all.at(static_cast<std::size_t>(each)) != part_of(each)) throw std::runtime_error("another's part");
    }
  });
  BOOST_TEST(errors == std::vector<std::string>(2), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(a_message_has_any_number_of_tensors) {
  const auto errors = in_worlds(2, nullptr, soon(), [](World& world) {
    for (const Messages& each : many_messages()) exchange_messages(world, each);
  });
  BOOST_TEST(errors == std::vector<std::string>(2), boost::test_tools::per_element());
}

// Ranks can reach each other through the store itself: the whole replay in several processes.
BOOST_DATA_TEST_CASE(a_pipeline_over_the_store_trains_like_one_of_threads,
                     boost::unit_test::data::make({"1f1b", "dualpipe", "dualpipev"}), name) {
  const Program program = program_of(name, 4);
  TrainOptions options = tiny(program, "gpt");
  options.clip = 0.5;
  options.steps = 2;
  const TrainResult expected = train(program, options);
  std::mutex mutex;
  std::vector<std::vector<double>> losses;
  const auto errors = in_worlds(2, nullptr, soon(), [&](World& world) {
    const TrainResult result = train(world, program, options);
    const std::lock_guard lock(mutex);
    losses.push_back(result.losses);
  });
  BOOST_TEST(errors == std::vector<std::string>(2), boost::test_tools::per_element());
  BOOST_REQUIRE(losses.size() == 2U);
  for (const auto& each : losses) BOOST_TEST(each == expected.losses);
}

BOOST_AUTO_TEST_CASE(a_failure_ends_all) {
  const Program program = program_of("1f1b", 4);
  TrainOptions options = tiny(program, "mlp");
  options.before_op = [](int rank, Op op) {
    if (rank == 2 && op.micro_batch == 3) throw std::runtime_error("out of paper");
  };
  const auto errors = in_worlds(4, nullptr, soon(), [&](World& world) { (void)train(world, program, options); });
  for (const std::string& each : errors) BOOST_TEST(each == "rank 2 failed in 2F3: out of paper");
}

// --- the store

BOOST_AUTO_TEST_CASE(a_port_in_use_is_named) {
  const auto port = free_port();
  const auto first = store_processes(launch(0, 1, port), nullptr, soon());
  BOOST_CHECK_EXCEPTION((void)store_processes(launch(0, 1, port), nullptr, soon()), InputError, [&](const auto& error) {
    return contains(error.what(), "cannot make the store") && contains(error.what(), fmt::format("port {}", port));
  });
  (void)first->end({});
  BOOST_TEST(first->close());
}

BOOST_AUTO_TEST_CASE(a_store_that_is_not_there_is_named) {
  const auto begin = Clock::now();
  BOOST_CHECK_EXCEPTION((void)store_processes(launch(1, 2, free_port()), nullptr, {.timeout = 300ms}), InputError,
                        [](const auto& error) { return contains(error.what(), "cannot reach process 0's store"); });
  BOOST_TEST((Clock::now() - begin < 10s));
}

BOOST_AUTO_TEST_CASE(one_that_does_not_start_is_named) {
  const auto begin = Clock::now();
  BOOST_CHECK_EXCEPTION((void)store_processes(launch(0, 2, free_port()), nullptr, {.timeout = 300ms}), TimeoutError,
                        [](const auto& error) {
                          return contains(error.what(),
                                          "process 1 did not come to the start of the processes within 0.3 s");
                        });
  BOOST_TEST((Clock::now() - begin < 10s));
}

// By a store that stays: torchrun's agent has it.
BOOST_AUTO_TEST_CASE(a_restart_does_not_see_what_was_before) {
  const auto port = free_port();
  const auto agent = store_processes(launch(0, 1, port), nullptr, soon());
  for (int restart = 0; restart < 2; ++restart) {
    Launch again = launch(0, 1, port);
    again.is_served = true;
    again.run = fmt::format("job/{}", restart);
    const auto world = store_processes(again, nullptr, soon());
    BOOST_CHECK_EXCEPTION((void)store_processes(again, nullptr, soon()), InputError, [](const auto& error) {
      return contains(error.what(), "two processes say that they are process 0 of 1");
    });
    (void)world->end({});
    BOOST_TEST(world->close());
  }
  (void)agent->end({});
  BOOST_TEST(agent->close());
}

// --- processes

namespace {

// From now on: no stack fits into the address space.
void refuse_threads() {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, std::size_t{1} << 47U);
  pthread_setattr_default_np(&attributes);
  pthread_attr_destroy(&attributes);
}

}  // namespace

// Not a test of its own: what a process of the tests below does, when they run this executable again.
BOOST_AUTO_TEST_CASE(a_process) {
  const char* const result = std::getenv("DUALPIPE_TEST_RESULT");
  if (result == nullptr) return;
  const std::string mode = std::getenv("DUALPIPE_TEST_MODE");
  std::string text;
  Ending ending;
  const auto world = store_processes(launch_of(), nullptr, {.timeout = 10s});
  while (mode == "has the store") ::pause();
  try {
    const Program program = program_of("1f1b", 3);
    TrainOptions options = tiny(program, "mlp");
    options.transport.timeout = 700ms;
    options.measure_links = mode == "no thread for a probe";
    if (launch_of().process == 1 && mode.starts_with("no thread")) refuse_threads();
    options.before_op = [&](int rank, Op op) {
      if (rank != 1 || op.kind != Kind::backward || op.micro_batch != 2) return;
      if (mode == "killed") ::raise(SIGKILL);
      if (mode == "stopped") ::raise(SIGSTOP);
    };
    text = fmt::format("trained {} steps", train(*world, program, options).losses.size());
  } catch (const std::exception& error) {
    text = error.what();
    ending = {true, false, false, text};
  }
  const auto told = world->end(ending);
  for (const std::string& each : told) text += "\ntold: " + each;
  std::ofstream(result) << text;
  if (!world->close()) ::_exit(1);
}

namespace {

// Runs this executable again, which then is a_process().
pid_t start_process(const std::string& mode, int process, int processes, std::uint16_t port,
                    const std::string& result) {
  const std::vector<std::string> variables{fmt::format("RANK={}", process),
                                           fmt::format("LOCAL_RANK={}", process),
                                           fmt::format("WORLD_SIZE={}", processes),
                                           "RES_OPTIONS=timeout:1 attempts:1",
                                           fmt::format("MASTER_ADDR={}", this_host),
                                           fmt::format("MASTER_PORT={}", port),
                                           "DUALPIPE_TEST_MODE=" + mode,
                                           "DUALPIPE_TEST_RESULT=" + result};
  std::vector<char*> environment;
  for (const std::string& each : variables) environment.push_back(const_cast<char*>(each.c_str()));
  environment.push_back(nullptr);
  const pid_t child = ::fork();
  if (child != 0) return child;
  const int nowhere = ::open("/dev/null", O_WRONLY);
  ::dup2(nowhere, STDOUT_FILENO);
  ::dup2(nowhere, STDERR_FILENO);
  char name[] = "exec_tests";
  char test[] = "--run_test=exec_store/a_process";
  char* const arguments[] = {name, test, nullptr};
  ::execve("/proc/self/exe", arguments, environment.data());
  ::_exit(127);
}

// Starts three, and returns what each has written; "" for one that did not end by itself.
std::vector<std::string> run_processes(const std::string& mode) {
  const Scratch scratch;
  const std::uint16_t port = free_port();
  std::vector<pid_t> children;
  std::vector<std::string> results;
  for (int process = 0; process < 3; ++process) {
    results.push_back(scratch / fmt::format("result{}", process));
    const pid_t child = start_process(mode, process, 3, port, results.back());
    children.push_back(child);
    if (process == 0) await_listener(port);
  }
  const bool is_one_stuck = mode == "killed" || mode == "stopped";
  const auto deadline = Clock::now() + 60s;
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < children.size(); ++i) {
    int status = 0;
    while (!(i == 1 && is_one_stuck) && ::waitpid(children[i], &status, WNOHANG) == 0 && Clock::now() < deadline) {
      std::this_thread::sleep_for(5ms);
    }
  }
  for (std::size_t i = 0; i < children.size(); ++i) {
    if (i == 1 && is_one_stuck) {
      ::kill(children[i], SIGKILL);
      ::waitpid(children[i], nullptr, 0);
    }
    std::stringstream text;
    text << std::ifstream(results[i]).rdbuf();
    texts.push_back(text.str());
  }
  BOOST_TEST((Clock::now() < deadline));
  return texts;
}

}  // namespace

BOOST_AUTO_TEST_CASE(processes_train_together) {
  for (const std::string& each : run_processes("well")) BOOST_TEST(each == "trained 1 steps");
}

BOOST_AUTO_TEST_CASE(a_killed_process_ends_the_others) {
  const auto texts = run_processes("killed");
  for (const std::size_t i : {0U, 2U}) BOOST_TEST(contains(texts[i], "rank 1"), texts[i]);
  BOOST_TEST(contains(texts[0], "told: "), texts[0]);
  BOOST_TEST(texts[1] == "");
}

BOOST_AUTO_TEST_CASE(a_stopped_process_ends_the_others) {
  const auto texts = run_processes("stopped");
  for (const std::size_t i : {0U, 2U}) BOOST_TEST(contains(texts[i], "rank 1"), texts[i]);
  BOOST_TEST(texts[1] == "");
}

// The others hear it, and do not find out by their timeouts.
BOOST_DATA_TEST_CASE(a_process_without_threads_ends_the_others,
                     boost::unit_test::data::make({"no thread for a probe", "no thread for a rank"}), mode) {
  for (const std::string& each : run_processes(mode)) {
    BOOST_TEST(contains(each, "the system does not give 1 threads, one for each rank"), each);
  }
}

// The store of another process, which is stopped or killed: no call that it would have to answer comes back.
BOOST_DATA_TEST_CASE(a_store_that_does_not_answer_holds_nobody, boost::unit_test::data::make({SIGSTOP, SIGKILL}),
                     signal) {
  const std::uint16_t port = free_port();
  const pid_t other = start_process("has the store", 0, 1, port, "/dev/null");
  await_listener(port);
  const auto guest = [&](const std::string& run) {
    Launch made = launch(0, 1, port);
    made.is_served = true;
    made.run = run;
    return made;
  };
  auto world = store_processes(guest("before"), nullptr, soon());
  ::kill(other, signal);
  ::waitpid(other, nullptr, WUNTRACED);
  auto end = std::async(std::launch::async, [&] { world.reset(); });
  BOOST_TEST((end.wait_for(10s) == std::future_status::ready));
  auto start = std::async(std::launch::async, [&] { (void)store_processes(guest("after"), nullptr, {.timeout = 1s}); });
  BOOST_TEST((start.wait_for(10s) == std::future_status::ready));
  ::kill(other, SIGKILL);
  ::waitpid(other, nullptr, 0);
  BOOST_CHECK_EXCEPTION(start.get(), InputError,
                        [](const auto& error) { return contains(error.what(), "cannot reach process 0's store"); });
}

// Where a rank does not come to its part of a probe the others hear it, in its process and elsewhere.
BOOST_DATA_TEST_CASE(a_probe_without_a_device_ends_all, boost::unit_test::data::make({1, 2}), processes) {
  class OneMissing final : public Hardware {
   public:
    explicit OneMissing(int missing) : missing_(missing) {}
    [[nodiscard]] std::string description() const override { return "broken"; }
    [[nodiscard]] std::unique_ptr<Device> device(int index, int, int) override {
      if (index == missing_) throw InputError("there is no device");
      return std::make_unique<StreamDevice>();
    }

   private:
    int missing_;
  };
  const auto begin = Clock::now();
  const auto errors = in_worlds(processes, nullptr, soon(), [&](World& world) {
    const auto here = world.ranks_here(2);
    OneMissing hardware(static_cast<int>(std::ranges::find(here, 1) - here.begin()));  // that of rank 1
    TrainOptions options;
    options.transport.timeout = 20s;
    options.hardware = &hardware;
    (void)probe_links(world, 2, options);
  });
  BOOST_TEST(errors.back() == "there is no device");
  if (processes == 2) BOOST_TEST(contains(errors[0], "rank 1 failed: there is no device"), errors[0]);
  BOOST_TEST((Clock::now() - begin < 10s));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
