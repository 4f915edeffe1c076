#include "dualpipe/sim/trace/matched_messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

namespace dualpipe::detail::trace {

std::vector<MeasuredMessage> matched_messages(std::span<const std::vector<RankMessage>> ranks,
                                              std::vector<std::string>& remarks) {
  struct Ends {
    std::vector<const RankMessage*> sends;
    std::vector<const RankMessage*> receives;
  };
  std::map<std::pair<int, int>, Ends> links;  // from, to
  for (int rank = 0; rank < std::ssize(ranks); ++rank) {
    for (const RankMessage& each : ranks[static_cast<std::size_t>(rank)]) {
      if (each.is_send) links[{rank, each.peer}].sends.push_back(&each);
      if (!each.is_send) links[{each.peer, rank}].receives.push_back(&each);
    }
  }
  std::vector<MeasuredMessage> messages;
  for (auto& [link, ends] : links) {
    const auto& [from, to] = link;
    for (auto* list : {&ends.sends, &ends.receives}) {
      std::ranges::stable_sort(*list, {}, [](const RankMessage* each) { return each->span.start; });
    }
    if (ends.sends.size() != ends.receives.size()) {
      remarks.push_back(fmt::format(
          "{} messages were sent from rank {} to rank {}, and {} received: nobody knows which is which, and "
          "they are not looked at; record the same steps on all ranks",
          ends.sends.size(), from, to, ends.receives.size()));
      continue;
    }
    for (std::size_t i = 0; i < ends.sends.size(); ++i) {
      const RankMessage& send = *ends.sends[i];
      const RankMessage& receive = *ends.receives[i];
      messages.push_back({from, to, std::max(send.bytes, receive.bytes), send.span, receive.span});
    }
  }
  return messages;
}

}  // namespace dualpipe::detail::trace
