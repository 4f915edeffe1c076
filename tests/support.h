// What the tests share: the goldens, small shapes of every family, and random costs that are the same on any machine.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/program.h"
#include "dualpipe/sim/simulate/timeline.h"

namespace dualpipe::test {

// splitmix64. The standard's distributions differ between libraries, so plain modulo does for ranges.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  [[nodiscard]] std::uint64_t next();
  [[nodiscard]] std::int64_t between(std::int64_t least, std::int64_t most);
  [[nodiscard]] bool one_in(std::int64_t n) { return between(1, n) == 1; }

 private:
  std::uint64_t state_;
};

// A schedule in a file of tests/goldens. Its name gives the rest:
//   pytorch/interleaved_1f1b_4ranks_8mb_v2_comms.csv
struct Golden {
  std::string path;  // below tests/goldens
  std::string kind;  // "interleaved_1f1b"
  int ranks = 0;
  std::int64_t micro_batches = 0;
  int chunks = 1;
  bool lowered = false;  // "_comms"

  [[nodiscard]] int chains() const { return kind == "dualpipe" ? 2 : 1; }
};
std::ostream& operator<<(std::ostream& out, const Golden& golden);

// All of them, by path.
[[nodiscard]] const std::vector<Golden>& goldens();
[[nodiscard]] const Golden& golden(std::string_view path);

[[nodiscard]] std::string text_of(const std::string& path_below_goldens);
[[nodiscard]] std::variant<Schedule, Program> read(const Golden& golden);
[[nodiscard]] Schedule read_schedule(const Golden& golden);
// A `_comms` file as it is, the others lowered by us.
[[nodiscard]] Program read_program(const Golden& golden);

// The name in our catalog of the schedule that the file holds, if it is one of ours.
[[nodiscard]] std::optional<std::string_view> catalog_name(const Golden& golden);

// A table with a header: the line of the first field, split at ','. Lines that begin with '#' are comments.
[[nodiscard]] std::vector<std::vector<std::string>> read_table(const std::string& path_below_goldens);

struct Case {
  std::string_view family;
  Shape shape;
};
std::ostream& operator<<(std::ostream& out, const Case& a_case);

// Every shape that a family has, up to so many ranks and micro-batches, and up to 3 of each parameter; all families.
// Where tests are slow (thinned.h), each fifth of a family, unless they are few.
[[nodiscard]] std::vector<Case> small_cases(int ranks_max, std::int64_t micro_batches_max);

// F, B, I and W of every stage alike, B = I + W, F&B = `overlapped` (or F + B).
[[nodiscard]] Costs uniform(Time forward, Time input_gradient, Time weight_gradient, Time latency = 0,
                            std::optional<Time> overlapped = std::nullopt);

// Durations and bytes of every stage drawn anew, the same communication model for all. Durations are at least 1, so
// that two moments in time differ; `zeros` makes some of them 0.
[[nodiscard]] Costs random_costs(Random& random, const Placement& placement, CommunicationModel model,
                                 bool zeros = false);
// And at random early release, a launch overhead, and ranks of different speed; and times of 0.
[[nodiscard]] Costs random_run_costs(Random& random, const Placement& placement, CommunicationModel model);

// A schedule written down as text, rank by rank: {{"0F0 0B0"}, {"1F0 1B0"}}, cells as in a CSV.
[[nodiscard]] Schedule schedule_of(Placement placement, const std::vector<std::string>& ranks);
// And a program: messages stand where they are issued, those of one batch in brackets: "0F0 [0SEND_F0 0RECV_B0] 0B0".
[[nodiscard]] Program program_of(Placement placement, const std::vector<std::string>& ranks);

// The cells of one rank: "0F0 (0F1;3B0)OVERLAP_F_B".
[[nodiscard]] std::string text_of_rank(const Schedule& schedule, int rank);

}  // namespace dualpipe::test

namespace dualpipe {
// For Boost.Test's messages.
std::ostream& operator<<(std::ostream& out, const Span& span);
std::ostream& operator<<(std::ostream& out, const Op& op);
std::ostream& operator<<(std::ostream& out, CommunicationModel model);
}  // namespace dualpipe
