// PyTorch's schedule files (torch.distributed.pipelining `_dump_csv` and `_load_csv`): one row per rank, one action per
// cell. Two dialects:
//
//   compute_only    F I W B and overlapped pairs           -> Schedule
//   compute_comms   and SEND_F … RESHARD between them       -> Program
//
// A CSV carries no placement. The row in which a stage occurs tells its rank. The file does not tell which chain a
// stage belongs to, so the caller says how many equally long chains there are (1, or 2 for DualPipe). With two chains,
// stage s and stage S/2 + s share their weights.
#pragma once

#include <iosfwd>
#include <string>
#include <string_view>
#include <variant>

#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// Reads either dialect. Empty cells are idle time and carry no meaning. `source` names the file in errors.
// Throws InputError with line, column (both count from 1, a column is a cell) and what was expected. Does not validate.
[[nodiscard]] std::variant<Schedule, Program> read_csv(std::istream& in, const std::string& source, int chains = 1);

// One line per rank, '\n' at the end of each, no empty cells.
void write_csv(std::ostream& out, const Schedule& schedule);  // compute_only
void write_csv(std::ostream& out, const Program& program);    // compute_comms; batches are not in the grammar

}  // namespace dualpipe
