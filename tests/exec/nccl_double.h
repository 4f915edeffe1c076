// A NCCL that moves what it is given between the streams of StreamDevices: a group ends as a unit on the stream that
// its call was made on. What is being received holds garbage until then; what is being sent is read late. Misuse is
// taken down.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "dualpipe/exec/transport/nccl_api.h"
#include "tests/exec/nccl_core.h"
#include "tests/exec/stream_device.h"

namespace dualpipe::test {

// For all ranks of a process.
class NcclDouble final : public Nccl, private NcclCore {
 public:
  using Nccl::Communicator;

  [[nodiscard]] c10::DeviceType device_type() const override { return c10::DeviceType::CPU; }
  [[nodiscard]] std::string unique_id() override { return NcclCore::unique_id(); }
  [[nodiscard]] Communicator init(const std::string& unique_id, int rank, int ranks, int /*ctas_max*/) override {
    return NcclCore::init(unique_id, rank, ranks);
  }
  [[nodiscard]] State state(Communicator communicator) override;
  void group_start() override { NcclCore::group_start(); }
  void send(Communicator communicator, const void* data, std::size_t bytes, int peer) override;
  void receive(Communicator communicator, void* data, std::size_t bytes, int peer) override;
  void group_end() override { NcclCore::group_end(); }
  void finalize(Communicator communicator) override { NcclCore::finalize(communicator); }
  void destroy(Communicator communicator) override { NcclCore::destroy(communicator); }
  void abort(Communicator communicator) override { NcclCore::abort(communicator); }

  using NcclCore::calls;
  using NcclCore::fail;
  [[nodiscard]] std::vector<std::string> misuse() const;

 private:
  void launch(const std::shared_ptr<Group>& group) override;
  void matched(Transfer& sent, Transfer& received) override;
  void changed() override { changed_.notify_all(); }
  void misused(const std::string& how) override { misuse_.push_back(how); }

  void run(const std::shared_ptr<Group>& group);

  std::condition_variable changed_;
  std::vector<std::string> misuse_;
};

}  // namespace dualpipe::test
