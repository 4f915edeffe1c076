#include "tests/exec/worlds.h"

#include <ATen/Parallel.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <thread>

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

std::vector<std::string> in_worlds(int processes, const std::shared_ptr<Nccl>& nccl, const StoreOptions& options,
                                   const std::function<void(World& world)>& run) {
  const std::uint16_t port = free_port();
  std::vector<std::string> errors(static_cast<std::size_t>(processes));
  const auto run_process = [&](int process) {
    at::set_num_threads(1);
    std::string& error = errors[static_cast<std::size_t>(process)];
    std::unique_ptr<World> world;
    Ending ending;
    try {
      world = store_processes(launch(process, processes, port), nccl, options);
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
    for (int process = 0; process < processes; ++process) {
      threads.emplace_back(run_process, process);
      if (process == 0 && processes > 1) await_listener(port);
    }
  }
  return errors;
}

}  // namespace dualpipe::test
