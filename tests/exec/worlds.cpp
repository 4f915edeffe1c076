#include "tests/exec/worlds.h"

#include <ATen/Parallel.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <exception>
#include <stdexcept>
#include <thread>

namespace dualpipe::test {

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

void await_listener(std::uint16_t port) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  bool is_there = false;
  while (!is_there && std::chrono::steady_clock::now() < deadline) {
    const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
    is_there = ::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
    ::close(socket);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

Launch launch(int process, int processes, std::uint16_t port) {
  Launch made;
  made.process = made.local = process;
  made.processes = processes;
  made.address = "127.0.0.1";
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
