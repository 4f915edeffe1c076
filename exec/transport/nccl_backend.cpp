#include "dualpipe/exec/transport/nccl_backend.h"

#include <fmt/format.h>

#include <thread>
#include <utility>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::transport {
namespace {

using namespace std::chrono_literals;

// Thread blocks of each communicator: the others stay with the stages.
constexpr int ctas_max = 4;
constexpr auto close_nap = 50us;

}  // namespace

NcclBackend::NcclBackend(std::shared_ptr<Nccl> nccl, UniqueIds ids, int rank, int ranks)
    : nccl_(std::move(nccl)), ids_(std::move(ids)), rank_(rank), ranks_(ranks) {}

void NcclBackend::begin(at::Device where) {
  if (where.type() == nccl_->device_type()) return;
  throw InputError(fmt::format(
      "NCCL moves tensors between GPUs, and those of this run are on the {}; use --device cuda", where.str()));
}

void NcclBackend::connect(std::size_t stream) {
  const std::lock_guard lock(mutex_);
  if (!is_cancelled_) communicators_.push_back(nccl_->init(ids_.at(stream), rank_, ranks_, ctas_max));
}

bool NcclBackend::is_ready(std::size_t stream) {
  const std::lock_guard lock(mutex_);
  return !is_cancelled_ && nccl_->state(communicators_.at(stream)) == Nccl::State::done;
}

std::shared_ptr<OrderedBackend::Work> NcclBackend::put(std::size_t stream, std::span<const Transfer> transfers) {
  const std::lock_guard lock(mutex_);
  if (is_cancelled_) return nullptr;
  const Nccl::Communicator communicator = communicators_.at(stream);
  nccl_->group_start();
  for (const Transfer& each : transfers) {
    if (each.is_send) {
      nccl_->send(communicator, each.tensor.const_data_ptr(), each.tensor.nbytes(), each.peer);
    } else {
      nccl_->receive(communicator, each.tensor.mutable_data_ptr(), each.tensor.nbytes(), each.peer);
    }
  }
  nccl_->group_end();
  return nullptr;
}

void NcclBackend::check() {
  const std::lock_guard lock(mutex_);
  for (const Nccl::Communicator each : communicators_) (void)nccl_->state(each);
}

void NcclBackend::cancel() {
  const std::lock_guard lock(mutex_);
  is_cancelled_ = true;
  for (const Nccl::Communicator each : std::exchange(communicators_, {})) {
    try {
      nccl_->abort(each);
    } catch (const NcclError&) {  // it had failed already
    }
  }
}

void NcclBackend::close(std::chrono::nanoseconds timeout) {
  const std::lock_guard lock(mutex_);
  for (const Nccl::Communicator each : std::exchange(communicators_, {})) {
    try {
      nccl_->finalize(each);
      const auto deadline = std::chrono::steady_clock::now() + timeout;
      while (nccl_->state(each) == Nccl::State::in_progress && std::chrono::steady_clock::now() < deadline) {
        std::this_thread::sleep_for(close_nap);
      }
      if (nccl_->state(each) == Nccl::State::done) {
        nccl_->destroy(each);
      } else {
        nccl_->abort(each);
      }
    } catch (const NcclError&) {  // there is nothing left to close
    }
  }
}

}  // namespace dualpipe::detail::transport
