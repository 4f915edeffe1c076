#include "dualpipe/exec/transport/agreement.h"

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
  return tensor.scalar_type() == form.type && std::ranges::equal(tensor.sizes(), form.sizes);
}

// The message that goes the other way between the same stages: the gradient of an activation, and the reverse.
Op counterpart_of(Op send, const Placement& placement) {
  const bool forward = send.kind == Kind::send_forward;
  Op other = peer_of(send, placement);
  other.kind = forward ? Kind::send_backward : Kind::send_forward;
  return other;
}

}  // namespace

Form form_of(const at::Tensor& tensor) { return {tensor.sizes().vec(), tensor.scalar_type()}; }

std::string to_text(const Form& form) {
  return fmt::format("{}[{}]", c10::toString(form.type), fmt::join(form.sizes, ","));
}

std::string forms_text(std::span<const at::Tensor> all) {
  std::vector<std::string> texts;
  for (const at::Tensor& each : all) texts.push_back(to_text(form_of(each)));
  return fmt::format("{}", fmt::join(texts, " "));
}

Agreement::Agreement(const Placement& placement) : placement_(placement), agreed_(2 * placement.rank_of.size()) {}

bool Agreement::check(Op send, const at::Tensor& tensor) {
  const std::optional<Agreed>& own = agreed_[index_of(send)];
  if (!own) return check_first(send, tensor);
  if (!is_like(tensor, own->form)) throw std::runtime_error(complaint(send, tensor, *own));
  return false;
}

bool Agreement::check_first(Op send, const at::Tensor& tensor) {
  const std::lock_guard lock(mutex_);
  const std::optional<Agreed>& other = agreed_[index_of(counterpart_of(send, placement_))];
  if (other && !is_like(tensor, other->form)) throw std::runtime_error(complaint(send, tensor, *other));
  agreed_[index_of(send)] = {form_of(tensor), send};
  return true;
}

void Agreement::learn(Op receive, const Form& form) {
  const std::lock_guard lock(mutex_);
  const Op send = peer_of(receive, placement_);
  std::optional<Agreed>& agreed = agreed_[index_of(send)];
  if (!agreed) agreed = {form, send};  // known if the sender is in this process, and reads it
  if (agreed->form == form) return;
  throw std::runtime_error(
      fmt::format("{} for {}, and {} before", to_text(form), to_text(receive), to_text(agreed->form)));
}

Form Agreement::form(Op receive) const {
  const std::lock_guard lock(mutex_);
  const std::optional<Agreed>& agreed = agreed_[index_of(peer_of(receive, placement_))];
  if (!agreed) {
    throw std::runtime_error(
        fmt::format("a message for {} before the first one, which says what all are like", to_text(receive)));
  }
  return agreed->form;
}

std::size_t Agreement::index_of(Op send) {
  return 2 * static_cast<std::size_t>(send.stage) + (send.kind == Kind::send_forward ? 0 : 1);
}

std::string Agreement::complaint(Op send, const at::Tensor& tensor, const Agreed& agreed) const {
  const auto side = [&](int stage) {
    return fmt::format("stage {} (rank {})", stage, placement_.rank_of[static_cast<std::size_t>(stage)]);
  };
  const std::string offer = fmt::format("{} sends {} in {}", side(send.stage), to_text(form_of(tensor)), to_text(send));
  const int receiver = peer_of(send, placement_).stage;
  const std::string known = fmt::format("{} in {}", to_text(agreed.form), to_text(agreed.send));
  if (agreed.send.stage == send.stage) return fmt::format("{} to {}, but sent {}", offer, side(receiver), known);
  return fmt::format("{}, but {} sent {}; a gradient has the shape and type of its activation", offer, side(receiver),
                     known);
}

}  // namespace dualpipe::detail::transport
