// PyTorch's schedule files (torch.distributed.pipelining `_dump_csv` and `_load_csv`): one row per rank, one action per
// cell. Two dialects:
//
//   compute_only    F I W B and overlapped pairs           -> Schedule
//   compute_comms   and SEND_F … RECV_B between them        -> Program
//
// A file with UNSHARD, RESHARD or REDUCE_GRAD, but without any send or receive, is compute_only, as what PyTorch's
// get_schedule_ops() gives: they say when FSDP acts, and nothing of the pipeline.
//
// A CSV carries no placement. The row in which a stage occurs most tells its rank. The file does not tell which chain a
// stage belongs to, so the caller says how many equally long chains there are (1, or 2 for DualPipe). With two chains,
// stage s and stage S/2 + s share their weights.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// What B is. Before PyTorch renamed its passes, B was the input-gradient half and BW the full backward; the zero-bubble
// papers, too, write B for the half.
enum class Letters : std::uint8_t {
  by_content,  // old where BW occurs, or where most B have a W of their own, and I does not occur
  current,     // F I W, and B for the full backward
  old,         // F B W, and BW for the full backward
};

struct CsvOptions {
  int chains = 1;
  Letters letters = Letters::by_content;
  std::vector<std::string>* remarks = nullptr;  // what was read otherwise than it may have been meant is said here
};

// Reads either dialect. Empty cells are idle time and carry no meaning; a first line without ops is a header, a number
// before the ops of a line its rank, '#' begins a comment. `source` names the file in errors.
// Throws InputError with line, column (both count from 1, a column is a cell) and what was expected. Does not validate.
[[nodiscard]] std::variant<Schedule, Program> read_csv(std::istream& in, const std::string& source,
                                                       const CsvOptions& options = {});

// A CSV says nothing of chains: whoever reads it divides the stages evenly, and lets equal places share weights. Throws
// InputError for a placement of which this is not true.
void check_csv_can_hold(const Placement& placement);

// One line per rank, '\n' at the end of each, no empty cells.
void write_csv(std::ostream& out, const Schedule& schedule);  // compute_only
void write_csv(std::ostream& out, const Program& program);    // compute_comms; batches are not in the grammar

}  // namespace dualpipe
