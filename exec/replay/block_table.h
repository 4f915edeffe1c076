// Who pays for which block of memory. Private to exec/replay.
#pragma once

#include <c10/core/Allocator.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include "dualpipe/sim/costs/units.h"

namespace dualpipe::detail::replay {

// What is charged to one thread. Any thread may free, but only its own allocates, and sees the peak.
class MemoryAccount {
 public:
  void charge(Bytes bytes) {
    const Bytes level = level_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    peak_ = std::max(peak_, level);
  }
  void release(Bytes bytes) { level_.fetch_sub(bytes, std::memory_order_relaxed); }

  // The level from which a peak is measured anew.
  [[nodiscard]] Bytes restart() { return peak_ = level(); }
  [[nodiscard]] Bytes level() const { return level_.load(std::memory_order_relaxed); }
  [[nodiscard]] Bytes peak() const { return peak_; }

 private:
  std::atomic<Bytes> level_{0};
  Bytes peak_ = 0;
};

using Account = std::shared_ptr<MemoryAccount>;

struct Block {
  Account account;  // null: charged to nobody
  Bytes bytes = 0;
  c10::DeleterFnPtr free = nullptr;  // of the host: of the allocator that it is from
};

// The blocks that are counted, by address: those of the host and of all GPUs have one address space. May be used by any
// thread; threads that are at different blocks seldom wait for each other.
class BlockTable {
 public:
  // Charges it. Of a block that is in the table already nobody has said that it was freed.
  void add(const void* address, Block block) {
    const Account account = block.account;
    const Bytes bytes = block.bytes;
    Shard& shard = shard_of(address);
    {
      const std::lock_guard lock(shard.mutex);
      const auto [place, is_new] = shard.blocks.try_emplace(address);
      if (is_new) {
        size_.fetch_add(1, std::memory_order_relaxed);
      } else {
        release(place->second);
      }
      place->second = std::move(block);
    }
    if (account) account->charge(bytes);
  }

  // It is freed. Returns what it was, if it was counted.
  std::optional<Block> remove(const void* address) {
    if (size_.load(std::memory_order_relaxed) == 0) return std::nullopt;
    Shard& shard = shard_of(address);
    const std::lock_guard lock(shard.mutex);
    const auto place = shard.blocks.find(address);
    if (place == shard.blocks.end()) return std::nullopt;
    Block block = std::move(place->second);
    shard.blocks.erase(place);
    size_.fetch_sub(1, std::memory_order_relaxed);
    release(block);
    return block;
  }

  // Of all: blocks may be freed from now on without a word.
  void charge_all_to_nobody() {
    for (Shard& shard : shards_) {
      const std::lock_guard lock(shard.mutex);
      for (auto& [address, block] : shard.blocks) {
        release(block);
        block.account = nullptr;
      }
    }
  }

  void charge_to(const void* address, const Account& account) {
    Shard& shard = shard_of(address);
    const std::lock_guard lock(shard.mutex);
    const auto place = shard.blocks.find(address);
    if (place == shard.blocks.end()) return;
    Block& block = place->second;
    release(block);
    block.account = account;
    if (account) account->charge(block.bytes);
  }

 private:
  struct alignas(64) Shard {
    std::mutex mutex;
    std::unordered_map<const void*, Block> blocks;
  };

  static void release(const Block& block) {
    if (block.account) block.account->release(block.bytes);
  }

  // Blocks begin at multiples of 64 bytes or more: the bits above are mixed by a multiplication (Fibonacci hashing).
  [[nodiscard]] Shard& shard_of(const void* address) {
    const std::uint64_t mixed = (reinterpret_cast<std::uintptr_t>(address) >> 6U) * 0x9E3779B97F4A7C15U;
    return shards_[mixed >> 58U];
  }

  std::array<Shard, 64> shards_;
  std::atomic<std::size_t> size_{0};
};

}  // namespace dualpipe::detail::replay
