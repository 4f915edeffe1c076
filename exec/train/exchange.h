// What the processes of a training tell each other. Private to exec/train.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "dualpipe/exec/train/safetensors.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/pack.h"
#include "dualpipe/exec/transport/world.h"

namespace dualpipe {

// All processes run the same program with the same options, or InputError says what differs. Collective.
void check_same_run(World& world, const Program& program, const TrainOptions& options);

// Those of all processes. Collective.
[[nodiscard]] std::vector<std::string> gather_names(World& world, const std::vector<std::string>& own);
// Adds the tensors that other processes hold. Returns the bytes of these, which `contents` looks into. Collective.
[[nodiscard]] std::vector<std::string> add_others(World& world, SafeTensors& contents);

// `clock_offset` is added to all times.
void pack(Packer& packer, const RankRecord& record, Time clock_offset);
[[nodiscard]] RankRecord unpack_record(Unpacker& unpacker);
// Those of other processes' ranks are written. Collective.
void gather_records(World& world, RankRecords& records);

}  // namespace dualpipe
