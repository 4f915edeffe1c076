// What the messages between two neighbouring stages look like: the first one shows it, and all others are the same.
// Private to exec/transport.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe::detail::transport {

// Shape and type of a tensor; of one that is undefined {{}, Undefined}.
struct Form {
  std::vector<std::int64_t> sizes;
  at::ScalarType type = at::kFloat;

  friend bool operator==(const Form&, const Form&) = default;
};
using Forms = std::vector<Form>;  // of the tensors of a message
[[nodiscard]] Form form_of(const at::Tensor& tensor);
[[nodiscard]] Forms forms_of(std::span<const at::Tensor> all);
[[nodiscard]] at::Tensor empty_of(const Form& form, at::Device where = at::kCPU);
[[nodiscard]] std::string to_text(const Form& form);             // "Float[2,3]"
[[nodiscard]] std::string to_text(std::span<const Form> forms);  // "Float[2,3] Float[3]"; "nothing"

class Agreement {
 public:
  explicit Agreement(const Placement& placement);

  // Called by the sender's rank before each message, a SEND op. Returns whether it is the first of its boundary in its
  // direction. Throws std::runtime_error naming both sides if it is not like the others, or a gradient not like its
  // activation, where each is one tensor.
  bool check(Op send, std::span<const at::Tensor> tensors);

  // The first message of another process, for a RECV op of this one; and what it was like. Throw std::runtime_error
  // where it had been like something else, and where there was none.
  void learn(Op receive, const Forms& forms);
  [[nodiscard]] Forms forms(Op receive) const;

 private:
  struct Agreed {
    Forms forms;
    Op send;
  };
  // Of agreed_.
  [[nodiscard]] static std::size_t index_of(Op send);
  bool check_first(Op send, std::span<const at::Tensor> tensors);
  [[nodiscard]] std::string complaint(Op send, std::span<const at::Tensor> tensors, const Agreed& agreed) const;

  const Placement& placement_;
  mutable std::mutex mutex_;
  // By the stage that sends, forward and backward. Set once: a rank may read without the lock what itself has set.
  std::vector<std::optional<Agreed>> agreed_;
};

}  // namespace dualpipe::detail::transport
