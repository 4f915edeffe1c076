#include "tests/exec/worlds.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <future>
#include <stdexcept>
#include <thread>
#include <utility>

#include "dualpipe/sim/schedule/placement.h"
#include "tests/exec/training.h"

namespace dualpipe::test {

// LibTorch asks for the name of every address that it connects, as IPv6, which no hosts file has: where the name server
// does not answer that takes 5 s each time.
struct ShortLookUps {
  ShortLookUps() { ::setenv("RES_OPTIONS", "timeout:1 attempts:1", 0); }
};
BOOST_TEST_GLOBAL_FIXTURE(ShortLookUps);

std::uint16_t free_port() {
  const int socket = ::socket(AF_INET6, SOCK_STREAM, 0);
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  socklen_t size = sizeof(address);
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  const bool is_bound = ::bind(socket, any, size) == 0 && ::getsockname(socket, any, &size) == 0;
  ::close(socket);
  if (!is_bound) throw std::runtime_error("this host gives no port");
  return ntohs(address.sin6_port);
}

namespace {

bool is_listened_to(std::uint16_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(this_host, std::to_string(port).c_str(), &hints, &found) != 0) return false;
  const int socket = ::socket(found->ai_family, SOCK_STREAM, 0);
  const bool is_there = ::connect(socket, found->ai_addr, found->ai_addrlen) == 0;
  ::close(socket);
  ::freeaddrinfo(found);
  return is_there;
}

}  // namespace

void await_listener(std::uint16_t port) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!is_listened_to(port) && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

Launch launch(int process, int processes, std::uint16_t port) {
  Launch made;
  made.process = process;
  made.processes = processes;
  made.address = this_host;
  made.port = port;
  return made;
}

std::vector<std::string> in_processes(int processes, const std::function<std::unique_ptr<World>(int process)>& join,
                                      const std::function<void(World& world)>& run) {
  std::vector<std::string> errors(static_cast<std::size_t>(processes));
  const auto run_process = [&](int process) {
    at::set_num_threads(1);
    std::string& error = errors[static_cast<std::size_t>(process)];
    std::unique_ptr<World> world;
    Ending ending;
    try {
      world = join(process);
      run(*world);
    } catch (const std::exception& thrown) {
      error = thrown.what();
      ending = {true, false, false, error};
    }
    if (!world) return;
    (void)world->end(ending);
    (void)world->close();
  };
  {
    std::vector<std::jthread> threads;
    for (int process = 0; process < processes; ++process) threads.emplace_back(run_process, process);
  }
  return errors;
}

std::vector<std::string> in_worlds(int processes, const std::shared_ptr<Nccl>& nccl, const StoreOptions& options,
                                   const std::function<void(World& world)>& run) {
  const std::uint16_t port = free_port();
  const auto join = [&](int process) {
    if (process > 0) await_listener(port);
    return store_processes(launch(process, processes, port), nccl, options);
  };
  return in_processes(processes, join, run);
}

namespace {

void check_is_like(const Tensors& got, const Tensors& sent) {
  if (got.size() != sent.size()) throw std::runtime_error(fmt::format("{} tensors of {}", got.size(), sent.size()));
  for (std::size_t k = 0; k < sent.size(); ++k) {
    const bool is_like =
        got[k].defined() == sent[k].defined() &&
        (!sent[k].defined() || (got[k].scalar_type() == sent[k].scalar_type() && at::equal(got[k], sent[k])));
    if (!is_like) throw std::runtime_error(fmt::format("tensor {} is another", k));
  }
}

void exchange(const Messages& messages, int rank, Transport& transport, Device& device) {
  const Program program = program_of("gpipe", 2, 2);
  device.begin_step();
  device.use({});
  transport.begin(program, device);
  const auto send = [&](Kind kind, std::uint32_t micro_batch, const Tensors& tensors) {
    transport.send({micro_batch, static_cast<std::uint16_t>(rank), kind, false}, tensors, device.record_event());
    transport.end_batch();
  };
  const auto receive = [&](Kind kind, std::uint32_t micro_batch, const Tensors& sent) {
    const Op message{micro_batch, static_cast<std::uint16_t>(rank), kind, false};
    transport.post_receive(message);
    transport.end_batch();
    Received received = transport.wait(message);
    for (at::Tensor& each : received.tensors) {
      Event ready = received.ready;
      if (each.defined()) each = device.take(std::move(each), ready);
    }
    check_is_like(received.tensors, sent);
  };
  for (std::uint32_t micro_batch = 0; micro_batch < 2; ++micro_batch) {
    if (rank == 0) {
      send(Kind::send_forward, micro_batch, messages.there);
      receive(Kind::receive_backward, micro_batch, messages.back);
    } else {
      receive(Kind::receive_forward, micro_batch, messages.there);
      send(Kind::send_backward, micro_batch, messages.back);
    }
  }
  device.finish();
  transport.confirm();
}

}  // namespace

std::vector<Messages> many_messages() {
  const at::Tensor hidden = at::arange(24, at::kFloat).view({2, 3, 4});
  const at::Tensor positions = at::arange(6, at::kLong).view({3, 2}).t();  // not contiguous
  const at::Tensor mask = at::arange(3, at::kLong).to(at::kBool);
  const at::Tensor half = at::arange(5, at::kFloat).to(at::kBFloat16);
  const at::Tensor nothing = at::empty({0, 3});
  return {{{}, {}},
          {{hidden}, {}},
          {{}, {half}},
          {{hidden, positions, mask}, {hidden + 1, {}, {}}},
          {{half, nothing, hidden}, {{}, hidden}}};
}

void exchange_messages(World& world, const Messages& messages, Hardware* hardware) {
  const auto transports = world.transports(straight(2, 1), {.timeout = std::chrono::seconds(10)});
  std::vector<std::future<void>> ranks;
  for (const int rank : world.ranks_here(2)) {
    ranks.push_back(std::async(std::launch::async, [&, rank] {
      Transport& transport = *transports[static_cast<std::size_t>(rank)];
      try {
        const auto own = hardware == nullptr ? nullptr : hardware->device(0, 1, 1);
        exchange(messages, rank, transport, own ? *own : host_device());
      } catch (const std::exception& error) {
        transport.abort(error.what());
        throw;
      }
    }));
  }
  for (auto& rank : ranks) rank.get();
}

}  // namespace dualpipe::test
