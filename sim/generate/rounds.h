// In which order a rank with several chunks takes them: the interleaved schedules. Private to sim.
//
// Micro-batches go in rounds of n. A round passes chunk 0, then chunk 1, …; then comes the next round. The last one has
// the micro-batches that are left. Backwards are in the same order with the chunks reversed.
//
//   rounds of 2, 3 micro-batches, 2 chunks: 0.0 0.1 1.0 1.1 0.2 1.2 (chunk.micro-batch)
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "dualpipe/sim/generate/request.h"

namespace dualpipe::detail::generate {

class Rounds {
 public:
  Rounds(const Shape& shape, std::int64_t size)
      : chunks_(shape.chunks), micro_batches_(shape.micro_batches), size_(size), end_(std::min(size, micro_batches_)) {}

  struct Pass {
    int chunk;
    std::int64_t micro_batch;
  };
  // The next of the M V passes of a kind; not to be called more often.
  [[nodiscard]] Pass next() {
    const Pass pass{chunk_, micro_batch_};
    if (++micro_batch_ == end_) begin_chunk();
    return pass;
  }

 private:
  void begin_chunk() {
    if (++chunk_ == chunks_) {
      chunk_ = 0;
      begin_ = end_;
      end_ = std::min(end_ + size_, micro_batches_);
    }
    micro_batch_ = begin_;
  }

  int chunks_;
  std::int64_t micro_batches_;
  std::int64_t size_;
  int chunk_ = 0;
  std::int64_t micro_batch_ = 0;
  std::int64_t begin_ = 0;  // the round: its first micro-batch, and the one behind its last
  std::int64_t end_;
};

// PyTorch's: as many rounds as M has times P, all of one size. Where they are not, `uneven_rounds` says so, and which
// numbers of micro-batches do better.
[[nodiscard]] std::int64_t round_size(const Shape& shape);
[[nodiscard]] std::string uneven_rounds(const Shape& shape);

}  // namespace dualpipe::detail::generate
