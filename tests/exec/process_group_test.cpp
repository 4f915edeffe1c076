// Ranks that a process group of somebody else's connects, on the host: a double of gloo.
#include "dualpipe/exec/transport/process_group.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstdint>
#include <future>
#include <memory>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/group_backend.h"
#include "dualpipe/sim/schedule/error.h"
#include "tests/exec/absence.h"
#include "tests/exec/group_double.h"
#include "tests/exec/parity.h"
#include "tests/exec/stream_device.h"
#include "tests/exec/training.h"
#include "tests/exec/worlds.h"
#include "tests/support.h"

namespace dualpipe::test {

using detail::transport::GroupBackend;
using detail::transport::Transfer;
using detail::transport::TransferError;

namespace {

namespace data = boost::unit_test::data;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Lines = std::vector<std::string>;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void check_used_well(const GroupDouble& group) {
  for (const std::string& each : group.misuse()) BOOST_TEST_ERROR(each);
}

Outcome over_group(GroupDouble& group, const Program& program, const TrainOptions& options) {
  return trained(program, options, [&](const std::function<void(World&)>& run) { return in_group(group, run); });
}

void check_trains(GroupDouble& group, const Program& program, const TrainOptions& options) {
  const Outcome got = over_group(group, program, options);
  const Outcome expected = trained_over_threads(program, options);
  BOOST_TEST(got.errors == Lines(got.errors.size()), boost::test_tools::per_element());
  BOOST_TEST(got.losses == expected.losses);
  BOOST_TEST(!expected.gradients.empty());
  BOOST_TEST(are_equal(got.gradients, expected.gradients));
  check_used_well(group);
}

BOOST_AUTO_TEST_SUITE(exec_process_group)

BOOST_DATA_TEST_CASE(trains_like_threads, data::make(family_names()) * data::make({2, 4}), name, ranks) {
  const Program program = program_of(name, ranks);
  for (const std::string model : {"mlp", "gpt"}) {
    if (model == "gpt" && ranks == 2) continue;
    TrainOptions options = two_clipped_steps(program, model);
    options.shape.tied = model == "gpt";
    GroupDouble group(ranks);
    check_trains(group, program, options);
  }
}

BOOST_AUTO_TEST_CASE(a_message_has_any_number_of_tensors) {
  GroupDouble group(2);
  BOOST_TEST(in_group(group,
                      [](World& world) {
                        for (const Messages& each : many_messages()) exchange_messages(world, each);
                      }) == Lines(2),
             boost::test_tools::per_element());
  check_used_well(group);
}

// A receive whose message nobody waits for yet holds up nothing: rank 1 waits for the second before the first is sent.
BOOST_AUTO_TEST_CASE(directions_do_not_wait_for_each_other) {
  GroupDouble group(2);
  const auto errors = in_group(group, [](World& world) {
    const auto rank = static_cast<std::size_t>(world.process());
    const auto transports = world.transports(v_shape(2), {.timeout = 5s});
    Transport& transport = *transports[rank];
    Device& device = host_device();
    transport.begin(program_of("dualpipev", 2, 4), device);
    const auto send = [&](Op op, double value) {
      transport.send(op, {at::full({1}, value, at::kDouble)}, device.record_event());
      transport.end_batch();
    };
    const auto post = [&](Op op) {
      transport.post_receive(op);
      transport.end_batch();
      return op;
    };
    const auto get = [&](Op op) { return transport.wait(op).tensors.at(0).item<double>(); };
    // What all are like is known after these.
    if (rank == 0) {
      send({0, 0, Kind::send_forward, false}, 10);
      send({0, 3, Kind::send_backward, false}, 20);
      (void)transport.sum(0);
      send({1, 3, Kind::send_backward, false}, 21);
      (void)transport.sum(0);
      send({1, 0, Kind::send_forward, false}, 11);
    } else {
      if (get(post({0, 1, Kind::receive_forward, false})) != 10) throw std::runtime_error("not 10");
      if (get(post({0, 2, Kind::receive_backward, false})) != 20) throw std::runtime_error("not 20");
      (void)transport.sum(0);
      const Op first = post({1, 1, Kind::receive_forward, false});
      if (get(post({1, 2, Kind::receive_backward, false})) != 21) throw std::runtime_error("not 21");
      (void)transport.sum(0);
      if (get(first) != 11) throw std::runtime_error("not 11");
    }
    transport.confirm();
  });
  BOOST_TEST(errors == Lines(2), boost::test_tools::per_element());
  check_used_well(group);
}

// A process may be of several groups, under different numbers, and run a pipeline over each at the same time.
BOOST_AUTO_TEST_CASE(pipelines_over_several_groups_run_side_by_side) {
  const Program program = program_of("dualpipe", 4);
  const TrainOptions options = two_clipped_steps(program, "mlp");
  std::array<GroupDouble, 2> groups{GroupDouble(4), GroupDouble(4)};
  std::array<std::array<std::vector<double>, 4>, 2> losses;
  std::vector<std::future<void>> pipelines;
  for (std::size_t process = 0; process < 4; ++process) {
    for (const std::size_t of : {0U, 1U}) {
      const std::size_t rank = of == 0 ? process : (process + 1) % 4;
      pipelines.push_back(std::async(std::launch::async, [&, of, rank] {
        const auto world = process_group(groups[of].group(static_cast<int>(rank)));
        losses[of][rank] = train(*world, program, options).losses;
        (void)world->end({});
        (void)world->close();
      }));
    }
  }
  for (auto& each : pipelines) BOOST_CHECK_NO_THROW(each.get());
  const std::vector<double> expected = trained_over_threads(program, options).losses;
  for (const auto& of_group : losses) {
    for (const auto& of_rank : of_group) BOOST_TEST(of_rank == expected);
  }
  for (const GroupDouble& each : groups) check_used_well(each);
}

// --- failures

BOOST_AUTO_TEST_CASE(a_group_can_be_used_again_after_a_rank_that_threw) {
  const Program program = program_of("dualpipev", 4);
  const TrainOptions options = two_clipped_steps(program, "mlp");
  TrainOptions failing = options;
  failing.before_op = [](int rank, Op op) {
    if (rank == 2 && op.micro_batch == 3) throw std::runtime_error("out of paper");
  };
  GroupDouble group(4);
  const auto begin = Clock::now();
  for (const std::string& each : over_group(group, program, failing).errors) {
    BOOST_TEST(each.starts_with("rank 2 failed in "), each);
    BOOST_TEST(contains(each, "out of paper"), each);
  }
  BOOST_TEST((Clock::now() - begin < failing.transport.timeout));
  check_trains(group, program, options);  // what the failed run has left behind is not taken for its messages
}

BOOST_DATA_TEST_CASE(a_rank_that_stops_is_waited_for_no_longer_than_the_timeout, data::make({0, 1, 3}), bad) {
  const Program program = program_of("1f1b", 4);
  const TrainOptions options = two_clipped_steps(program, "mlp");
  TrainOptions stopping = options;
  stopping.transport.timeout = 400ms;
  Absence absence(3);
  stopping.before_op = [&](int rank, Op op) {
    if (rank == bad && op.kind == Kind::backward && op.micro_batch == 2) absence.begin();
  };
  GroupDouble group(4);
  const Lines errors = in_group(group, [&](World& world) {
    try {
      (void)train(world, program, stopping);
    } catch (...) {
      if (world.process() != bad) absence.one_has_ended();
      throw;
    }
  });
  for (const std::string& each : errors) BOOST_TEST(contains(each, "waited 0.4 s for rank "), each);
  BOOST_TEST(!absence.was_too_short());
  check_trains(group, program, options);  // no wait has expired
}

// Its connections are closed; it says nothing of that to the store.
BOOST_AUTO_TEST_CASE(a_rank_that_dies_is_named_with_a_message_that_failed) {
  const Program program = program_of("1f1b", 2);
  TrainOptions options = two_clipped_steps(program, "mlp");
  GroupDouble group(2);
  Absence absence(1);
  options.before_op = [&](int rank, Op op) {
    if (rank != 1 || op.kind != Kind::backward || op.micro_batch != 2) return;
    group.lose(1);
    absence.begin();
  };
  const Lines errors = in_group(group, [&](World& world) {
    try {
      (void)train(world, program, options);
    } catch (...) {
      if (world.process() == 0) absence.one_has_ended();
      throw;
    }
  });
  BOOST_TEST(!absence.was_too_short());
  for (const std::string& each : errors) {
    BOOST_TEST(each.starts_with("rank 0"), each);
    BOOST_TEST(contains(each, " rank 1 failed: Connection closed by peer 1"), each);
  }
}

// What was sent is waited for by nobody but the transport.
BOOST_AUTO_TEST_CASE(a_send_that_fails_ends_all) {
  GroupDouble group(2);
  const auto errors = in_group(group, [&](World& world) {
    const auto rank = static_cast<std::size_t>(world.process());
    const auto transports = world.transports(straight(2, 1), {.timeout = 5s});
    Transport& transport = *transports[rank];
    transport.begin(program_of("gpipe", 2, 2), host_device());
    if (rank == 0) {
      transport.send({0, 0, Kind::send_forward, false}, {at::zeros({3})}, {});
      transport.end_batch();
    }
    (void)transport.sum(0);
    if (rank == 1) group.lose(1);
    for (const auto end = Clock::now() + 30s; Clock::now() < end;) (void)transport.sum(1);
  });
  for (const std::string& each : errors) {
    BOOST_TEST(each == "rank 0: 0SEND_F0 to rank 1 failed: Connection closed by peer 1");
  }
}

// The one before it may be on its way: where gloo finds that its buffer has gone, the connection is of no more use.
BOOST_AUTO_TEST_CASE(what_was_begun_before_a_transfer_that_fails_stays_as_long_as_the_group) {
  GroupDouble network(3);
  network.lose(2);
  auto group = network.group(0);
  {
    GroupBackend backend(group, 7);
    backend.begin(at::kCPU);
    const std::vector<Transfer> transfers{{at::zeros({4}), 1, false, "1RECV_F0"},
                                          {at::zeros({4}), 2, true, "1SEND_F0"}};
    BOOST_CHECK_EXCEPTION((void)backend.put(0, transfers), TransferError, [](const auto& error) {
      return error.what() == std::string("1SEND_F0 to rank 2 failed: Connection closed by peer 2");
    });
    BOOST_TEST(network.works() == 1);
  }
  BOOST_TEST(network.works() == 1);
  group.reset();
  { GroupBackend another(network.group(1), 7); }  // whoever is next sees to it
  BOOST_TEST(network.works() == 0);
}

BOOST_AUTO_TEST_CASE(a_rank_that_does_not_come_is_named) {
  GroupDouble group(3);
  const auto begin = Clock::now();
  const auto errors = in_processes(
      2, [&](int process) { return process_group(group.group(process), {.timeout = 400ms}); }, [](World&) {});
  for (const std::string& each : errors) {
    BOOST_TEST(contains(each, "process 2 did not come to the start of the processes within 0.4 s"), each);
  }
  BOOST_TEST((Clock::now() - begin < 5s));
}

// Nor to its first step: not even the first byte goes to it.
BOOST_AUTO_TEST_CASE(a_rank_that_does_not_begin_is_named) {
  GroupDouble group(2);
  const auto errors = in_group(group, [](World& world) {
    const auto transports = world.transports(straight(2, 1), {.timeout = 400ms});
    if (world.process() == 0) {
      transports[0]->begin(program_of("1f1b", 2), host_device());
    } else {
      for (const auto end = Clock::now() + 30s; Clock::now() < end; std::this_thread::sleep_for(1ms)) {
        transports[1]->confirm();
      }
    }
  });
  for (const std::string& each : errors) BOOST_TEST(each == "rank 0 waited 0.4 s for rank 1 (the first byte)");
  check_used_well(group);
}

BOOST_AUTO_TEST_CASE(a_shape_that_differs_within_a_boundary_is_named_with_both_sides) {
  GroupDouble group(2);
  const auto errors = in_group(group, [](World& world) {
    const auto rank = static_cast<std::size_t>(world.process());
    const auto transports = world.transports(straight(2, 1), {.timeout = 5s});
    Transport& transport = *transports[rank];
    transport.begin(program_of("gpipe", 2, 2), host_device());
    try {
      for (const std::uint32_t micro_batch : {0U, 1U}) {
        if (rank == 0) {
          transport.send({micro_batch, 0, Kind::send_forward, false}, {at::zeros({2, 3 + micro_batch})}, {});
        } else {
          transport.post_receive({micro_batch, 1, Kind::receive_forward, false});
        }
        transport.end_batch();
        if (rank == 1) (void)transport.wait({micro_batch, 1, Kind::receive_forward, false});
      }
    } catch (const std::exception& error) {
      transport.abort(error.what());
      throw;
    }
  });
  for (const std::string& each : errors) {
    BOOST_TEST(each ==
               "stage 0 (rank 0) sends Float[2,4] in 0SEND_F1 to stage 1 (rank 1), but sent Float[2,3] in 0SEND_F0");
  }
}

// A rank sends what each micro-batch is said to be, in two steps; the second is announced under the id of the first.
std::vector<std::string> send_in_forms(GroupDouble& group, const std::function<std::int64_t(std::uint32_t)>& length) {
  return in_group(group, [&](World& world) {
    const auto rank = static_cast<std::size_t>(world.process());
    const auto transports = world.transports(straight(2, 1), {.timeout = 5s});
    Transport& transport = *transports[rank];
    const Program program = program_of("gpipe", 2, 3);
    try {
      for (int step = 0; step < 2; ++step) {
        transport.expect({7, {0, 1, 0}});
        transport.begin(program, host_device());
        for (const std::uint32_t micro_batch : {0U, 1U, 2U}) {
          const at::Tensor sent =
              at::full({length(micro_batch)}, micro_batch + 10U * static_cast<unsigned>(step), at::kDouble);
          if (rank == 0) {
            transport.send({micro_batch, 0, Kind::send_forward, false}, {sent}, {});
            transport.end_batch();
            continue;
          }
          const Op receive{micro_batch, 1, Kind::receive_forward, false};
          transport.post_receive(receive);
          transport.end_batch();
          if (!transport.wait(receive).tensors.at(0).equal(sent)) throw std::runtime_error("other values");
        }
        (void)transport.sum(0);
      }
    } catch (const std::exception& error) {
      transport.abort(error.what());
      throw;
    }
  });
}

BOOST_AUTO_TEST_CASE(micro_batches_of_several_forms_have_shapes_of_their_own) {
  GroupDouble group(2);
  const auto errors = send_in_forms(group, [](std::uint32_t micro_batch) { return micro_batch == 1 ? 5 : 3; });
  BOOST_TEST(errors == Lines(2), boost::test_tools::per_element());
  check_used_well(group);
}

BOOST_AUTO_TEST_CASE(a_micro_batch_that_is_not_of_its_form_is_named_with_the_first_that_is) {
  GroupDouble group(2);
  for (const std::string& each : send_in_forms(group, [](std::uint32_t micro_batch) { return micro_batch + 3; })) {
    BOOST_TEST(each ==
               "stage 0 (rank 0) sends Double[5] in 0SEND_F2 to stage 1 (rank 1), but sent Double[3] in 0SEND_F0");
  }
}

// The end of a wait that the user wants at once: of Ctrl-C, in Python.
BOOST_AUTO_TEST_CASE(a_stop_ends_a_wait) {
  GroupDouble group(2);
  std::stop_source stop;
  const auto began = Clock::now();
  const auto errors = in_group(group,
                               [&](World& world) {
                                 const auto rank = static_cast<std::size_t>(world.process());
                                 const auto transports = world.transports(straight(2, 1), {.timeout = 60s});
                                 Transport& transport = *transports[rank];
                                 transport.begin(program_of("gpipe", 2, 2), host_device());
                                 if (rank == 0) {
                                   stop.request_stop();
                                   (void)transport.sum(0);
                                 } else {
                                   const Op receive{0, 1, Kind::receive_forward, false};
                                   transport.post_receive(receive);
                                   transport.end_batch();
                                   (void)transport.wait(receive);
                                 }
                               },
                               {.timeout = 60s, .stop = stop.get_token()});
  for (const std::string& each : errors) BOOST_TEST(each != "");
  BOOST_TEST((Clock::now() - began < 30s));
}

BOOST_AUTO_TEST_CASE(gradients_that_cannot_be_summed_are_named_on_both_sides) {
  GroupDouble group(2);
  const auto errors = in_group(group, [](World& world) {
    const int rank = world.process();
    const auto transports = world.transports(v_shape(2), {.timeout = 5s});
    Transport& transport = *transports[static_cast<std::size_t>(rank)];
    transport.begin(program_of("dualpipev", 2, 4), host_device());
    Tensors gradients{at::zeros({rank + 2})};
    try {
      transport.reduce(std::array{0, 1}, rank, gradients);
    } catch (const std::exception& error) {
      transport.abort(error.what());
      throw;
    }
  });
  for (const std::string& each : errors) {
    BOOST_TEST(contains(each, "gradients to be summed are unlike: stage 0 (rank 0) has "), each);
    BOOST_TEST(contains(each, "; stage 1 (rank 1) has "), each);
  }
}

BOOST_AUTO_TEST_CASE(a_wait_for_what_was_not_posted_throws) {
  GroupDouble group(1);
  const auto errors = in_group(group, [](World& world) {
    const auto transports = world.transports(straight(1, 1), {});
    transports[0]->begin(program_of("1f1b", 1), host_device());
    (void)transports[0]->wait({0, 0, Kind::receive_backward, false});
  });
  BOOST_TEST(errors[0] == "a wait for 0RECV_B0, which was not posted");
}

// --- what is refused

BOOST_AUTO_TEST_CASE(what_a_group_cannot_do_is_refused) {
  BOOST_CHECK_EXCEPTION((void)process_group({}), InputError,
                        [](const auto& error) { return contains(error.what(), "there is no process group"); });
  BOOST_CHECK_EXCEPTION((void)process_group(c10::make_intrusive<c10d::ProcessGroup>(0, 2)), InputError,
                        [](const auto& error) { return contains(error.what(), "has no store"); });
  const Program program = program_of("1f1b", 4);
  const auto refusals = [](const Program& of, const std::string& backend, const TrainOptions& options) {
    GroupDouble group(2, backend);
    return in_group(group, [&](World& world) { (void)train(world, of, options); });
  };
  for (const std::string& each : refusals(program, "gloo", two_clipped_steps(program, "mlp"))) {
    BOOST_TEST(contains(each, "4 ranks need 4 processes, and the group has 2"), each);
  }
  const Program two = program_of("1f1b", 2);
  TrainOptions options = two_clipped_steps(two, "mlp");
  for (const std::string& each : refusals(two, "mpi", options)) {
    BOOST_TEST(contains(each, "process group 'pipeline' moves what is on the host by mpi"), each);
  }
  options.transport.link_delay = 1ms;
  for (const std::string& each : refusals(two, "gloo", options)) BOOST_TEST(contains(each, "--link-delay"), each);
}

BOOST_AUTO_TEST_CASE(a_device_that_the_group_has_no_backend_for_is_refused) {
  class Elsewhere final : public StreamDevice {
   public:
    [[nodiscard]] at::Device where() const override { return at::kMeta; }
  };
  GroupDouble group(1);
  const auto errors = in_group(group, [](World& world) {
    Elsewhere device;
    world.transports(straight(1, 1), {})[0]->begin(program_of("1f1b", 1), device);
  });
  BOOST_TEST(contains(errors[0], "process group 'pipeline' moves nothing that is on the meta"), errors[0]);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
