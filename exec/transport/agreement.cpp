#include "dualpipe/exec/transport/agreement.h"

#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::detail::transport {
namespace {

bool is_like(const at::Tensor& tensor, const Form& form) {
  if (!tensor.defined()) return form == Form{{}, at::ScalarType::Undefined};
  return tensor.scalar_type() == form.type && std::ranges::equal(tensor.sizes(), form.sizes);
}
bool are_like(std::span<const at::Tensor> tensors, const Forms& forms) {
  return std::ranges::equal(tensors, forms, is_like);
}

// The message that goes the other way between the same stages: the gradient of an activation, and the reverse.
Op counterpart_of(Op send, const Placement& placement) {
  const bool forward = send.kind == Kind::send_forward;
  Op other = peer_of(send, placement);
  other.kind = forward ? Kind::send_backward : Kind::send_forward;
  return other;
}

}  // namespace

Form form_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {{}, at::ScalarType::Undefined};
  return {tensor.sizes().vec(), tensor.scalar_type()};
}

Forms forms_of(std::span<const at::Tensor> all) {
  Forms forms;
  for (const at::Tensor& each : all) forms.push_back(form_of(each));
  return forms;
}

at::Tensor empty_of(const Form& form, at::Device where) {
  if (form.type == at::ScalarType::Undefined) return {};
  return at::empty(form.sizes, at::TensorOptions(form.type).device(where));
}

std::string to_text(const Form& form) {
  return fmt::format("{}[{}]", c10::toString(form.type), fmt::join(form.sizes, ","));
}

std::string to_text(std::span<const Form> forms) {
  if (forms.empty()) return "nothing";
  std::vector<std::string> texts;
  for (const Form& each : forms) texts.push_back(to_text(each));
  return fmt::format("{}", fmt::join(texts, " "));
}

Agreement::Agreement(const Placement& placement) : placement_(placement), agreed_(2 * placement.rank_of.size()) {}

bool Agreement::check(Op send, std::span<const at::Tensor> tensors) {
  const std::optional<Agreed>& own = agreed_[index_of(send)];
  if (!own) return check_first(send, tensors);
  if (!are_like(tensors, own->forms)) throw std::runtime_error(complaint(send, tensors, *own));
  return false;
}

bool Agreement::check_first(Op send, std::span<const at::Tensor> tensors) {
  const std::lock_guard lock(mutex_);
  const std::optional<Agreed>& other = agreed_[index_of(counterpart_of(send, placement_))];
  if (other && other->forms.size() == 1 && tensors.size() == 1 && !are_like(tensors, other->forms)) {
    throw std::runtime_error(complaint(send, tensors, *other));
  }
  agreed_[index_of(send)] = {forms_of(tensors), send};
  return true;
}

void Agreement::learn(Op receive, const Forms& forms) {
  const std::lock_guard lock(mutex_);
  const Op send = peer_of(receive, placement_);
  std::optional<Agreed>& agreed = agreed_[index_of(send)];
  if (!agreed) agreed = {forms, send};  // known if the sender is in this process, and reads it
  if (agreed->forms == forms) return;
  throw std::runtime_error(
      fmt::format("{} for {}, and {} before", to_text(forms), to_text(receive), to_text(agreed->forms)));
}

Forms Agreement::forms(Op receive) const {
  const std::lock_guard lock(mutex_);
  const std::optional<Agreed>& agreed = agreed_[index_of(peer_of(receive, placement_))];
  if (!agreed) {
    throw std::runtime_error(
        fmt::format("a message for {} before the first one, which says what all are like", to_text(receive)));
  }
  return agreed->forms;
}

std::size_t Agreement::index_of(Op send) {
  return 2 * static_cast<std::size_t>(send.stage) + (send.kind == Kind::send_forward ? 0 : 1);
}

std::string Agreement::complaint(Op send, std::span<const at::Tensor> tensors, const Agreed& agreed) const {
  const auto side = [&](int stage) {
    return fmt::format("stage {} (rank {})", stage, placement_.rank_of[static_cast<std::size_t>(stage)]);
  };
  const std::string offer =
      fmt::format("{} sends {} in {}", side(send.stage), to_text(forms_of(tensors)), to_text(send));
  const int receiver = peer_of(send, placement_).stage;
  const std::string known = fmt::format("{} in {}", to_text(agreed.forms), to_text(agreed.send));
  if (agreed.send.stage == send.stage) return fmt::format("{} to {}, but sent {}", offer, side(receiver), known);
  return fmt::format("{}, but {} sent {}; a gradient has the shape and type of its activation", offer, side(receiver),
                     known);
}

}  // namespace dualpipe::detail::transport
