#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "dualpipe/exec/model/crc32.h"
#include "dualpipe/exec/model/mapped_file.h"
#include "dualpipe/exec/model/models.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {

using detail::model::check;
using detail::model::crc32;
using detail::model::crc32_text;
using detail::model::MappedFile;

namespace {

using Token = std::int32_t;

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw InputError(fmt::format("{}: {}", path, why));
}

std::span<const Token> tokens_of(const MappedFile& file, const std::string& path) {
  const std::span<const std::byte> bytes = file.bytes();
  if (bytes.size() % sizeof(Token) != 0) {
    refuse(path, fmt::format("has {} bytes, which is no whole number of int32 tokens; write 4 bytes per token, little "
                             "end first",
                             bytes.size()));
  }
  return {reinterpret_cast<const Token*>(bytes.data()), bytes.size() / sizeof(Token)};  // a mapping is aligned
}

// Reads the whole file once, rather than have a run end in the middle: whether the vocabulary has all tokens, and the
// checksum, block by block, so that the second of the two finds the block in the processor's cache.
std::uint32_t check_all(const std::string& path, std::span<const Token> tokens, std::int64_t vocabulary) {
  constexpr std::size_t block_size = 1U << 14U;
  const auto is_outside = [vocabulary](Token token) { return token < 0 || token >= vocabulary; };
  std::uint32_t checksum = 0;
  for (std::size_t begin = 0; begin < tokens.size(); begin += block_size) {
    const auto block = tokens.subspan(begin, std::min(block_size, tokens.size() - begin));
    const auto bad = std::ranges::find_if(block, is_outside);
    if (bad != block.end()) {
      refuse(path,
             fmt::format("token {} is {}, but the vocabulary has {}, from 0 to {}; raise --vocabulary, or check "
                         "that the file holds int32",
                         begin + static_cast<std::size_t>(bad - block.begin()), *bad, vocabulary, vocabulary - 1));
    }
    checksum = crc32(std::as_bytes(block), checksum);
  }
  return checksum;
}

class TokenFile final : public Data {
 public:
  TokenFile(const ModelShape& shape, const std::string& path, std::int64_t micro_batches)
      : file_(path, "int32 tokens"),
        tokens_(tokens_of(file_, path)),
        batch_(shape.batch),
        sequence_(shape.sequence),
        micro_batches_(micro_batches),
        samples_((static_cast<std::int64_t>(tokens_.size()) - 1) / shape.sequence) {
    if (samples_ < 1) {
      refuse(path, fmt::format("has {} tokens, but a sample takes {} (a sequence, and the token that follows it); "
                               "lower --sequence, or give a longer file",
                               tokens_.size(), sequence_ + 1));
    }
    checksum_ = check_all(path, tokens_, shape.vocabulary);
  }

  at::Tensor input(std::int64_t step, std::int64_t micro_batch) override { return read(step, micro_batch, 0); }
  at::Tensor target(std::int64_t step, std::int64_t micro_batch) override { return read(step, micro_batch, 1); }
  std::string description() override {
    return fmt::format("{} tokens, checksum {}", tokens_.size(), crc32_text(checksum_));
  }

 private:
  [[nodiscard]] at::Tensor read(std::int64_t step, std::int64_t micro_batch, std::int64_t shift) const {
    at::Tensor result = at::empty({batch_, sequence_}, at::kLong);
    std::int64_t* out = result.mutable_data_ptr<std::int64_t>();
    const std::int64_t first = (step * micro_batches_ + micro_batch) * batch_;
    for (std::int64_t sample = first; sample < first + batch_; ++sample) {
      const std::int64_t begin = sample % samples_ * sequence_ + shift;
      out = std::copy_n(tokens_.data() + begin, sequence_, out);
    }
    return result;
  }

  MappedFile file_;
  std::span<const Token> tokens_;
  std::uint32_t checksum_ = 0;
  std::int64_t batch_;
  std::int64_t sequence_;
  std::int64_t micro_batches_;
  std::int64_t samples_;
};

}  // namespace

std::unique_ptr<Data> token_file(const ModelShape& shape, const std::string& path, std::int64_t micro_batches) {
  if (!has(shape.model, ModelFeature::tokens)) {
    refuse(path, fmt::format("the model {} reads no tokens; use {}, or leave the file out", shape.model,
                             fmt::join(model_names(ModelFeature::tokens), " or ")));
  }
  check(shape);
  return std::make_unique<TokenFile>(shape, path, micro_batches);
}

}  // namespace dualpipe
