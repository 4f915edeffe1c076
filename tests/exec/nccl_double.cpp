#include "tests/exec/nccl_double.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

namespace dualpipe::test {
namespace {

using namespace std::chrono_literals;

// Where a group goes.
struct Place {
  StreamDevice* device = nullptr;
  Stream stream;
};

Place place_of_thread() { return {StreamDevice::of_thread(), StreamDevice::of_thread()->used()}; }

}  // namespace

Nccl::State NcclDouble::state(Communicator communicator) {
  try {
    return is_done(communicator) ? State::done : State::in_progress;
  } catch (const Failure& failure) {
    throw NcclError(failure.what());
  }
}

void NcclDouble::send(Communicator communicator, const void* data, std::size_t bytes, int peer) {
  add(communicator, {const_cast<void*>(data), bytes, peer, true}, place_of_thread());
}

void NcclDouble::receive(Communicator communicator, void* data, std::size_t bytes, int peer) {
  add(communicator, {data, bytes, peer, false}, place_of_thread());
}

void NcclDouble::launch(const std::shared_ptr<Group>& group) {
  const auto [device, stream] = std::any_cast<Place>(group->stream);
  if (stream.kind != Stream::Kind::message || stream.index != number_of(*group)) {
    misused(fmt::format("rank {}: a group of communicator {} on another's stream", rank_of(*group), number_of(*group)));
  }
  device->put(stream, [this, group] { run(group); });
}

// On its stream.
void NcclDouble::run(const std::shared_ptr<Group>& group) {
  constexpr unsigned char garbage = 0xFF;
  std::this_thread::sleep_for(20us);
  std::unique_lock lock(mutex_);
  if (is_aborted(*group)) return;
  for (const auto& each : group->transfers) {
    if (!each->is_send) std::memset(each->data, garbage, each->bytes);
  }
  post(group);
  changed_.wait(lock, [&] {
    return is_aborted(*group) ||
           std::ranges::all_of(group->transfers, [](const auto& each) { return each->is_matched; });
  });
  if (is_aborted(*group)) return;
  for (const auto& each : group->transfers) {
    if (!each->is_send && each->bytes > 0) std::memcpy(each->data, each->content.data(), each->bytes);
  }
}

void NcclDouble::matched(Transfer& sent, Transfer& received) {
  const auto* const data = static_cast<const std::byte*>(sent.data);
  received.content.assign(data, data + std::min(sent.bytes, received.bytes));
  received.content.resize(received.bytes);
}

std::vector<std::string> NcclDouble::misuse() const {
  const std::lock_guard lock(mutex_);
  return misuse_;
}

}  // namespace dualpipe::test
