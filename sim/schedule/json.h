// DualPipe's own schedule file. Unlike PyTorch's CSV it carries the placement, the batches of messages, and a version:
//
//   {
//     "format": "dualpipe-schedule", "version": 1, "name": "dualpipe", "ranks": 2, "micro_batches": 2,
//     "chains": [[0, 1], [1, 0]],        the rank of each stage, chain by chain
//     "weights": [0, 1, 0, 1],           the parameter set of each stage
//     "ops": [["0F0", "3F0", …], …],     one list per rank; an F&B pair is one string
//   }
//
// A program has its communication between the ops; a batch is a list: ["0F0", ["0SEND_F0", "0RECV_B0"], "0B0"].
// `micro_batches` is per chain.
#pragma once

#include <iosfwd>
#include <string>
#include <variant>

#include "dualpipe/sim/schedule/program.h"

namespace dualpipe {

// Throws InputError with the place in the file. Does not validate. A file without communication is a Schedule.
[[nodiscard]] std::variant<Schedule, Program> read_json(std::istream& in, const std::string& source);

void write_json(std::ostream& out, const Schedule& schedule);
void write_json(std::ostream& out, const Program& program);

}  // namespace dualpipe
