#include "dualpipe/exec/transport/message_order.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/simulate/deadlock.h"

namespace dualpipe::detail::transport {
namespace {

// The messages of one stream from one rank to another, as one of the two issues them: all as the sends that they are.
using Line = std::vector<Op>;
using Lines = std::map<std::array<int, 3>, Line>;  // from, to, stream

void add_lines(const Program& program, int rank, std::size_t streams, Lines& sent, Lines& received) {
  const Placement& placement = program.schedule.placement;
  const auto rank_of = [&](Op op) { return static_cast<int>(placement.rank_of[op.stage]); };
  for (std::size_t position = 0; position <= program.schedule.rank(rank).size(); ++position) {
    for (const Op each : program.slot(rank, position)) {
      const int stream = static_cast<int>(direction_of(each.kind) % streams);
      if (is_send(each.kind)) {
        sent[{rank, rank_of(peer_of(each, placement)), stream}].push_back(plain(each));
      } else if (is_receive(each.kind)) {
        const Op send = plain(peer_of(each, placement));
        received[{rank_of(send), rank, stream}].push_back(send);
      }
    }
  }
}

void check_line(const Placement& placement, const std::array<int, 3>& ends, const Line& sent, const Line& received) {
  const auto [at_sender, at_receiver] = std::ranges::mismatch(sent, received);
  if (at_sender == sent.end() && at_receiver == received.end()) return;
  const auto text = [](const Line& line, Line::const_iterator at) {
    return at == line.end() ? "nothing" : to_text(*at);
  };
  const std::string awaited =
      at_receiver == received.end() ? "nothing" : to_text(plain(peer_of(*at_receiver, placement)));
  throw InputError(fmt::format(
      "messages between two ranks are matched by their order, but as number {} from rank {} to rank {} the one issues "
      "{}, and the other {}; use --transport mpi, which tells them apart",
      at_sender - sent.begin() + 1, ends[0], ends[1], text(sent, at_sender), awaited));
}

}  // namespace

std::size_t direction_of(Kind kind) { return kind == Kind::send_forward || kind == Kind::receive_forward ? 0 : 1; }

Op plain(Op message) {
  message.with_next = false;
  return message;
}

void check_message_order(const Program& program, std::size_t streams) {
  Lines sent;
  Lines received;
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) add_lines(program, rank, streams, sent, received);
  for (const auto& [ends, line] : sent) check_line(program.schedule.placement, ends, line, received[ends]);
  for (const auto& [ends, line] : received) check_line(program.schedule.placement, ends, sent[ends], line);
  if (const auto deadlock = find_deadlock(program, CommunicationModel::stream)) {
    throw DeadlockError(*deadlock, program.schedule.placement);
  }
}

}  // namespace dualpipe::detail::transport
