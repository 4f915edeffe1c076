#include "exec/replay/memory.h"

#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstddef>
#include <new>
#include <utility>

namespace dualpipe {

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

namespace {

thread_local std::shared_ptr<MemoryAccount> measured;  // null: this thread is not measured
thread_local bool for_nobody = false;                  // a ChargeToNobody lives

// Stands before the data of each block.
struct alignas(64) Header {
  std::shared_ptr<MemoryAccount> account;  // null: charged to nobody. Only who holds the tensor changes it
  std::size_t bytes;
  void* context;  // of the allocator below
  c10::DeleterFnPtr free;
  bool counted;  // a measured thread allocated it, or one with a ChargeToNobody

  void charge_to(std::shared_ptr<MemoryAccount> next) {
    if (!counted) return;
    if (account) account->release(static_cast<Bytes>(bytes));
    account = std::move(next);
    if (account) account->charge(static_cast<Bytes>(bytes));
  }
};

Header* header_of(void* data) { return static_cast<Header*>(data) - 1; }

void free_block(void* data) {
  if (data == nullptr) return;
  Header* header = header_of(data);
  header->charge_to(nullptr);
  const auto [context, free] = std::pair(header->context, header->free);
  header->~Header();
  free(context);
}

// Adds the header to the blocks of LibTorch's allocator, whichever that is. To those of threads that are not measured,
// too: oneDNN's scratch memory is freed by raw_deleter(), which has one answer for all blocks.
class MeteredAllocator final : public c10::Allocator {
 public:
  explicit MeteredAllocator(c10::Allocator& below) : below_(below) {}

  [[nodiscard]] c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) return below_.allocate(bytes);
    c10::DataPtr block = below_.allocate(bytes + sizeof(Header));
    const c10::Device device = block.device();
    const c10::DeleterFnPtr free = block.get_deleter();
    auto* header = new (block.get()) Header{nullptr, bytes, nullptr, free, measured != nullptr || for_nobody};
    header->context = block.release_context();
    header->charge_to(for_nobody ? nullptr : measured);
    void* data = header + 1;
    return {data, data, &free_block, device};
  }

  [[nodiscard]] c10::DeleterFnPtr raw_deleter() const override { return &free_block; }

  void copy_data(void* destination, const void* source, std::size_t bytes) const override {
    below_.copy_data(destination, source, bytes);
  }

 private:
  c10::Allocator& below_;
};

// In place before main(), as it must not change while others allocate; stays for ever, as blocks may.
[[maybe_unused]] const bool installed = [] {
  static MeteredAllocator allocator(*c10::GetCPUAllocator());
  c10::SetCPUAllocator(&allocator);
  return true;
}();

void charge(const at::Tensor& tensor, const std::shared_ptr<MemoryAccount>& account) {
  if (!tensor.defined() || !tensor.has_storage()) return;
  const c10::DataPtr& data = tensor.storage().data_ptr();
  if (data.get_deleter() == &free_block) header_of(data.get_context())->charge_to(account);
}

}  // namespace

MemoryMeter::MemoryMeter() {
  assert(!measured);
  thread_local const auto account = std::make_shared<MemoryAccount>();
  account_ = measured = account;
  first_ = account_->restart();
}

MemoryMeter::~MemoryMeter() { measured = nullptr; }

Bytes MemoryMeter::held() const { return account_->level() - first_; }

Bytes MemoryMeter::peak() const { return std::max(taken_, account_->peak() - first_); }

Bytes MemoryMeter::take_peak() {
  const Bytes peak = account_->peak() - first_;
  taken_ = std::max(taken_, peak);
  static_cast<void>(account_->restart());
  return peak;
}

Bytes held_by_this_thread() {
  assert(measured);
  return measured->level();
}

ChargeToNobody::ChargeToNobody() : before_(std::exchange(for_nobody, true)) {}

ChargeToNobody::~ChargeToNobody() { for_nobody = before_; }

void charge_to_nobody(const at::Tensor& tensor) { charge(tensor, nullptr); }

void charge_to_this_thread(const at::Tensor& tensor) { charge(tensor, measured); }

}  // namespace dualpipe
