#include "dualpipe/exec/transport/store_client.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/pack.h"

namespace dualpipe::detail::transport {
namespace {

// The store closes the connection of who sets more than 8 MiB at once.
constexpr std::size_t piece_bytes = std::size_t{4} << 20U;

std::string piece_key(const std::string& key, std::size_t number) { return fmt::format("{}/{}", key, number); }

std::vector<std::uint8_t> bytes_of(std::string_view text) { return {text.begin(), text.end()}; }

c10::intrusive_ptr<c10d::Store> keys_of(const std::string& run, c10::intrusive_ptr<c10d::Store> store) {
  return c10::make_intrusive<c10d::PrefixStore>("dualpipe/" + run, std::move(store));
}

}  // namespace

StoreClient::StoreClient(const Launch& launch, bool makes_store, std::chrono::nanoseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = launch.port;
  options.isServer = makes_store;
  options.waitWorkers = false;
  options.timeout = std::chrono::ceil<std::chrono::milliseconds>(timeout);
  const auto store = c10::make_intrusive<c10d::TCPStore>(launch.address, options);
  port_ = store->getPort();
  keys_ = keys_of(launch.run, store);
}

StoreClient::StoreClient(c10d::Store& store, const std::string& run) : keys_(keys_of(run, store.clone())) {}

StoreClient::~StoreClient() = default;

std::int64_t StoreClient::add(const std::string& key, std::int64_t value) { return keys_->add(key, value); }

bool StoreClient::has(const std::string& key) { return keys_->check({key}); }

// Under the key itself: how many pieces follow, and the first. It comes last, so that all are there when it is.
void StoreClient::set(const std::string& key, const std::string& value) {
  const std::string_view all = value;
  const std::size_t following = value.empty() ? 0 : (value.size() - 1) / piece_bytes;
  for (std::size_t number = 1; number <= following; ++number) {
    keys_->set(piece_key(key, number), bytes_of(all.substr(number * piece_bytes, piece_bytes)));
  }
  Packer packer;
  packer.put(following);
  packer.put(std::string(all.substr(0, piece_bytes)));
  keys_->set(key, bytes_of(packer.take()));
}

std::optional<std::string> StoreClient::take(const std::string& key, std::chrono::milliseconds timeout) {
  try {
    keys_->wait({key}, timeout);
  } catch (const c10::DistStoreError&) {
    return std::nullopt;
  }
  const std::string first = take_now(key);
  Unpacker unpacker(first);
  const auto following = unpacker.get<std::size_t>();
  auto value = unpacker.get<std::string>();
  for (std::size_t number = 1; number <= following; ++number) value += take_now(piece_key(key, number));
  return value;
}

std::string StoreClient::take_now(const std::string& key) {
  const std::vector<std::uint8_t> value = keys_->get(key);
  keys_->deleteKey(key);
  return {value.begin(), value.end()};
}

}  // namespace dualpipe::detail::transport
