#include "dualpipe/exec/transport/transport.h"

#include <ATen/ATen.h>

#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/placement.h"
#include "tests/exec/worlds.h"

namespace dualpipe::test {
namespace {

using namespace std::chrono_literals;

using Clock = std::chrono::steady_clock;

Op op(Kind kind, int stage, std::uint32_t micro_batch = 0) {
  return {micro_batch, static_cast<std::uint16_t>(stage), kind, false};
}

at::Tensor number(double value) { return at::full({1}, value, at::kDouble); }

// Runs one function per rank, and returns what each threw ("": nothing).
std::vector<std::string> run_ranks(const std::vector<std::function<void()>>& ranks) {
  std::vector<std::string> errors(ranks.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        ranks[i]();
      } catch (const std::exception& error) {
        errors[i] = error.what();
      }
    });
  }
  for (std::thread& each : threads) each.join();
  return errors;
}

// How tensors move.
enum class Way { threads, mpi, mpi_wire };
#ifdef DUALPIPE_HAS_MPI
constexpr auto all_ways = {Way::threads, Way::mpi, Way::mpi_wire};
#else
constexpr auto all_ways = {Way::threads};
#endif

[[maybe_unused]] std::ostream& operator<<(std::ostream& out, Way way) {
  constexpr const char* names[] = {"threads", "mpi", "mpi, all messages over the wire"};
  return out << names[static_cast<int>(way)];
}

// One process is the whole world here; over the wire it sends to itself.
std::unique_ptr<World> make_world([[maybe_unused]] Way way) {
#ifdef DUALPIPE_HAS_MPI
  if (way != Way::threads) return mpi_processes({.through_mpi = way == Way::mpi_wire});
#endif
  return one_process();
}

struct Ranks {
  std::unique_ptr<World> world;  // outlives its transports
  std::vector<std::unique_ptr<Transport>> transports;

  const std::unique_ptr<Transport>& operator[](std::size_t rank) const { return transports[rank]; }
};

Ranks transports(Way way, const Placement& placement, const TransportOptions& options) {
  auto world = make_world(way);
  auto all = world->transports(placement, options);
  return {std::move(world), std::move(all)};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

BOOST_AUTO_TEST_SUITE(exec_transport)

BOOST_DATA_TEST_CASE(hands_over_the_tensor, all_ways, way) {
  const Ranks ranks = transports(way, straight(2, 1), {});
  const at::Tensor sent = at::arange(12, at::kFloat).view({3, 4});
  ranks[0]->send(op(Kind::send_forward, 0, 5), {sent}, {});
  ranks[1]->post_receive(op(Kind::receive_forward, 1, 5));
  const Received received = ranks[1]->wait(op(Kind::receive_forward, 1, 5));
  BOOST_TEST(at::equal(received.tensors.at(0), sent));
  BOOST_TEST(received.tensors.at(0).is_same(sent) == (way != Way::mpi_wire),
             "within a process it is the tensor itself");
  BOOST_TEST((received.arrived <= Clock::now()));
}

BOOST_DATA_TEST_CASE(messages_are_told_apart_by_stage_kind_and_micro_batch, all_ways, way) {
  // v_shape(2): stages 0 and 3 on rank 0, 1 and 2 on rank 1.
  const Ranks ranks = transports(way, v_shape(2), {});
  ranks[0]->send(op(Kind::send_forward, 0, 0), {number(100)}, {});
  ranks[0]->send(op(Kind::send_forward, 0, 1), {number(101)}, {});
  ranks[0]->send(op(Kind::send_backward, 3, 0), {number(300)}, {});
  ranks[0]->send(op(Kind::send_forward, 0, 2), {number(102)}, {});
  const auto got = [&](Op message) { return ranks[1]->wait(message).tensors.at(0).item<double>(); };
  BOOST_TEST(got(op(Kind::receive_forward, 1, 2)) == 102);
  BOOST_TEST(got(op(Kind::receive_backward, 2, 0)) == 300);
  BOOST_TEST(got(op(Kind::receive_forward, 1, 0)) == 100);
  BOOST_TEST(got(op(Kind::receive_forward, 1, 1)) == 101);
}

BOOST_DATA_TEST_CASE(a_receiver_that_sleeps_is_woken, all_ways, way) {
  const Ranks ranks = transports(way, straight(2, 1), {});
  constexpr std::uint32_t count = 50;
  std::vector<double> got;
  const auto errors =
      run_ranks({[&] {
                   for (std::uint32_t i = 0; i < count; ++i) {
                     std::this_thread::sleep_for(200us);  // longer than a receiver spins
                     ranks[0]->send(op(Kind::send_forward, 0, i), {number(i)}, {});
                   }
                 },
                 [&] {
                   for (std::uint32_t i = 0; i < count; ++i) {
                     got.push_back(ranks[1]->wait(op(Kind::receive_forward, 1, i)).tensors.at(0).item<double>());
                   }
                 }});
  BOOST_TEST(errors[0] == "");
  BOOST_TEST(errors[1] == "");
  BOOST_REQUIRE(got.size() == count);
  for (std::uint32_t i = 0; i < count; ++i) BOOST_TEST(got[i] == i);
}

BOOST_DATA_TEST_CASE(a_message_is_not_there_before_the_link_delay, all_ways, way) {
  constexpr auto delay = 200ms;
  const Ranks ranks = transports(way, straight(2, 1), {10s, delay});
  const auto sent = Clock::now();
  ranks[0]->send(op(Kind::send_forward, 0), {number(1)}, {});
  BOOST_TEST((Clock::now() - sent < delay), "a send does not wait");
  const Received received = ranks[1]->wait(op(Kind::receive_forward, 1));
  BOOST_TEST((Clock::now() - sent >= delay));
  BOOST_TEST((received.arrived - sent >= delay));
  BOOST_TEST((received.arrived <= Clock::now()));
}

BOOST_DATA_TEST_CASE(a_timeout_says_what_was_awaited_and_from_whom, all_ways, way) {
  const Ranks ranks = transports(way, straight(4, 1), {50ms, 0ns});
  const auto begin = Clock::now();
  BOOST_CHECK_EXCEPTION((void)ranks[2]->wait(op(Kind::receive_backward, 2, 7)), TimeoutError, [](const auto& error) {
    return error.what() == std::string("nothing came from rank 3 for 2RECV_B7 within 0.05 s");
  });
  BOOST_TEST((Clock::now() - begin >= 50ms));
}

BOOST_DATA_TEST_CASE(a_message_that_is_still_under_way_times_out_too, all_ways, way) {
  const Ranks ranks = transports(way, straight(2, 1), {20ms, 10s});
  ranks[0]->send(op(Kind::send_forward, 0), {number(1)}, {});
  BOOST_CHECK_THROW((void)ranks[1]->wait(op(Kind::receive_forward, 1)), TimeoutError);
}

BOOST_DATA_TEST_CASE(abort_wakes_whoever_waits_and_the_first_reason_counts, all_ways, way) {
  const Ranks ranks = transports(way, two_way(4), {60s, 0ns});
  std::vector<at::Tensor> gradients{number(1)};
  const auto begin = Clock::now();
  const auto errors = run_ranks({[&] { (void)ranks[0]->wait(op(Kind::receive_backward, 0, 3)); },
                                 [&] {
                                   ranks[1]->reduce({{1, 5}}, 1, gradients);
                                 },
                                 [&] { (void)ranks[2]->sum(1); },
                                 [&] {
                                   std::this_thread::sleep_for(20ms);
                                   ranks[3]->abort("rank 3 failed");
                                   ranks[3]->abort("and again");
                                 }});
  BOOST_TEST((Clock::now() - begin < 10s));
  for (std::size_t i = 0; i < 3; ++i) BOOST_TEST(errors[i] == "rank 3 failed");
  // Who comes later learns it too.
  BOOST_CHECK_THROW((void)ranks[1]->wait(op(Kind::receive_forward, 1)), TransportError);
  BOOST_CHECK_THROW((void)ranks[3]->sum(1), TransportError);
  BOOST_CHECK_THROW(ranks[3]->reduce({{3, 7}}, 3, gradients), TransportError);
}

// Sums of floats depend on their order: 1e8 + 1 - 1e8 is 0, or 1, or in between.
BOOST_DATA_TEST_CASE(reduce_adds_in_the_order_of_stages_whoever_comes_first, all_ways, way) {
  const Placement placement = one_chain({{2, 0, 1}});
  const std::vector<float> values{1e8F, 1.0F, -1e8F};
  const float expected = (values[0] + values[1]) + values[2];
  for (int last = 0; last < 3; ++last) {
    const Ranks ranks = transports(way, placement, {});
    std::vector<at::Tensor> parameters;
    std::vector<std::function<void()>> bodies(3);
    for (std::size_t stage = 0; stage < 3; ++stage) {
      parameters.push_back(at::full({4}, values[stage], at::kFloat));
      const std::size_t rank = placement.rank_of[stage];
      bodies[rank] = [&, stage, rank] {
        if (static_cast<int>(rank) == last) std::this_thread::sleep_for(5ms);
        std::vector<at::Tensor> gradients{parameters[stage]};
        ranks[rank]->reduce({{0, 1, 2}}, static_cast<int>(stage), gradients);
      };
    }
    for (const auto& error : run_ranks(bodies)) BOOST_TEST(error == "");
    for (const at::Tensor& each : parameters) {
      BOOST_TEST(at::equal(each, at::full({4}, expected, at::kFloat)));
    }
    BOOST_TEST(!parameters[0].is_alias_of(parameters[1]));
  }
}

BOOST_DATA_TEST_CASE(a_rank_that_holds_two_of_the_stages_meets_the_others_at_its_last, all_ways, way) {
  const Placement placement = one_chain({{0, 1, 0}});
  const Ranks ranks = transports(way, placement, {5s, 0ns});
  std::vector<at::Tensor> tensors{number(1), number(2), number(4)};
  for (int step = 0; step < 2; ++step) {
    const auto reduce = [&](std::size_t rank, std::size_t stage) {
      std::vector<at::Tensor> gradients{tensors[stage]};
      ranks[rank]->reduce({{0, 1, 2}}, static_cast<int>(stage), gradients);
    };
    const auto errors = run_ranks({[&] {
                                     reduce(0, 2);
                                     reduce(0, 0);
                                   },
                                   [&] { reduce(1, 1); }});
    BOOST_TEST(errors[0] == "");
    BOOST_TEST(errors[1] == "");
    for (const at::Tensor& each : tensors) BOOST_TEST(each.item<double>() == (step == 0 ? 7 : 21));
  }
}

// As for shared weights, and an embedding that first and last stages share.
BOOST_DATA_TEST_CASE(groups_are_told_apart_by_their_stages, all_ways, way) {
  const Ranks ranks = transports(way, two_way(2), {5s, 0ns});  // stages 0 and 3 on rank 0, 1 and 2 on rank 1
  std::vector<at::Tensor> weights{number(1), number(10), number(100), number(1000)};
  std::vector<at::Tensor> embedding = weights;
  for (at::Tensor& each : embedding) each = each + 1;
  const auto reduce = [&](std::size_t rank, std::vector<int> stages, std::size_t stage, auto& of_stages) {
    ranks[rank]->reduce(stages, static_cast<int>(stage), {&of_stages[stage], 1});
  };
  const auto errors = run_ranks({[&] {
                                   reduce(0, {0, 2}, 0, weights);
                                   reduce(0, {0, 1, 2, 3}, 0, embedding);
                                   reduce(0, {1, 3}, 3, weights);
                                   reduce(0, {0, 1, 2, 3}, 3, embedding);
                                 },
                                 [&] {
                                   reduce(1, {0, 1, 2, 3}, 1, embedding);
                                   reduce(1, {0, 2}, 2, weights);
                                   reduce(1, {1, 3}, 1, weights);
                                   reduce(1, {0, 1, 2, 3}, 2, embedding);
                                 }});
  for (const auto& error : errors) BOOST_TEST(error == "");
  const std::vector<double> expected{101, 1010, 101, 1010};
  for (std::size_t stage = 0; stage < 4; ++stage) {
    BOOST_TEST(weights[stage].item<double>() == expected[stage]);
    BOOST_TEST(embedding[stage].item<double>() == 1115);
  }
}

BOOST_DATA_TEST_CASE(the_sum_over_one_stage_is_what_it_brings, all_ways, way) {
  const Ranks ranks = transports(way, straight(2, 1), {20ms, 0ns});
  std::vector<at::Tensor> gradients{number(3)};
  ranks[0]->reduce({{0}}, 0, gradients);
  BOOST_TEST(gradients[0].item<double>() == 3);
}

BOOST_DATA_TEST_CASE(a_reduction_that_others_do_not_come_to_says_who, all_ways, way) {
  const Ranks ranks = transports(way, two_way(2), {20ms, 0ns});
  std::vector<at::Tensor> gradients{number(3)};
  BOOST_CHECK_EXCEPTION(ranks[0]->reduce({{0, 2}}, 0, gradients), TimeoutError, [](const auto& error) {
    return error.what() == std::string("waited 0.02 s for the gradients of stage 2 (rank 1)");
  });
}

BOOST_DATA_TEST_CASE(unlike_gradients_are_an_error_that_names_both_sides, all_ways, way) {
  const Ranks ranks = transports(way, two_way(2), {5s, 0ns});
  at::Tensor left = at::zeros({2, 3});
  at::Tensor right = at::zeros({3, 2});
  const auto reduce = [&](std::size_t rank, int stage, at::Tensor& tensor) {
    try {
      ranks[rank]->reduce({{0, 2}}, stage, {&tensor, 1});
    } catch (const std::exception& error) {
      ranks[rank]->abort(error.what());
      throw;
    }
  };
  const auto errors = run_ranks({[&] { reduce(0, 0, left); },
                                 [&] {
                                   std::this_thread::sleep_for(20ms);
                                   reduce(1, 2, right);
                                 }});
  for (const auto& error : errors) {
    BOOST_TEST(contains(error, "stage 0 (rank 0) has Float[2,3]"), error);
    BOOST_TEST(contains(error, "stage 2 (rank 1) has Float[3,2]"), error);
  }
}

BOOST_DATA_TEST_CASE(sum_adds_in_the_order_of_ranks_step_after_step, all_ways, way) {
  const Ranks ranks = transports(way, straight(3, 1), {});
  const std::vector<double> values{1e16, 1.0, -1e16};
  std::vector<std::vector<double>> sums(3);
  std::vector<std::function<void()>> bodies;
  for (std::size_t rank = 0; rank < 3; ++rank) {
    bodies.emplace_back([&, rank] {
      for (int step = 0; step < 100; ++step) sums[rank].push_back(ranks[rank]->sum(values[rank] + step));
    });
  }
  for (const auto& error : run_ranks(bodies)) BOOST_TEST(error == "");
  for (int step = 0; step < 100; ++step) {
    const double expected = ((values[0] + step) + (values[1] + step)) + (values[2] + step);
    for (const auto& of_rank : sums) BOOST_TEST(of_rank[static_cast<std::size_t>(step)] == expected);
  }
}

BOOST_DATA_TEST_CASE(a_step_that_a_rank_does_not_end_says_who, all_ways, way) {
  const Ranks ranks = transports(way, straight(3, 1), {20ms, 0ns});
  BOOST_CHECK_EXCEPTION((void)ranks[1]->sum(1), TimeoutError, [&](const auto& error) {
    return contains(error.what(), way == Way::mpi_wire ? "rank 0, which adds" : "not there: rank 0, 2");
  });
}

// --- what the messages look like

BOOST_DATA_TEST_CASE(any_tensor_arrives_as_it_is, all_ways, way) {
  const std::vector<at::Tensor> tensors{at::arange(24, at::kFloat).view({2, 3, 4}),
                                        at::arange(24, at::kDouble).view({4, 6}).t(),  // not contiguous
                                        at::arange(10, at::kLong).slice(0, 1, 9, 2),
                                        at::full({}, 7, at::kDouble),
                                        at::empty({0, 3}),
                                        at::arange(5, at::kFloat).to(at::kBFloat16),
                                        at::arange(3'000'000, at::kDouble)};  // not sent before it is awaited
  for (const at::Tensor& tensor : tensors) {
    const Ranks ranks = transports(way, straight(2, 1), {});
    for (std::uint32_t i = 0; i < 3; ++i) ranks[0]->send(op(Kind::send_forward, 0, i), {tensor + i}, {});
    for (std::uint32_t i = 0; i < 3; ++i) {
      const at::Tensor received = ranks[1]->wait(op(Kind::receive_forward, 1, i)).tensors.at(0);
      BOOST_TEST(received.scalar_type() == tensor.scalar_type());
      BOOST_TEST(received.sizes() == tensor.sizes());
      BOOST_TEST(at::equal(received, tensor + i));
    }
  }
}

BOOST_DATA_TEST_CASE(a_message_has_any_number_of_tensors, all_ways, way) {
  const std::unique_ptr<World> world = make_world(way);
  for (const Messages& each : many_messages()) exchange_messages(*world, each);
}

// Micro-batches of several lengths, say.
BOOST_DATA_TEST_CASE(each_message_says_what_it_is_like, all_ways, way) {
  const Ranks ranks = transports(way, straight(2, 1), {});
  const at::Tensor first = at::arange(6, at::kFloat).view({2, 3});
  const std::vector<Tensors> messages{{first}, {first.t()}, {first.to(at::kDouble)}, {first, {}, number(3)}, {}};
  for (std::uint32_t i = 0; i < messages.size(); ++i) ranks[0]->send(op(Kind::send_forward, 0, i), messages[i], {});
  for (std::uint32_t i = 0; i < messages.size(); ++i) {
    const Tensors received = ranks[1]->wait(op(Kind::receive_forward, 1, i)).tensors;
    BOOST_REQUIRE(received.size() == messages[i].size());
    for (std::size_t k = 0; k < received.size(); ++k) {
      BOOST_REQUIRE(received[k].defined() == messages[i][k].defined());
      if (!received[k].defined()) continue;
      BOOST_TEST(received[k].scalar_type() == messages[i][k].scalar_type());
      BOOST_TEST(at::equal(received[k], messages[i][k]));
    }
  }
}

// Both directions at once, more than MPI takes in unasked.
BOOST_DATA_TEST_CASE(many_large_messages_cross, all_ways, way) {
  const Ranks ranks = transports(way, straight(2, 1), {20s, 0ns});
  constexpr std::uint32_t count = 40;
  const auto content = [](std::uint32_t i) { return at::full({100'000}, i, at::kFloat); };
  const auto exchange = [&](int rank, Kind send, Kind receive) {
    const auto& transport = ranks[static_cast<std::size_t>(rank)];
    for (std::uint32_t i = 0; i < count; ++i) transport->send(op(send, rank, i), {content(i)}, {});
    for (std::uint32_t i = count; i-- > 0;) {
      const Received got = transport->wait(op(receive, rank, i));
      if (!at::equal(got.tensors.at(0), content(i))) throw std::runtime_error("not what was sent");
    }
  };
  const auto errors = run_ranks({[&] { exchange(0, Kind::send_forward, Kind::receive_backward); },
                                 [&] { exchange(1, Kind::send_backward, Kind::receive_forward); }});
  for (const auto& error : errors) BOOST_TEST(error == "");
}

// --- the world

BOOST_DATA_TEST_CASE(a_world_of_one_process_holds_all_ranks, all_ways, way) {
  const std::unique_ptr<World> world = make_world(way);
  BOOST_TEST(world->processes() == 1);
  BOOST_TEST(world->ranks_here(3) == std::vector<int>({0, 1, 2}));
  BOOST_TEST(world->all_gather("here", "part") == std::vector<std::string>({"part"}));
  BOOST_TEST(world->hand_over("part").at(0).value() == "part");
  BOOST_TEST(world->end({}).empty());
}

// Contiguous, and as even as can be.
BOOST_AUTO_TEST_CASE(ranks_are_dealt_out_evenly) {
  struct Shares final : World {
    using World::World;
    [[nodiscard]] std::string_view transport() const override { return "none"; }
    [[nodiscard]] std::vector<std::string> all_gather(const std::string&, std::string) override { return {}; }
    [[nodiscard]] std::vector<std::optional<std::string>> hand_over(std::string) override { return {}; }
    [[nodiscard]] std::vector<std::string> end(const Ending&) override { return {}; }
    [[nodiscard]] bool close() override { return true; }
    [[nodiscard]] std::vector<std::unique_ptr<Transport>> make_transports(const Placement&,
                                                                          const TransportOptions&) override {
      return {};
    }
  };
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (int processes = 1; processes <= ranks; ++processes) {
      int next = 0;
      for (int process = 0; process < processes; ++process) {
        const auto here = Shares(process, processes).ranks_here(ranks);
        BOOST_TEST(here.size() >= static_cast<std::size_t>(ranks / processes));
        BOOST_TEST(here.size() <= static_cast<std::size_t>((ranks + processes - 1) / processes));
        for (const int rank : here) {
          BOOST_TEST(rank == next++);
          BOOST_TEST(Shares(0, processes).process_of(rank, ranks) == process);
        }
      }
      BOOST_TEST(next == ranks);
    }
  }
  BOOST_CHECK_EXCEPTION((void)Shares(0, 3).transports(straight(2, 1), {}), InputError, [](const auto& error) {
    return contains(error.what(), "3 processes, but only 2 ranks") && contains(error.what(), "mpirun -n 2");
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
