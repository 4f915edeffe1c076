#include "dualpipe/exec/transport/store_world.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/build.h"
#include "dualpipe/exec/transport/engine_world.h"
#include "dualpipe/exec/transport/nccl_transport.h"
#include "dualpipe/exec/transport/pack.h"
#include "dualpipe/exec/transport/store_engine.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

using detail::transport::check_same_build;
using detail::transport::Engine;
using detail::transport::EngineWorld;
using detail::transport::NcclTransport;
using detail::transport::Packer;
using detail::transport::StoreEngine;
using detail::transport::this_build;
using detail::transport::Unpacker;

namespace {

std::string host_name() {
  std::array<char, 256> name{};
  (void)gethostname(name.data(), name.size() - 1);
  return name.data();
}

class StoreWorld final : public EngineWorld {
 public:
  StoreWorld(const Launch& launch, std::shared_ptr<Nccl> nccl, const StoreOptions& options)
      : EngineWorld(launch.process, launch.processes,
                    {.transport = nccl ? "nccl" : "store", .timeout = options.timeout}),
        nccl_(std::move(nccl)) {
    auto engine = std::make_unique<StoreEngine>(launch, static_cast<Engine::Receiver&>(*this), options.timeout);
    store_ = engine.get();
    connect(std::move(engine));
  }
  ~StoreWorld() override { EngineWorld::disconnect(); }

  // What they are, and where they run.
  void meet(const StoreOptions& options) {
    Packer own;
    own.put(this_build());
    own.put(host_name());
    std::vector<std::string> builds;
    std::vector<std::string> hosts;
    for (const std::string& part : all_gather("the start of the processes", own.take())) {
      Unpacker unpacker(part);
      builds.push_back(unpacker.get<std::string>());
      hosts.push_back(unpacker.get<std::string>());
    }
    check_same_build(builds);
    set_on_this_host(static_cast<int>(std::ranges::count(hosts, hosts[static_cast<std::size_t>(process())])));
    const bool is_one_host = std::ranges::count(hosts, hosts[0]) == std::ssize(hosts);
    if (options.measure_clock || !is_one_host) measure_clocks();
  }

 private:
  [[nodiscard]] std::vector<std::unique_ptr<Transport>> make_transports(const Placement& placement,
                                                                        const TransportOptions& options) override {
    if (nccl_) check_shape(placement, options);
    store_->set_timeout(options.timeout);
    auto transports = EngineWorld::make_transports(placement, options);
    if (nccl_) {
      const int rank = process();
      transports[static_cast<std::size_t>(rank)] =
          std::make_unique<NcclTransport>(nccl_, unique_ids(), placement, rank, options, router(), abort_flag());
    }
    return transports;
  }

  // NCCL up to 2.29 has no two ranks on one GPU.
  void check_shape(const Placement& placement, const TransportOptions& options) const {
    if (processes() != placement.ranks) {
      throw InputError(
          fmt::format("NCCL connects GPUs, each of one process and one rank: {} ranks need {} processes, and "
                      "the launcher has started {}",
                      placement.ranks, placement.ranks, processes()));
    }
    if (options.link_delay.count() > 0) {
      throw InputError("--link-delay: over NCCL messages take the time that they take; leave it out");
    }
  }

  // Process 0 draws them.
  [[nodiscard]] NcclTransport::UniqueIds unique_ids() {
    Packer packer;
    if (process() == 0) {
      for (int i = 0; i < 2; ++i) packer.put(nccl_->unique_id());
    }
    const std::vector<std::string> parts = all_gather("the start of NCCL", packer.take());
    Unpacker unpacker(parts[0]);
    NcclTransport::UniqueIds ids;
    for (std::string& each : ids) unpacker.get(each);
    return ids;
  }

  std::shared_ptr<Nccl> nccl_;
  StoreEngine* store_ = nullptr;  // the World's engine
};

}  // namespace

std::unique_ptr<World> store_processes(const Launch& launch, std::shared_ptr<Nccl> nccl, const StoreOptions& options) {
  auto world = std::make_unique<StoreWorld>(launch, std::move(nccl), options);
  world->meet(options);
  return world;
}

}  // namespace dualpipe
