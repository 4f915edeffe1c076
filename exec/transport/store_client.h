// A connection to a store of LibTorch's (c10d::Store), as store_engine uses it. Private to exec/transport.
//
// Its calls throw what LibTorch throws. Nothing ends one that the store does not answer: where the store's process is
// stopped, or its host is gone without a word, a call waits for good.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "dualpipe/exec/transport/launch.h"

namespace c10d {
class Store;
}  // namespace c10d

namespace dualpipe::detail::transport {

// For one thread at a time: a wait keeps it busy.
class StoreClient {
 public:
  // Of a TCP store. Makes the store as well, where it `makes_store`; it is there as long as this lives.
  StoreClient(const Launch& launch, bool makes_store, std::chrono::nanoseconds timeout);
  // Another connection to a store that somebody else has made. `run`: as in a Launch.
  StoreClient(c10d::Store& store, const std::string& run);
  ~StoreClient();
  StoreClient(const StoreClient&) = delete;
  StoreClient& operator=(const StoreClient&) = delete;

  [[nodiscard]] std::uint16_t port() const { return port_; }  // of a TCP store

  // Returns the sum; what was never added to is 0.
  std::int64_t add(const std::string& key, std::int64_t value);
  // Of any size.
  void set(const std::string& key, const std::string& value);
  [[nodiscard]] bool has(const std::string& key);
  // Waits for what another sets, and removes it. Nothing if it is not there in time.
  [[nodiscard]] std::optional<std::string> take(const std::string& key, std::chrono::milliseconds timeout);

 private:
  [[nodiscard]] std::string take_now(const std::string& key);

  c10::intrusive_ptr<c10d::Store> keys_;  // of this run
  std::uint16_t port_ = 0;
};

}  // namespace dualpipe::detail::transport
