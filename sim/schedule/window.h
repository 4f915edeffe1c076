// Messages of one kind on their way to one stage, by micro-batch. Private to sim.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace dualpipe::detail::schedule {

// A letter has its place at its micro-batch modulo the window's size, which doubles whenever two would share one. So
// the window is about as small as the number of messages under way at a time, and stays in the cache.
template <typename Value>
class Window {
 public:
  // Null while there is no letter of this micro-batch.
  [[nodiscard]] const Value* find(std::uint32_t micro_batch) const {
    const Letter& letter = letters_[micro_batch & mask_];
    return letter.key == micro_batch + 1 ? &letter.value : nullptr;
  }
  void put(std::uint32_t micro_batch, Value value) {
    Letter* place = &letters_[micro_batch & mask_];
    if (place->key != 0) place = &make_room(micro_batch);
    *place = {value, micro_batch + 1};
  }
  void erase(std::uint32_t micro_batch) { letters_[micro_batch & mask_].key = 0; }

 private:
  struct Letter {
    [[no_unique_address]] Value value{};
    std::uint32_t key = 0;  // micro-batch + 1; 0: no letter
  };

  // Rare, and so out of the way of what is not.
  [[gnu::noinline]] Letter& make_room(std::uint32_t micro_batch) {
    while (letters_[micro_batch & mask_].key != 0) grow();
    return letters_[micro_batch & mask_];
  }

  // Letters that differ modulo the old size differ modulo its double.
  void grow() {
    std::vector<Letter> larger(letters_.size() * 2);
    mask_ = static_cast<std::uint32_t>(larger.size() - 1);
    for (const Letter& letter : letters_) {
      if (letter.key != 0) larger[(letter.key - 1) & mask_] = letter;
    }
    letters_ = std::move(larger);
  }

  static constexpr std::uint32_t size_initial = 8;
  std::vector<Letter> letters_ = std::vector<Letter>(size_initial);
  std::uint32_t mask_ = size_initial - 1;
};

}  // namespace dualpipe::detail::schedule
