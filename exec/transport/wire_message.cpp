#include "dualpipe/exec/transport/wire_message.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstring>
#include <stdexcept>

#include "dualpipe/exec/replay/memory.h"
#include "dualpipe/exec/transport/pack.h"
#include "dualpipe/exec/transport/tensor_spec.h"

namespace dualpipe::detail::transport {
namespace {

// All but the tensors, in one order for both ends.
template <typename AnyMessage, typename Visit>
void for_each_field(AnyMessage& message, const Visit& visit) {
  visit(message.kind);
  visit(message.receive);
  visit(message.rank);
  visit(message.index);
  visit(message.run);
  visit(message.sent);
  visit(message.group.is_sum);
  visit(message.group.stages);
  visit(message.note);
}

std::uint64_t memory_of_this_host() {
  static const auto bytes =
      static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

std::string header_of(const WireMessage& message) {
  Packer packer;
  for_each_field(message, [&](const auto& field) { packer.put(field); });
  packer.put(message.tensors.size());
  for (const at::Tensor& each : message.tensors) {
    const TensorSpec spec = spec_of(each);
    packer.put(spec.type);
    packer.put(spec.sizes);
  }
  return packer.take();
}

WireMessage message_of_header(std::string_view header) {
  Unpacker unpacker(header);
  WireMessage message;
  for_each_field(message, [&](auto& field) { unpacker.get(field); });
  const auto count = unpacker.get<std::size_t>();
  const std::uint64_t memory = memory_of_this_host();
  std::uint64_t bytes = 0;
  TensorSpecs specs;
  while (specs.size() < count) {  // which may be any number: nothing is set aside for it
    TensorSpec& spec = specs.emplace_back();
    unpacker.get(spec.type);
    unpacker.get(spec.sizes);
    const std::uint64_t own = content_bytes(spec);
    if (own > memory - bytes) {
      throw std::runtime_error(fmt::format("tensors {}, more than this host has memory", to_text(specs)));
    }
    bytes += own;
  }
  unpacker.expect_end();
  const detail::replay::ChargeToNobody guard;
  for (const TensorSpec& each : specs) message.tensors.push_back(empty_of(each));
  return message;
}

std::string bytes_of(const WireMessage& message) {
  const detail::replay::ChargeToNobody guard;
  std::string header = header_of(message);
  std::size_t size = sizeof(std::size_t) + header.size();
  for (const at::Tensor& each : message.tensors) size += each.defined() ? each.nbytes() : 0;
  Packer packer(size);
  packer.put(header);
  for (const at::Tensor& each : message.tensors) {
    if (!each.defined()) continue;
    const at::Tensor content = each.contiguous();
    packer.put_bytes({static_cast<const char*>(content.const_data_ptr()), content.nbytes()});
  }
  return packer.take();
}

WireMessage message_of(std::string_view bytes) {
  Unpacker unpacker(bytes);
  WireMessage message = message_of_header(unpacker.get_text());
  for (const at::Tensor& each : message.tensors) {
    if (!each.defined() || each.nbytes() == 0) continue;
    std::memcpy(each.mutable_data_ptr(), unpacker.get_bytes(each.nbytes()).data(), each.nbytes());
  }
  unpacker.expect_end();
  return message;
}

}  // namespace dualpipe::detail::transport
