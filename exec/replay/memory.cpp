#include "dualpipe/exec/replay/memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstddef>
#include <mutex>
#include <new>
#include <unordered_map>
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

using Account = std::shared_ptr<MemoryAccount>;

thread_local Account measured;                       // null: this thread is not measured
thread_local at::DeviceType measured_on = at::kCPU;  // whose memory
thread_local bool for_nobody = false;                // a ChargeToNobody lives

// Whether the calling thread allocates memory of this kind that is to be counted, and to whom it is charged.
bool counts(at::DeviceType type) { return for_nobody || (measured && measured_on == type); }
Account payer(at::DeviceType type) { return !for_nobody && measured_on == type ? measured : nullptr; }

// --- the host

// Stands before the data of each block.
struct alignas(64) Header {
  Account account;  // null: charged to nobody. Only who holds the tensor changes it
  std::size_t bytes;
  void* context;  // of the allocator below
  c10::DeleterFnPtr free;
  bool counted;  // a measured thread allocated it, or one with a ChargeToNobody

  void charge_to(Account next) {
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
    auto* header = new (block.get()) Header{nullptr, bytes, nullptr, free, counts(at::kCPU)};
    header->context = block.release_context();
    header->charge_to(payer(at::kCPU));
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

// --- a GPU

// The blocks of GPUs that are counted, by address: those of all GPUs have one address space.
class BlockTable {
 public:
  // A block that is in the table already was freed by a thread that does not report.
  void add(const void* data, Bytes bytes, Account account) {
    const std::lock_guard lock(mutex_);
    erase(blocks_.find(data));
    if (account) account->charge(bytes);
    blocks_.emplace(data, Block{std::move(account), bytes});
  }
  void remove(const void* data) {
    const std::lock_guard lock(mutex_);
    erase(blocks_.find(data));
  }
  void charge_to(const void* data, const Account& account) {
    const std::lock_guard lock(mutex_);
    const auto block = blocks_.find(data);
    if (block == blocks_.end()) return;
    if (block->second.account) block->second.account->release(block->second.bytes);
    block->second.account = account;
    if (account) account->charge(block->second.bytes);
  }

 private:
  struct Block {
    Account account;  // null: charged to nobody
    Bytes bytes;
  };
  using Blocks = std::unordered_map<const void*, Block>;

  void erase(Blocks::iterator block) {
    if (block == blocks_.end()) return;
    if (block->second.account) block->second.account->release(block->second.bytes);
    blocks_.erase(block);
  }

  std::mutex mutex_;
  Blocks blocks_;
};

// Stays for ever, as blocks may.
BlockTable& block_table() {
  static auto& table = *new BlockTable;
  return table;
}

// Hears of all that the allocators of LibTorch do on its thread.
class Reporter final : public c10::MemoryReportingInfoBase {
 public:
  // Asked by the host's allocator alone, which is metered above.
  [[nodiscard]] bool memoryProfilingEnabled() const override { return false; }
  void reportMemoryUsage(void* data, std::int64_t bytes, std::size_t, std::size_t, c10::Device device) override {
    if (device.is_cpu() || data == nullptr) return;
    if (bytes < 0) {
      block_table().remove(data);
    } else if (counts(device.type())) {
      block_table().add(data, bytes, payer(device.type()));
    } else {
      block_table().remove(data);
    }
  }
};

// From the first meter for a GPU until the thread ends: what is freed between meters counts, too.
void listen_on_this_thread() {
  thread_local const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, std::make_shared<Reporter>());
}

void charge(const at::Tensor& tensor, const Account& account) {
  if (!tensor.defined() || !tensor.has_storage()) return;
  const c10::DataPtr& data = tensor.storage().data_ptr();
  if (!data.device().is_cpu()) {
    block_table().charge_to(data.get(), account);
  } else if (data.get_deleter() == &free_block) {
    header_of(data.get_context())->charge_to(account);
  }
}

}  // namespace

MemoryMeter::MemoryMeter(at::Device device) {
  assert(!measured);
  if (!device.is_cpu()) listen_on_this_thread();
  thread_local const auto account = std::make_shared<MemoryAccount>();
  account_ = measured = account;
  measured_on = device.type();
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
