// What the parts of a model cost, and what they make the stages of a schedule cost.
//
// A part is what was measured by itself: a layer, or the share of a rank that a calibration ran. The model is its parts
// in order. stage_costs() makes the stages of any placement of them, so that one set of costs serves every schedule:
//
//   parts a b c d    1F1B on 2 ranks: ab | cd    ZBV on 2 ranks: a, d | b, c    1F1B on 8 ranks: each part in two
//
// Each chain is the whole model, cut alike, so that stages which share weights have the same parts.
//
// With at least as many parts as stages, a stage is a run of whole parts:
//   durations, recomputation, F&B   are added: the parts run one after the other, those of a pair as pairs
//   activation (recomputed or not), weight stash   are added: each part keeps what it needs, its input included
//   workspaces                      are those of the part that has most, for only one part runs at a time
//   message                         is that of the last part; what goes from part to part stays on the rank
//   parameters, gradients, optimizer state   are added
// With more stages than parts, a part is divided into stages, each of which has a share of all that is added above; the
// shares differ by at most one, and their sum is the part's. What does not get less:
//   workspaces   most of one is what a single operation needs, whichever stage runs it
//   messages     a layer's output is as large within a part as at its end. A last part has none, and sends inside of it
//                what comes into it
//
// F&B, or the workspace of a pair, that one part of a stage has not is unknown of the stage (has_overlapped()).
#pragma once

#include <span>
#include <variant>
#include <vector>

#include "dualpipe/sim/costs/costs.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe {

struct ModelCosts : MachineCosts {
  std::vector<StageCosts> parts;  // each as of a stage that is this part alone
  std::vector<int> cut;           // how many parts each stage of a chain gets; empty: as stage_costs() finds best

  friend bool operator==(const ModelCosts&, const ModelCosts&) = default;
};

// What a user gives, and stage_costs() makes one of.
using GivenCosts = std::variant<Costs, ModelCosts>;

// Of the stages, or of the parts.
[[nodiscard]] std::span<const StageCosts> entries_of(const GivenCosts& costs);
[[nodiscard]] std::span<StageCosts> entries_of(GivenCosts& costs);
[[nodiscard]] const MachineCosts& machine_of(const GivenCosts& costs);

// Throws InputError: no parts, a part with a value out of range, parts that are together more than one op or stage may
// cost, a cut that is not of all parts.
void check(const ModelCosts& costs);

// Costs of stages as those of a model, where schedules with other stages are to be compared: one entry for all is a
// rank's share of the model, several are its parts in order. Costs of a model stay what they are.
[[nodiscard]] ModelCosts of_model(const GivenCosts& costs, int ranks);

// The costs of the stages of a placement, one entry for each, checked.
//
// Without a cut the most loaded rank has the least load that it can have; a rank's load is F + B of a micro-batch,
// recomputation included, over all its stages. Speeds are not looked at: nobody plans for a straggler. This holds
// - with parts enough for all stages, in at most 4096 stages: where a rank holds one stage; and of models of up to some
//   300 parts where it holds the two of a V, or one of each of DualPipe's chains;
// - elsewhere (several chunks per rank, more stages than parts, more parts) where the search ends before its limit,
//   which is counted in steps, not by the clock, and comes to some seconds at the most; else the cut is the best one
//   found.
// Which of several cuts that are equally good is always the same one.
//
// Throws InputError: what check() throws, chains of different lengths, stages that share weights without being at the
// same place in their chains, speeds for another number of ranks. ShapeError: a given cut for another number of stages.
[[nodiscard]] Costs stage_costs(const ModelCosts& costs, const Placement& placement);
// How many parts each stage of a chain gets there: as given, or as found best. Empty where parts are divided, as there
// are more stages. Throws the same.
[[nodiscard]] std::vector<int> cut_of(const ModelCosts& costs, const Placement& placement);
// Costs of stages are only checked, and stay one entry for all stages where they are.
[[nodiscard]] Costs stage_costs(const GivenCosts& costs, const Placement& placement);

}  // namespace dualpipe
