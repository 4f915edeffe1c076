#include "dualpipe/exec/transport/store_world.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/build.h"
#include "dualpipe/exec/transport/engine_world.h"
#include "dualpipe/exec/transport/group_backend.h"
#include "dualpipe/exec/transport/nccl_backend.h"
#include "dualpipe/exec/transport/ordered_transport.h"
#include "dualpipe/exec/transport/pack.h"
#include "dualpipe/exec/transport/process_group.h"
#include "dualpipe/exec/transport/store_engine.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

using detail::transport::check_same_build;
using detail::transport::Engine;
using detail::transport::EngineWorld;
using detail::transport::GroupBackend;
using detail::transport::NcclBackend;
using detail::transport::OrderedBackend;
using detail::transport::OrderedTransport;
using detail::transport::Packer;
using detail::transport::StoreEngine;
using detail::transport::text_of;
using detail::transport::this_build;
using detail::transport::Unpacker;

namespace {

// By what the ranks of a run reach each other, one of each process.
struct Connection {
  std::string_view name;
  std::string_view has;  // what the processes belong to: "the group has"
  // Of the World's run of this number; collective. Empty: the store.
  std::function<std::unique_ptr<OrderedBackend>(World& world, int run)> backend;
};

std::string host_name() {
  std::array<char, 256> name{};
  (void)gethostname(name.data(), name.size() - 1);
  return name.data();
}

class StoreWorld final : public EngineWorld {
 public:
  // `store`: as for StoreEngine.
  StoreWorld(const Launch& launch, c10::intrusive_ptr<c10d::Store> store, Connection connection,
             const StoreOptions& options)
      : EngineWorld(launch.process, launch.processes, {.transport = connection.name, .timeout = options.timeout}),
        connection_(std::move(connection)) {
    auto engine =
        std::make_unique<StoreEngine>(launch, std::move(store), static_cast<Engine::Receiver&>(*this), options.timeout);
    store_ = engine.get();
    connect(std::move(engine));
  }
  ~StoreWorld() override {
    on_stop_.reset();  // it calls this
    EngineWorld::disconnect();
  }

  // What they are, and where they run.
  void meet(const StoreOptions& options) {
    on_stop_.emplace(options.stop, [this] { interrupt(); });
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
    if (connection_.backend) check_shape(placement, options);
    ++runs_;
    store_->set_timeout(options.timeout);
    auto transports = EngineWorld::make_transports(placement, options);
    if (connection_.backend) {
      transports[static_cast<std::size_t>(process())] = std::make_unique<OrderedTransport>(
          connection_.backend(*this, runs_), placement, process(), options, router(), abort_flag());
    }
    return transports;
  }

  // NCCL up to 2.29 has no two ranks on one GPU, and a process group none in one process.
  void check_shape(const Placement& placement, const TransportOptions& options) const {
    if (processes() != placement.ranks) {
      throw InputError(fmt::format("over {} each process has one rank: {} ranks need {} processes, and {} {}",
                                   transport(), placement.ranks, placement.ranks, connection_.has, processes()));
    }
    if (options.link_delay.count() > 0 || !options.slow_links.empty()) {
      throw InputError(fmt::format("{}: over {} messages take the time that they take; leave it out",
                                   options.slow_links.empty() ? "--link-delay" : "--inject link", transport()));
    }
  }

  Connection connection_;
  int runs_ = 0;  // begun
  std::optional<std::stop_callback<std::function<void()>>> on_stop_;
  StoreEngine* store_ = nullptr;  // the World's engine
};

// Process 0 draws them.
NcclBackend::UniqueIds unique_ids(Nccl& nccl, World& world) {
  Packer packer;
  if (world.process() == 0) {
    for (int i = 0; i < 2; ++i) packer.put(nccl.unique_id());
  }
  const std::vector<std::string> parts = world.all_gather("the start of NCCL", packer.take());
  Unpacker unpacker(parts[0]);
  NcclBackend::UniqueIds ids;
  for (std::string& each : ids) unpacker.get(each);
  return ids;
}

std::unique_ptr<World> met(std::unique_ptr<StoreWorld> world, const StoreOptions& options) {
  world->meet(options);
  return world;
}

}  // namespace

std::unique_ptr<World> store_processes(const Launch& launch, std::shared_ptr<Nccl> nccl, const StoreOptions& options) {
  Connection connection{"store", {}, {}};
  if (nccl) {
    connection = {"nccl", "the launcher has started", [nccl](World& world, int) {
                    return std::make_unique<NcclBackend>(nccl, unique_ids(*nccl, world), world.process(),
                                                         world.processes());
                  }};
  }
  return met(std::make_unique<StoreWorld>(launch, nullptr, std::move(connection), options), options);
}

namespace {

// Worlds are begun by all ranks of a group, in one order: so each counts for itself, and all have the same number.
std::int64_t next_number(c10d::ProcessGroup& group) {
  return group.getStore()->add(fmt::format("dualpipe/begun/{}", group.getRank()), 1);
}

// Of the activations of a World's run; the gradients have the one behind it. Far from what others use, as 0; and what a
// run that was aborted has left behind is taken for nothing of the next. A rank may fail in its World before it comes
// to the run: so nothing is counted here.
int first_tag(std::int64_t world, int run) {
  constexpr int runs = 64;  // until tags come again
  return 0x4450'0000 + static_cast<int>(2 * ((world * runs + run % runs) % 0x10'0000));
}

}  // namespace

std::unique_ptr<World> process_group(const c10::intrusive_ptr<c10d::ProcessGroup>& group, const StoreOptions& options) {
  if (!group) throw InputError("there is no process group: this process is not one of it");
  if (!group->getStore()) {
    throw InputError(fmt::format(
        "{} has no store, over which its ranks agree; make it by init_process_group or new_group", text_of(*group)));
  }
  Launch launch;
  launch.process = group->getRank();
  launch.processes = group->getSize();
  launch.is_served = true;
  const std::int64_t number = next_number(*group);
  launch.run = std::to_string(number);
  Connection connection{"process group", "the group has", [group, number](World&, int run) {
                          return std::make_unique<GroupBackend>(group, first_tag(number, run));
                        }};
  return met(std::make_unique<StoreWorld>(launch, group->getStore(), std::move(connection), options), options);
}

}  // namespace dualpipe
