// What a parcel between ranks says of its tensors, in its note. Private to exec/transport.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/exec/transport/agreement.h"
#include "dualpipe/exec/transport/wait.h"

namespace dualpipe::detail::transport {

struct Note {
  bool is_sum = false;        // part, sums: of sum(), else of reduce()
  std::vector<int> stages{};  // part, sums: those whose tensors are summed
  Forms forms{};              // of each tensor

  friend bool operator==(const Note&, const Note&) = default;
};

[[nodiscard]] std::string pack(const Note& note);
// Throws std::runtime_error where the bytes are no such note, or a tensor would be larger than any memory.
[[nodiscard]] Note unpack_note(std::string_view bytes);

}  // namespace dualpipe::detail::transport
