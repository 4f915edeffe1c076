#include "dualpipe/sim/schedule/program.h"

#include <cassert>

namespace dualpipe {
namespace {

Kind peer_kind(Kind kind) {
  switch (kind) {
    case Kind::send_forward:
      return Kind::receive_forward;
    case Kind::receive_forward:
      return Kind::send_forward;
    case Kind::send_backward:
      return Kind::receive_backward;
    default:
      assert(kind == Kind::receive_backward);
      return Kind::send_backward;
  }
}

}  // namespace

Op peer_of(Op message, const Placement& placement) {
  const bool peer_is_next = message.kind == Kind::send_forward || message.kind == Kind::receive_backward;
  const auto stage = peer_is_next ? placement.next(message.stage) : placement.previous(message.stage);
  assert(stage.has_value() && "a message crosses a chain's end");
  return {message.micro_batch, static_cast<std::uint16_t>(*stage), peer_kind(message.kind), false};
}

}  // namespace dualpipe
