#include "dualpipe/exec/transport/note.h"

#include <c10/core/ScalarType.h>
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>

#include "dualpipe/exec/transport/pack.h"

namespace dualpipe::detail::transport {
namespace {

void check(const Form& form) {
  if (form == Form{{}, at::ScalarType::Undefined}) return;  // no tensor
  const auto type = static_cast<int>(form.type);
  if (type < 0 || type >= static_cast<int>(at::ScalarType::NumOptions) || form.type == at::ScalarType::Undefined) {
    throw std::runtime_error(fmt::format("a tensor of type {}, which there is not", type));
  }
  std::int64_t elements_max =
      std::numeric_limits<std::int64_t>::max() / static_cast<std::int64_t>(elementSize(form.type));
  for (const std::int64_t size : form.sizes) {
    if (size < 0 || size > elements_max) throw std::runtime_error(fmt::format("a tensor {}", to_text(form)));
    if (size > 0) elements_max /= size;
  }
}

}  // namespace

std::string pack(const Note& note) {
  Packer packer;
  packer.put(note.is_sum);
  packer.put(note.stages);
  packer.put(note.forms.size());
  for (const Form& each : note.forms) {
    packer.put(each.type);
    packer.put(each.sizes);
  }
  return packer.take();
}

Note unpack_note(std::string_view bytes) {
  Unpacker unpacker(bytes);
  Note note;
  unpacker.get(note.is_sum);
  unpacker.get(note.stages);
  const auto count = unpacker.get<std::size_t>();
  while (note.forms.size() < count) {  // which may be any number: nothing is set aside for it
    Form& form = note.forms.emplace_back();
    unpacker.get(form.type);
    unpacker.get(form.sizes);
    check(form);
  }
  unpacker.expect_end();
  return note;
}

}  // namespace dualpipe::detail::transport
