// Worlds of an engine without a network: the processes are threads of this one, and a message is there at once, on the
// thread of the one who sends.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/engine.h"
#include "dualpipe/exec/transport/engine_world.h"

namespace dualpipe::test {

using detail::transport::Engine;
using detail::transport::EngineWorld;
using detail::transport::WireMessage;

// Where the processes find each other, and how many messages of each kind they have sent.
struct DirectNetwork {
  explicit DirectNetwork(int processes) : receivers(static_cast<std::size_t>(processes)) {}

  [[nodiscard]] std::atomic<int>& sent(WireMessage::Kind kind) { return counts.at(static_cast<std::size_t>(kind)); }

  std::vector<Engine::Receiver*> receivers;
  std::array<std::atomic<int>, 16> counts{};
};

class DirectEngine final : public Engine {
 public:
  DirectEngine(int process, DirectNetwork& network) : process_(process), network_(network) {}

  void start() override {}
  void send(int process, const WireMessage& message) override {
    ++network_.sent(message.kind);
    network_.receivers.at(static_cast<std::size_t>(process))->deliver(process_, message);
  }
  void progress() override {}
  void end() override {}
  [[nodiscard]] bool all_sent() override { return true; }

 private:
  int process_;
  DirectNetwork& network_;
};

class DirectWorld final : public EngineWorld {
 public:
  DirectWorld(int process, DirectNetwork& network, std::chrono::nanoseconds timeout = std::chrono::seconds(20))
      : EngineWorld(process, static_cast<int>(network.receivers.size()), {.transport = "direct", .timeout = timeout}) {
    network.receivers[static_cast<std::size_t>(process)] = this;
    connect(std::make_unique<DirectEngine>(process, network));
  }
  ~DirectWorld() override { disconnect(); }
};

}  // namespace dualpipe::test
