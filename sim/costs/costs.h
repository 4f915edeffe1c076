// What the ops of a Program cost: durations and bytes per stage, communication, and what makes ranks unequal.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "dualpipe/sim/costs/units.h"
#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/schedule/placement.h"

namespace dualpipe {

// One op of one stage. With several chunks per rank a rank's work is the sum over its stages.
struct StageCosts {
  Time forward = 0;          // F
  Time backward = 0;         // B, the full backward
  Time input_gradient = 0;   // I; B = I + W unless measured otherwise
  Time weight_gradient = 0;  // W
  Time recompute = 0;        // the forward that runs again at the start of B or I; comes on top of them
  // F&B: an overlapped pair whose forward is this stage's, recomputation and all. Unset: F + B of the two stages, one
  // after the other, no gain.
  std::optional<Time> overlapped;

  // Memory of one micro-batch (arXiv:2401.10241, section 4): F adds M_B, its input included; I changes it by
  // M_W - M_B, W frees M_W; B frees M_B.
  Bytes activation = 0;    // M_B
  Bytes weight_stash = 0;  // M_W
  Bytes message = 0;       // the stage's output, and so the gradient that comes back for it
  // What an op holds only while it runs, at most: above what is held before it, for F above that and M_B.
  Bytes forward_workspace = 0;
  Bytes backward_workspace = 0;
  Bytes input_gradient_workspace = 0;
  Bytes weight_gradient_workspace = 0;
  // Of a pair whose forward is this stage's, above what is held before it and M_B. Unset: the F's and then the B's,
  // while the output, which is part of the F's, waits. Below 0 where the two are interleaved, and what B frees is there
  // for F.
  std::optional<Bytes> overlapped_workspace;
  // Held all the time.
  Bytes parameters = 0;
  Bytes gradients = 0;
  Bytes optimizer = 0;

  // What of M_B is held from F to B or I where the forward runs again there, which makes the rest anew: the input, or
  // more (activation checkpointing, arXiv:1604.06174). Unset: all that `activation` says.
  std::optional<Bytes> recompute_activation;

  friend bool operator==(const StageCosts&, const StageCosts&) = default;

  // Of an F, B, I or W that runs by itself, recomputation included.
  [[nodiscard]] Time duration(Kind pass) const;
  [[nodiscard]] Bytes workspace(Kind pass) const;
  // From F to B or I.
  [[nodiscard]] Bytes held_activation() const { return recompute_activation.value_or(activation); }
};

// Activation recomputation: each stage runs its forward again before B or I, or none does.
enum class Recomputation : std::uint8_t { none, full };

enum class CommunicationModel : std::uint8_t {
  latency,  // a message arrives `latency` after its producer ends; links never contend (the zero-bubble paper's)
  links,    // latency + bytes / bandwidth; each directed link carries one message at a time, in program order
  stream,   // a rank's batches run in issue order on one stream, a batch starts when the one before it has ended and
            // its slot is reached, a message when both ends have started, a batch ends with its last message (NCCL)
};

// What costs have besides those of the ops: communication, and what makes ranks unequal.
struct MachineCosts {
  CommunicationModel model = CommunicationModel::latency;
  Time latency = 0;           // of one message, α
  double bandwidth = 0;       // bytes per second, β; 0: infinite. Not used by `latency`
  Time launch = 0;            // between the end of a rank's op and the start of its next: idle time
  std::vector<double> speed;  // per rank; durations are divided by it. Empty: all 1
  double jitter = 0;          // durations are scaled by a factor drawn evenly from [1 - jitter, 1 + jitter]
  std::uint64_t seed = 0;     // of the jitter: same seed, same draws, whatever the order of evaluation
  // Results of an F&B pair are out after F and after B (without jitter) of its start, not both at its end. (`stream`
  // waits for the end: a batch goes as a whole.)
  bool release_early = false;

  friend bool operator==(const MachineCosts&, const MachineCosts&) = default;
};

struct Costs : MachineCosts {
  std::vector<StageCosts> stages;  // one for all stages, or one per stage

  friend bool operator==(const Costs&, const Costs&) = default;

  [[nodiscard]] const StageCosts& of(int stage) const {
    return stages.size() == 1 ? stages[0] : stages[static_cast<std::size_t>(stage)];
  }
};

// Whether F&B is known of every stage. Where it is not, simulate() takes a pair for F and then B.
[[nodiscard]] bool has_overlapped(const Costs& costs);

// Whether the costs of stages, or of parts, know both: some recompute, and of each of these it is said what they hold
// without (recompute_activation is set, or activations are not counted at all).
[[nodiscard]] bool knows_both_recomputes(std::span<const StageCosts> stages);
// Of costs that know both, those without. F&B, which was measured with recomputation, is not known of them.
[[nodiscard]] StageCosts without_recompute(StageCosts costs);

// Throws InputError: a negative duration, a speed of 0, no stages, …
void check(const Costs& costs);
// And where a list does not fit: its length is neither 1 nor the number of stages, or not that of ranks.
void check(const Costs& costs, const Placement& placement);

}  // namespace dualpipe
