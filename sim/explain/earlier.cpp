#include "dualpipe/sim/explain/earlier.h"

#include <algorithm>
#include <vector>

namespace dualpipe::detail::explain {
namespace {

// Without its receives, which are added to `receives`.
std::vector<Op> without_receives(std::span<const Op> slot, std::vector<Op>& receives) {
  std::vector<Op> rest;
  for (const Op op : slot) {
    if (is_receive(op.kind)) {
      receives.push_back(op);
      // The batch ends with what is left of it.
      if (!op.with_next && !rest.empty()) rest.back().with_next = false;
    } else {
      rest.push_back(op);
    }
  }
  return rest;
}

// Behind the last message, as a part of its batch; before all else.
void insert_receives(std::vector<Op>& slot, const std::vector<Op>& receives) {
  if (receives.empty()) return;
  const auto is_message = [](Op op) { return is_send(op.kind) || is_receive(op.kind); };
  const auto last = std::find_if(slot.rbegin(), slot.rend(), is_message);
  auto at = last.base();
  if (at != slot.begin()) (at - 1)->with_next = true;
  for (Op op : receives) {
    op.with_next = true;
    at = slot.insert(at, op) + 1;
  }
  (at - 1)->with_next = false;
}

}  // namespace

Program with_earlier_receives(const Program& program) {
  Program result = program;
  result.communication.clear();
  result.slot_begin.clear();
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const auto ops = program.schedule.rank(rank);
    std::vector<std::vector<Op>> slots(ops.size() + 1);
    std::size_t earlier = 0;  // the slot that receives of this one go to
    for (std::size_t position = 0; position <= ops.size(); ++position) {
      const bool is_inside_pair = position > 0 && ops[position - 1].with_next;
      if (is_inside_pair) continue;
      std::vector<Op> receives;
      auto rest = without_receives(program.slot(rank, position), receives);
      slots[position] = std::move(rest);
      insert_receives(slots[earlier], receives);
      earlier = position;
    }
    for (const auto& slot : slots) {
      result.slot_begin.push_back(static_cast<std::uint32_t>(result.communication.size()));
      result.communication.insert(result.communication.end(), slot.begin(), slot.end());
    }
  }
  result.slot_begin.push_back(static_cast<std::uint32_t>(result.communication.size()));
  return result;
}

}  // namespace dualpipe::detail::explain
