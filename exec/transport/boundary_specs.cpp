#include "dualpipe/exec/transport/boundary_specs.h"

#include <fmt/format.h>

#include <cstddef>
#include <stdexcept>

#include "dualpipe/sim/schedule/program.h"

namespace dualpipe::detail::transport {

bool BoundarySpecs::check(Op send, std::span<const at::Tensor> tensors) {
  const auto [known, is_first] = known_.try_emplace(boundary_of(send));
  if (is_first) {
    known->second = {specs_of(tensors), send};
    return true;
  }
  if (are_like(tensors, known->second.specs)) return false;
  const auto side = [&](int stage) {
    return fmt::format("stage {} (rank {})", stage, placement_.rank_of[static_cast<std::size_t>(stage)]);
  };
  throw std::runtime_error(fmt::format("{} sends {} in {} to {}, but sent {} in {}", side(send.stage),
                                       to_text(specs_of(tensors)), to_text(send), side(peer_of(send, placement_).stage),
                                       to_text(known->second.specs), to_text(known->second.first)));
}

std::uint32_t BoundarySpecs::form_of(Op message) const {
  if (forms_.empty()) return 0;
  const std::size_t micro_batches = forms_.size() / static_cast<std::size_t>(placement_.chains());
  const auto chain = static_cast<std::size_t>(placement_.chain_of(message.stage));
  return forms_.at(chain * micro_batches + message.micro_batch);
}

}  // namespace dualpipe::detail::transport
