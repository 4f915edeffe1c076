// Ranks that NCCL connects: a communicator for each stream. Private to exec/transport.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dualpipe/exec/transport/nccl_api.h"
#include "dualpipe/exec/transport/ordered_backend.h"

namespace dualpipe::detail::transport {

class NcclBackend final : public OrderedBackend {
 public:
  using UniqueIds = std::array<std::string, 2>;  // by stream

  NcclBackend(std::shared_ptr<Nccl> nccl, UniqueIds ids, int rank, int ranks);

  [[nodiscard]] std::string_view name() const override { return "NCCL"; }
  void begin(at::Device where) override;
  [[nodiscard]] std::size_t streams() const override { return ids_.size(); }
  void connect(std::size_t stream) override;
  [[nodiscard]] bool is_ready(std::size_t stream) override;
  [[nodiscard]] std::shared_ptr<Work> put(std::size_t stream, std::span<const Transfer> transfers) override;
  void check() override;
  void cancel() override;
  void close(std::chrono::nanoseconds timeout) override;

 private:
  std::shared_ptr<Nccl> nccl_;
  UniqueIds ids_;
  int rank_;
  int ranks_;

  std::mutex mutex_;                               // of NCCL's calls, and of what follows
  std::vector<Nccl::Communicator> communicators_;  // by stream; none before connect() and after the end
  bool is_cancelled_ = false;
};

}  // namespace dualpipe::detail::transport
