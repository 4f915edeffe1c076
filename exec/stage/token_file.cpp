#include <ATen/ops/empty.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "exec/stage/models.h"
#include "sim/schedule/error.h"

namespace dualpipe {
namespace {

using Token = std::int32_t;

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw InputError(fmt::format("{}: {}", path, why));
}

[[noreturn]] void refuse_by_system(const std::string& path, std::string_view what) {
  refuse(path, fmt::format("cannot be {}: {}", what, std::strerror(errno)));
}

class MappedTokens {
 public:
  explicit MappedTokens(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) refuse_by_system(path, "opened");
    try {
      map(path, file);
    } catch (...) {
      ::close(file);
      throw;
    }
    ::close(file);  // the mapping stays
  }
  ~MappedTokens() {
    if (!tokens_.empty()) ::munmap(const_cast<Token*>(tokens_.data()), tokens_.size_bytes());
  }
  MappedTokens(const MappedTokens&) = delete;
  MappedTokens& operator=(const MappedTokens&) = delete;

  [[nodiscard]] std::span<const Token> tokens() const { return tokens_; }

 private:
  void map(const std::string& path, int file) {
    struct stat status = {};
    if (::fstat(file, &status) != 0) refuse_by_system(path, "read");
    if (!S_ISREG(status.st_mode)) refuse(path, "is not a regular file; give a file of int32 tokens");
    const auto bytes = static_cast<std::size_t>(status.st_size);
    if (bytes % sizeof(Token) != 0) {
      refuse(path,
             fmt::format("has {} bytes, which is no whole number of int32 tokens; write 4 bytes per token, little "
                         "end first",
                         bytes));
    }
    if (bytes == 0) return;
    void* const address = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0);
    if (address == MAP_FAILED) refuse_by_system(path, "mapped into memory");
    tokens_ = {static_cast<const Token*>(address), bytes / sizeof(Token)};
  }

  std::span<const Token> tokens_;
};

// Reads the whole file once, rather than have a run end in the middle.
void check_vocabulary(const std::string& path, std::span<const Token> tokens, std::int64_t vocabulary) {
  const auto is_outside = [vocabulary](Token token) { return token < 0 || token >= vocabulary; };
  const auto bad = std::find_if(tokens.begin(), tokens.end(), is_outside);
  if (bad == tokens.end()) return;
  refuse(path, fmt::format("token {} is {}, but the vocabulary has {}, from 0 to {}; raise --vocabulary, or check that "
                           "the file holds int32",
                           bad - tokens.begin(), *bad, vocabulary, vocabulary - 1));
}

class TokenFile final : public Data {
 public:
  TokenFile(const ModelShape& shape, const std::string& path, std::int64_t micro_batches)
      : mapped_(path),
        batch_(shape.batch),
        sequence_(shape.sequence),
        micro_batches_(micro_batches),
        samples_((static_cast<std::int64_t>(mapped_.tokens().size()) - 1) / shape.sequence) {
    if (samples_ < 1) {
      refuse(path, fmt::format("has {} tokens, but a sample takes {} (a sequence, and the token that follows it); "
                               "lower --sequence, or give a longer file",
                               mapped_.tokens().size(), sequence_ + 1));
    }
    check_vocabulary(path, mapped_.tokens(), shape.vocabulary);
  }

  at::Tensor input(std::int64_t step, std::int64_t micro_batch) override { return read(step, micro_batch, 0); }
  at::Tensor target(std::int64_t step, std::int64_t micro_batch) override { return read(step, micro_batch, 1); }

 private:
  [[nodiscard]] at::Tensor read(std::int64_t step, std::int64_t micro_batch, std::int64_t shift) const {
    at::Tensor result = at::empty({batch_, sequence_}, at::kLong);
    std::int64_t* out = result.mutable_data_ptr<std::int64_t>();
    const std::int64_t first = (step * micro_batches_ + micro_batch) * batch_;
    for (std::int64_t sample = first; sample < first + batch_; ++sample) {
      const std::int64_t begin = sample % samples_ * sequence_ + shift;
      out = std::copy_n(mapped_.tokens().data() + begin, sequence_, out);
    }
    return result;
  }

  MappedTokens mapped_;
  std::int64_t batch_;
  std::int64_t sequence_;
  std::int64_t micro_batches_;
  std::int64_t samples_;
};

}  // namespace

std::unique_ptr<Data> token_file(const ModelShape& shape, const std::string& path, std::int64_t micro_batches) {
  if (shape.model != "gpt") {
    refuse(path, fmt::format("the model {} reads no tokens; use gpt, or leave the file out", shape.model));
  }
  check(shape);
  return std::make_unique<TokenFile>(shape, path, micro_batches);
}

}  // namespace dualpipe
