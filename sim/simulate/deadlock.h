// Would the program hang? The answer does not depend on durations, only on the order in which ranks issue things.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// One who waits. The next link of the cycle is whom it waits for, the last waits for the first.
struct Wait {
  enum class Lane : std::uint8_t { compute, communication, reduction };
  Lane lane = Lane::compute;
  int rank = 0;
  std::size_t position = 0;  // of the op in its rank, or of the slot
  Op op;                     // what cannot start, or for communication end
  Op awaited;                // what it needs first: an op, a message, or the other end of its own

  friend bool operator==(const Wait&, const Wait&) = default;
};

struct Deadlock {
  std::vector<Wait> cycle;
};

// The cycle, one line per wait:
//   rank 0 cannot run 0B0 (op 4): it waits for 0RECV_B0 from rank 1
//   rank 1 cannot run …
[[nodiscard]] std::string to_text(const Deadlock& deadlock, const Placement& placement);

class DeadlockError : public std::runtime_error {
 public:
  DeadlockError(Deadlock deadlock, const Placement& placement);
  [[nodiscard]] const Deadlock& deadlock() const { return deadlock_; }

 private:
  Deadlock deadlock_;
};

// The program must be valid (validate.h). What blocks under `latency` blocks under `links`, and what blocks under
// `links` (where a send may stand behind an op that cannot run) blocks under `stream`.
[[nodiscard]] std::optional<Deadlock> find_deadlock(const Program& program, CommunicationModel model);

}  // namespace dualpipe
