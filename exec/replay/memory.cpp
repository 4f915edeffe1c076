#include "dualpipe/exec/replay/memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <utility>

#include "dualpipe/exec/replay/block_table.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::replay {
namespace {

std::mutex watch_mutex;       // while one begins or ends
std::atomic<int> watches{0};  // that live
int host_watches = 0;         // of these

thread_local Account measured;                       // null: this thread is not measured
thread_local at::DeviceType measured_on = at::kCPU;  // whose memory
thread_local bool for_nobody = false;                // a ChargeToNobody lives

// Whether the calling thread allocates memory of this kind that is to be counted, and to whom it is charged.
bool counts(at::DeviceType type) {
  if (for_nobody) return watches.load(std::memory_order_relaxed) > 0;
  return measured && measured_on == type;
}
Account payer(at::DeviceType type) { return !for_nobody && measured_on == type ? measured : nullptr; }

// Stays for ever, as blocks may.
BlockTable& block_table() {
  static auto& table = *new BlockTable;
  return table;
}

// --- the host

void free_counted(void* context);

// Stands before LibTorch's allocator, and hands out its blocks. Those that are not counted are just as they would be
// without it; those that are have another deleter, and are otherwise the same. So any block may be freed by either
// allocator's raw_deleter(), whether it was allocated before, while, or after this one was in place.
class MeteredAllocator final : public c10::Allocator {
 public:
  [[nodiscard]] c10::DataPtr allocate(std::size_t bytes) override {
    const Below below(*this);
    c10::DataPtr block = below->allocate(bytes);
    if (bytes == 0 || below.is_nested() || !counts(at::kCPU) || block.get_context() == nullptr) return block;
    const c10::DeleterFnPtr free = block.get_deleter();
    block_table().add(block.get_context(), {payer(at::kCPU), static_cast<Bytes>(bytes), free});
    static_cast<void>(block.compare_exchange_deleter(free, &free_counted));
    return block;
  }

  [[nodiscard]] c10::DeleterFnPtr raw_deleter() const override {
    return Below(*this)->raw_deleter() == nullptr ? nullptr : &free_counted;
  }
  // Of raw memory that is not in the table: as it would be freed without this allocator.
  void free_uncounted(void* context) const {
    const Below below(*this);
    const c10::DeleterFnPtr free = below->raw_deleter();
    (free == &free_counted ? first_.load()->raw_deleter() : free)(context);
  }

  [[nodiscard]] bool is_simple_data_ptr(const c10::DataPtr& block) const override {
    return Below(*this)->is_simple_data_ptr(block);
  }
  void copy_data(void* destination, const void* source, std::size_t bytes) const override {
    Below(*this)->copy_data(destination, source, bytes);
  }

  void put_over(c10::Allocator& allocator) {
    c10::Allocator* none = nullptr;
    first_.compare_exchange_strong(none, &allocator);
    last_.store(&allocator);
  }
  [[nodiscard]] c10::Allocator& last() const { return *last_.load(); }

 private:
  // The allocator that this one was put over last. Where that one leads back to this one, as somebody has put it over
  // this one and left it there, the first of all: at that time nobody could know of this one.
  class Below {
   public:
    explicit Below(const MeteredAllocator& own)
        : is_nested_(std::exchange(is_inside, true)), allocator_(is_nested_ ? own.first_.load() : own.last_.load()) {}
    ~Below() { is_inside = is_nested_; }
    Below(const Below&) = delete;
    Below& operator=(const Below&) = delete;
    c10::Allocator* operator->() const { return allocator_; }
    [[nodiscard]] bool is_nested() const { return is_nested_; }

   private:
    static inline thread_local bool is_inside = false;
    bool is_nested_;
    c10::Allocator* allocator_;
  };

  std::atomic<c10::Allocator*> first_{nullptr};
  std::atomic<c10::Allocator*> last_{nullptr};
};

MeteredAllocator& metered_allocator() {
  static auto& allocator = *new MeteredAllocator;
  return allocator;
}

// The deleter of what is counted, and what raw memory of any kind is freed by.
void free_counted(void* context) {
  if (context == nullptr) return;
  const std::optional<Block> block = block_table().remove(context);
  if (block) {
    block->free(context);
  } else {
    metered_allocator().free_uncounted(context);
  }
}

// LibTorch lets only those take the place of its allocator that have at least the priority of the one that is there,
// which it does not tell. By trying from the lowest on, that priority stays as it was. Other threads may allocate
// meanwhile: they get the one or the other, and both serve.
void set_host_allocator(c10::Allocator& allocator) {
  std::atomic_thread_fence(std::memory_order_release);
  for (unsigned priority = 0; priority <= std::numeric_limits<std::uint8_t>::max(); ++priority) {
    c10::SetCPUAllocator(&allocator, static_cast<std::uint8_t>(priority));
    if (c10::GetCPUAllocator() == &allocator) return;
  }
}

void begin_host_watch() {
  MeteredAllocator& metered = metered_allocator();
  c10::Allocator& present = *c10::GetCPUAllocator();
  if (&present == &metered) return;  // somebody has put it back
  metered.put_over(present);
  set_host_allocator(metered);
}

// Takes nothing away that somebody else has put there meanwhile.
void end_host_watch() {
  MeteredAllocator& metered = metered_allocator();
  if (c10::GetCPUAllocator() == &metered) set_host_allocator(metered.last());
}

// --- a GPU

class Listener final : public MemoryListener {
 public:
  void allocated(const void* data, Bytes bytes, at::DeviceType type) override {
    if (counts(type)) block_table().add(data, {payer(type), bytes});
  }
  void freed(const void* data) override { static_cast<void>(block_table().remove(data)); }
};

// Stays for ever, as the allocators do that have it.
Listener& listener() {
  static auto& all = *new Listener;
  return all;
}

// ---

enum class To : std::uint8_t { nobody, this_thread };

void charge(const at::Tensor& tensor, To whom) {
  if (watches.load(std::memory_order_relaxed) == 0 || !tensor.defined() || !tensor.has_storage()) return;
  const c10::DataPtr& data = tensor.storage().data_ptr();
  const bool is_own = data.get_deleter() == &free_counted;  // else it may be over the block of another tensor
  if (!is_own && data.device().is_cpu() && data.get_context() == data.get()) return;  // or of the host, and not counted
  const bool is_payer = whom == To::this_thread && measured_on == data.device().type();
  block_table().charge_to(is_own ? data.get_context() : data.get(), is_payer ? measured : nullptr);
}

}  // namespace

WatchMemory::WatchMemory(Device& device) : of_host_(device.where().is_cpu()) {
  if (!of_host_) device.tell_of_memory(listener());
  const std::lock_guard lock(watch_mutex);
  if (of_host_ && ++host_watches == 1) begin_host_watch();
  ++watches;
}

WatchMemory::~WatchMemory() {
  const std::lock_guard lock(watch_mutex);
  if (of_host_ && --host_watches == 0) end_host_watch();
  if (--watches == 0) block_table().charge_all_to_nobody();
}

MemoryMeter::MemoryMeter(Device& device) : watch_(device) {
  if (measured) throw InputError("this thread has a MemoryMeter already, and can have one at a time: end that first");
  thread_local const auto account = std::make_shared<MemoryAccount>();
  account_ = measured = account;
  measured_on = device.where().type();
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
  if (!measured) throw InputError("this thread has no MemoryMeter, which would know what it holds");
  return measured->level();
}

ChargeToNobody::ChargeToNobody() : before_(std::exchange(for_nobody, true)) {}

ChargeToNobody::~ChargeToNobody() { for_nobody = before_; }

void charge_to_nobody(const at::Tensor& tensor) { charge(tensor, To::nobody); }

void charge_to_this_thread(const at::Tensor& tensor) { charge(tensor, To::this_thread); }

}  // namespace dualpipe::detail::replay
