// Ranks that are threads of one process: a tensor is handed over as it is, nothing is copied.
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/message_router.h"
#include "dualpipe/exec/transport/world.h"

namespace dualpipe {

using detail::transport::AbortFlag;
using detail::transport::MessageRouter;
using detail::transport::transports_of;

namespace {

class OneProcess final : public World {
 public:
  OneProcess() : World(0, 1) {}

  [[nodiscard]] std::string_view transport() const override { return "threads"; }
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& /*what*/, std::string part) override {
    return {std::move(part)};
  }
  [[nodiscard]] std::vector<std::optional<std::string>> hand_over(std::string part) override {
    return {std::move(part)};
  }
  [[nodiscard]] std::vector<std::string> end(const Ending& ending) override {
    if (!ending.failed) return {};
    return {ending.text};
  }
  [[nodiscard]] bool close() override { return true; }

 private:
  [[nodiscard]] std::vector<std::unique_ptr<Transport>> make_transports(const Placement& placement,
                                                                        const TransportOptions& options) override {
    return thread_transports(placement, options);
  }
};

}  // namespace

std::vector<std::unique_ptr<Transport>> thread_transports(const Placement& placement, const TransportOptions& options) {
  std::vector<int> here(static_cast<std::size_t>(placement.ranks));
  std::iota(here.begin(), here.end(), 0);
  const bool spins = std::thread::hardware_concurrency() >= static_cast<unsigned>(placement.ranks);
  return transports_of(
      std::make_shared<MessageRouter>(placement, options, std::make_shared<AbortFlag>(), spins, nullptr),
      placement.ranks, here);
}

std::unique_ptr<World> one_process() { return std::make_unique<OneProcess>(); }

}  // namespace dualpipe
