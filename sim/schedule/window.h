// A map from micro-batches to values, for a small range of micro-batches that moves on. Private to sim.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace dualpipe::detail::schedule {

// Such are the messages on their way to one stage. An entry has its place at its micro-batch modulo the window's size,
// which is doubled whenever two entries would share a place. So the window is about as small as the number of messages
// that are under way at a time, and stays in the cache.
template <typename Value>
class Window {
 public:
  // Null while there is no entry for this micro-batch.
  [[nodiscard]] const Value* find(std::uint32_t micro_batch) const {
    const Entry& entry = entries_[micro_batch & mask_];
    return entry.key == micro_batch + 1 ? &entry.value : nullptr;
  }
  void put(std::uint32_t micro_batch, Value value) {
    Entry* place = &entries_[micro_batch & mask_];
    if (place->key != 0) place = &make_room(micro_batch);
    *place = {value, micro_batch + 1};
  }
  void erase(std::uint32_t micro_batch) { entries_[micro_batch & mask_].key = 0; }

 private:
  struct Entry {
    [[no_unique_address]] Value value{};
    std::uint32_t key = 0;  // micro-batch + 1; 0: no entry
  };

  // Not inlined, since it is rare.
  [[gnu::noinline]] Entry& make_room(std::uint32_t micro_batch) {
    while (entries_[micro_batch & mask_].key != 0) grow();
    return entries_[micro_batch & mask_];
  }

  // Entries that differ modulo the old size differ modulo its double.
  void grow() {
    std::vector<Entry> larger(entries_.size() * 2);
    mask_ = static_cast<std::uint32_t>(larger.size() - 1);
    for (const Entry& entry : entries_) {
      if (entry.key != 0) larger[(entry.key - 1) & mask_] = entry;
    }
    entries_ = std::move(larger);
  }

  static constexpr std::uint32_t size_initial = 8;
  std::vector<Entry> entries_ = std::vector<Entry>(size_initial);
  std::uint32_t mask_ = size_initial - 1;
};

}  // namespace dualpipe::detail::schedule
