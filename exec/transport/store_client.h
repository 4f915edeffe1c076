// A connection to a store of LibTorch's (c10d::Store), as store_engine uses it. Private to exec/transport.
//
// Its calls throw what LibTorch throws. A call never ends where the store does not answer: when the process that has it
// is stopped, or its host has gone without closing the connection.
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

// To be used by one thread at a time. While that waits, no other can use it.
class StoreClient {
 public:
  // Connects to a TCP store. If `makes_store`, it makes the store, too, which lives as long as this object.
  StoreClient(const Launch& launch, bool makes_store, std::chrono::nanoseconds timeout);
  // Another connection to a store that somebody else has made. `run`: as in a Launch.
  StoreClient(c10d::Store& store, const std::string& run);
  ~StoreClient();
  StoreClient(const StoreClient&) = delete;
  StoreClient& operator=(const StoreClient&) = delete;

  [[nodiscard]] std::uint16_t port() const { return port_; }  // of a TCP store

  // Adds to a number, which is 0 at first, and returns the sum.
  std::int64_t add(const std::string& key, std::int64_t value);
  // The value may have any size.
  void set(const std::string& key, const std::string& value);
  [[nodiscard]] bool has(const std::string& key);
  // Waits until the key is set, and removes it. Returns its value, or nothing where it was not set in time.
  [[nodiscard]] std::optional<std::string> take(const std::string& key, std::chrono::milliseconds timeout);

 private:
  [[nodiscard]] std::string take_now(const std::string& key);

  c10::intrusive_ptr<c10d::Store> keys_;  // of this run
  std::uint16_t port_ = 0;
};

}  // namespace dualpipe::detail::transport
