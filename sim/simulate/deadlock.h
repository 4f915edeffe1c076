// Would the program hang? The answer does not depend on durations, only on the order in which ranks issue things.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// One wait of a cycle: it waits for the next one in the cycle, and the last one for the first.
struct Wait {
  enum class Lane : std::uint8_t { compute, communication, reduction };
  Lane lane = Lane::compute;
  int rank = 0;
  std::size_t position = 0;  // of the op in its rank, or of the slot
  Op op;                     // it cannot start or, if it is communication, cannot end
  Op awaited;                // what has to come first: an op, a message, or the other end of the same message

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

// The program must be valid (validate.h). A program that hangs under `latency` hangs under `links`, too. One that hangs
// under `links`, where a send may stand behind an op that cannot run, hangs under `stream`, too.
[[nodiscard]] std::optional<Deadlock> find_deadlock(const Program& program, CommunicationModel model);

}  // namespace dualpipe
