#include "tests/exec/stream_check.h"

#include <ATen/ops/from_blob.h>
#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <functional>
#include <string_view>

#include "dualpipe/exec/replay/clock.h"

namespace dualpipe::test {

using detail::replay::now;

namespace {

thread_local StreamCheck* watching = nullptr;

std::string text_of(Stream stream) {
  constexpr std::array kinds = {"compute", "exchange", "message"};
  return fmt::format("{} {}", kinds.at(static_cast<std::size_t>(stream.kind)), stream.index);
}

void for_each_tensor(const c10::IValue& value, const std::function<void(const at::Tensor&)>& function) {
  if (value.isTensor()) {
    function(value.toTensor());
  } else if (value.isList()) {
    for (const c10::IValue& each : value.toListRef()) for_each_tensor(each, function);
  }
}

template <typename Clock>
void join(Clock& clock, const Clock& other) {
  std::ranges::transform(clock, other, clock.begin(), [](int a, int b) { return std::max(a, b); });
}

template <typename Clock>
bool has_seen(const Clock& clock, const Clock& other) {
  return std::ranges::equal(clock, other, std::ranges::greater_equal());
}

}  // namespace

StreamCheck::StreamCheck() {
  assert(watching == nullptr);
  watching = this;
  callback_ = at::addThreadLocalCallback(
      at::RecordFunctionCallback(begin, end).needsInputs(true).needsOutputs(true).scopes({at::RecordScope::FUNCTION}));
}

StreamCheck::~StreamCheck() {
  at::removeCallback(callback_);
  watching = nullptr;
}

std::size_t StreamCheck::index_of(Stream stream) {
  assert(stream.index < 8);
  return static_cast<std::size_t>(stream.kind) * 8 + stream.index;
}

void StreamCheck::begin_step() {
  events_.clear();
  for (const Clock& stream : clocks_) join(before_step_, stream);
}

Event StreamCheck::record_event() {
  events_.push_back(clock());
  return {now(), &events_.back()};
}

void StreamCheck::wait(const Event& event) { join(clock(), *static_cast<const Clock*>(event.handle)); }

// Another storage of the same memory.
at::Tensor StreamCheck::adopt(at::Tensor tensor, const Event& ready) {
  const Clock& seen = *static_cast<const Clock*>(ready.handle);
  const Known* const known = find(tensor);
  if (known == nullptr) return tensor;
  if (!has_seen(seen, known->made)) {
    races_.push_back(
        fmt::format("adopted by {}, but made by {} behind the event", text_of(used_), text_of(known->maker)));
  }
  at::Tensor adopted = at::from_blob(
      tensor.data_ptr(), tensor.sizes(), tensor.strides(), [tensor](void*) {}, tensor.options());
  remember(adopted, known->maker, seen, /*adopted=*/true);
  return adopted;
}

at::Tensor StreamCheck::take(at::Tensor tensor, Event&) { return tensor; }

at::Tensor StreamCheck::exchange(const at::Tensor& tensor) { return tensor.clone(); }

void StreamCheck::finish() {
  for (const Clock& stream : clocks_) join(settled_, stream);
  clocks_.fill(settled_);
}

StreamCheck::Known* StreamCheck::find(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return nullptr;
  const auto found = known_.find(tensor.storage().unsafeGetStorageImpl());
  return found == known_.end() ? nullptr : &found->second;
}

void StreamCheck::remember(const at::Tensor& tensor, Stream maker, const Clock& made, bool adopted) {
  std::erase_if(known_, [](const auto& each) { return each.second.storage.expired(); });
  known_.try_emplace(tensor.storage().unsafeGetStorageImpl(),
                     Known{tensor.storage().getWeakStorageImpl(), maker, made, adopted});
}

void StreamCheck::touch(const at::Tensor& tensor, const char* op) {
  const Known* const known = find(tensor);
  if (known == nullptr || known->maker == used_ || has_seen(settled_, known->made)) return;
  ++crossings_;
  if (!known->adopted && !has_seen(before_step_, known->made)) {
    races_.push_back(fmt::format("{} on {} touches what {} has made, and was not adopted", op, text_of(used_),
                                 text_of(known->maker)));
  } else if (!has_seen(clock(), known->made)) {
    races_.push_back(
        fmt::format("{} on {} touches what {} has made without a wait", op, text_of(used_), text_of(known->maker)));
  }
}

void StreamCheck::made(const at::Tensor& tensor, bool in_place) {
  if (!tensor.defined() || !tensor.has_storage()) return;
  Known* const known = find(tensor);
  const bool is_changed = known != nullptr && in_place && known->maker == used_;
  if (known != nullptr && !is_changed) return;
  ++clock()[index_of(used_)];
  if (is_changed) {
    known->made = clock();
  } else {
    remember(tensor, used_, clock(), /*adopted=*/false);
  }
}

std::unique_ptr<at::ObserverContext> StreamCheck::begin(const at::RecordFunction& op) {
  for (const c10::IValue& input : op.inputs()) {
    for_each_tensor(input, [&](const at::Tensor& tensor) { watching->touch(tensor, op.name()); });
  }
  return nullptr;
}

void StreamCheck::end(const at::RecordFunction& op, at::ObserverContext*) {
  const bool in_place = std::string_view(op.name()).ends_with('_');
  for (const c10::IValue& output : op.outputs()) {
    for_each_tensor(output, [&](const at::Tensor& tensor) { watching->made(tensor, in_place); });
  }
}

}  // namespace dualpipe::test
