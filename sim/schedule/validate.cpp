#include "dualpipe/sim/schedule/validate.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "dualpipe/sim/schedule/census.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/flow.h"

namespace dualpipe {

using detail::schedule::Census;

namespace {

// More than anybody reads; a list of hundreds of millions would be a crash of its own.
constexpr std::size_t violation_count_max = 1'000'000;

// Which passes of one stage and micro-batch have run.
using Done = std::uint8_t;
constexpr Done bit(Kind kind) { return static_cast<Done>(1U << static_cast<unsigned>(kind)); }
constexpr Done did_forward = bit(Kind::forward);
constexpr Done did_backward = bit(Kind::backward);
constexpr Done did_input = bit(Kind::input_gradient);
constexpr Done did_weight = bit(Kind::weight_gradient);
constexpr Done did_full = did_forward | did_backward;
constexpr Done did_split = did_forward | did_input | did_weight;

// What must have run, and all that may have, before each pass.
constexpr std::array<Done, 4> before{0, did_forward, did_forward, did_forward | did_input};

class ScheduleCheck {
 public:
  ScheduleCheck(const Schedule& schedule, std::vector<Violation>& violations)
      : schedule_(schedule),
        violations_(violations),
        by_rank_(schedule.placement),
        local_(schedule.placement.rank_of.size()),
        census_(schedule) {
    stages_.resize(schedule.placement.rank_of.size());
    for (std::size_t stage = 0; stage < stages_.size(); ++stage) {
      const auto local_producer = [&](Kind pass) -> std::optional<std::uint16_t> {
        const auto from = producer_of({0, static_cast<std::uint16_t>(stage), pass, false}, schedule.placement);
        return from && !from->is_remote ? std::optional(from->stage) : std::nullopt;
      };
      stages_[stage] = {local_producer(Kind::forward), local_producer(Kind::backward)};
    }
  }

  void run() {
    violations_ = census_.violations();
    for (int rank = 0; rank < schedule_.ranks(); ++rank) check_rank(rank);
  }

 private:
  // The stages of its own rank that make the inputs of a stage: nothing but the rank's order makes it wait for them.
  struct LocalProducers {
    std::optional<std::uint16_t> of_forward, of_backward;
  };

  void report(Rule rule, std::size_t position, Op op, Op other) {
    if (violations_.size() < violation_count_max) violations_.push_back({rule, rank_, position, op, other});
  }
  void report(Rule rule, std::size_t position, Op op) { report(rule, position, op, op); }

  [[nodiscard]] Done& done(int stage, std::uint32_t micro_batch) {
    return done_[local_[static_cast<std::size_t>(stage)] * schedule_.micro_batches + micro_batch];
  }

  void check_rank(int rank) {
    rank_ = rank;
    const auto stages = by_rank_.on(rank);
    for (std::size_t i = 0; i < stages.size(); ++i) local_[static_cast<std::size_t>(stages[i])] = i;
    done_.assign(stages.size() * schedule_.micro_batches, 0);

    const auto ops = schedule_.rank(rank);
    const std::size_t others = violations_.size();
    for (std::size_t i = 0; i < ops.size(); ++i) {
      check_op(i, ops[i]);
      if (ops[i].with_next) check_pair(i, ops);
    }
    drop_consequences(others);
    for (const int stage : stages) check_complete(stage, ops.size());
  }

  // An op that runs before one that is missing is not to blame: the missing one is reported.
  void drop_consequences(std::size_t begin) {
    const auto is_one = [&](const Violation& violation) {
      if (violation.rule != Rule::chain_order && violation.rule != Rule::backward_before_forward) return false;
      const Op first = violation.other;
      const Done either = is_backward_half(first.kind) ? did_backward | did_input : bit(first.kind);
      return (done(first.stage, first.micro_batch) & either) == 0;
    };
    violations_.erase(
        std::remove_if(violations_.begin() + static_cast<std::ptrdiff_t>(begin), violations_.end(), is_one),
        violations_.end());
  }

  void check_op(std::size_t position, Op op) {
    if (!is_compute(op.kind)) return report(Rule::not_compute, position, op);
    if (op.stage >= stages_.size() || op.micro_batch >= schedule_.micro_batches) {
      return report(Rule::no_such_stage, position, op);
    }
    if (schedule_.placement.rank_of[op.stage] != rank_) return report(Rule::wrong_rank, position, op);

    if (!census_.trains() && op.kind != Kind::forward) report(Rule::backward_alone, position, op);
    Done& so_far = done(op.stage, op.micro_batch);
    if (so_far != before[static_cast<std::size_t>(op.kind)]) check_passes(position, op, so_far);
    so_far |= bit(op.kind);
    check_producer(position, op);
  }

  // Something is wrong with the passes of this stage and micro-batch: says what.
  void check_passes(std::size_t position, Op op, Done so_far) {
    const auto as = [&](Kind kind) { return Op{op.micro_batch, op.stage, kind, false}; };
    if ((so_far & bit(op.kind)) != 0) return report(Rule::doubled, position, op);
    if (op.kind == Kind::backward && (so_far & (did_input | did_weight)) != 0) {
      const Kind half = (so_far & did_input) != 0 ? Kind::input_gradient : Kind::weight_gradient;
      return report(Rule::split_and_full, position, op, as(half));
    }
    if ((op.kind == Kind::input_gradient || op.kind == Kind::weight_gradient) && (so_far & did_backward) != 0) {
      return report(Rule::split_and_full, position, op, as(Kind::backward));
    }
    if (op.kind == Kind::weight_gradient && (so_far & did_input) == 0) {
      return report(Rule::backward_before_forward, position, op, as(Kind::input_gradient));
    }
    if (op.kind != Kind::forward && (so_far & did_forward) == 0) {
      report(Rule::backward_before_forward, position, op, as(Kind::forward));
    }
  }

  void check_producer(std::size_t position, Op op) {
    if (op.kind == Kind::weight_gradient) return;
    const bool forward = op.kind == Kind::forward;
    const auto needed = forward ? stages_[op.stage].of_forward : stages_[op.stage].of_backward;
    const Done made = forward ? did_forward : did_backward | did_input;
    if (needed && (done(*needed, op.micro_batch) & made) == 0) {
      report(Rule::chain_order, position, op, {op.micro_batch, *needed, op.kind, false});
    }
  }

  void check_pair(std::size_t position, std::span<const Op> ops) {
    if (position + 1 == ops.size()) return report(Rule::pair, position, ops[position]);
    const Op first = ops[position];
    const Op second = ops[position + 1];
    const auto chain = [&](Op op) { return op.stage < stages_.size() ? schedule_.placement.chain_of(op.stage) : -1; };
    if (first.kind != Kind::forward || second.kind != Kind::backward || second.with_next ||
        (first.micro_batch == second.micro_batch && chain(first) == chain(second))) {
      report(Rule::pair, position, first, second);
    }
  }

  void check_complete(int stage, std::size_t op_count) {
    for (std::uint32_t i = 0; i < schedule_.micro_batches; ++i) {
      if (!census_.is_expected(stage, i)) continue;
      const Done so_far = done(stage, i);
      if (so_far == did_full || so_far == did_split || (!census_.trains() && (so_far & did_forward) != 0)) continue;
      const auto missing = [&](Kind kind) {
        report(Rule::missing, op_count, {i, static_cast<std::uint16_t>(stage), kind, false});
      };
      if ((so_far & did_forward) == 0) missing(Kind::forward);
      if ((so_far & did_backward) != 0 || !census_.trains()) continue;
      if ((so_far & (did_input | did_weight)) == 0) {
        missing(Kind::backward);
        continue;
      }
      if ((so_far & did_input) == 0) missing(Kind::input_gradient);
      if ((so_far & did_weight) == 0) missing(Kind::weight_gradient);
    }
  }

  const Schedule& schedule_;
  std::vector<Violation>& violations_;
  StagesByRank by_rank_;
  std::vector<LocalProducers> stages_;
  std::vector<std::size_t> local_;  // the number of a stage among those of its rank
  const Census census_;

  int rank_ = 0;
  std::vector<Done> done_;  // of this rank's stages
};

// The messages of a valid Schedule, rank by rank: as every rank sends and receives just what its ops make and need, the
// two ends of each message match.
class MessageCheck {
 public:
  MessageCheck(const Program& program, std::vector<Violation>& violations)
      : program_(program),
        placement_(program.schedule.placement),
        violations_(violations),
        by_rank_(placement_),
        local_(placement_.rank_of.size()),
        last_weight_(placement_.rank_of.size()) {}

  void run() {
    if (report_alone()) return;
    reductions_.assign(placement_.rank_of.size(), 0);
    for (int rank = 0; rank < placement_.ranks; ++rank) check_rank(rank);
    check_reductions();
  }

 private:
  using Seen = std::uint16_t;  // which kinds of one stage and micro-batch have come by, by bit
  static constexpr Seen seen_bit(Kind kind) { return static_cast<Seen>(1U << static_cast<unsigned>(kind)); }

  void report(Rule rule, std::size_t slot, Op message, Op other) {
    if (violations_.size() < violation_count_max) violations_.push_back({rule, rank_, slot, message, other});
  }
  void report(Rule rule, std::size_t slot, Op message) { report(rule, slot, message, message); }

  // A few messages in a file that is else compute-only are too many, rather than all others missing.
  bool report_alone() {
    const auto is_message = [](Op op) { return is_send(op.kind) || is_receive(op.kind); };
    std::size_t needed = 0;
    for (const Op op : program_.schedule.ops) {
      const auto from = producer_of(op, placement_);
      const auto to = consumer_of(op, placement_);
      needed += (from && from->is_remote ? 1U : 0U) + (to && to->is_remote ? 1U : 0U);
    }
    const auto there = static_cast<std::size_t>(std::ranges::count_if(program_.communication, is_message));
    if (there == 0 || 2 * there >= needed) return false;
    for (rank_ = 0; rank_ < placement_.ranks; ++rank_) {
      for (std::size_t slot = 0; slot <= program_.schedule.rank(rank_).size(); ++slot) {
        for (const Op message : program_.slot(rank_, slot)) {
          if (is_message(message)) report(Rule::message_alone, slot, message);
        }
      }
    }
    return true;
  }

  [[nodiscard]] Seen& seen(Op op) { return seen_[local_[op.stage] * program_.schedule.micro_batches + op.micro_batch]; }

  void check_rank(int rank) {
    rank_ = rank;
    const auto stages = by_rank_.on(rank);
    for (std::size_t i = 0; i < stages.size(); ++i) local_[static_cast<std::size_t>(stages[i])] = i;
    seen_.assign(stages.size() * program_.schedule.micro_batches, 0);
    for (const int stage : stages) last_weight_[static_cast<std::size_t>(stage)] = 0;

    const auto ops = program_.schedule.rank(rank);
    for (std::size_t i = 0; i < ops.size(); ++i) {
      if (ops[i].kind == Kind::backward || ops[i].kind == Kind::weight_gradient) last_weight_[ops[i].stage] = i;
    }
    for (std::size_t i = 0; i <= ops.size(); ++i) {
      const bool inside_pair = i > 0 && ops[i - 1].with_next;
      for (const Op message : program_.slot(rank, i)) {
        const std::size_t others = violations_.size();
        check_message(i, message);
        if (inside_pair && violations_.size() == others) report(Rule::message_misplaced, i, message, ops[i - 1]);
      }
      if (i < ops.size()) seen(ops[i]) |= seen_bit(ops[i].kind);
    }
    check_exchanged(ops);
  }

  void check_message(std::size_t slot, Op message) {
    if (is_compute(message.kind)) return report(Rule::message_unneeded, slot, message);
    if (message.stage >= placement_.rank_of.size()) return report(Rule::no_such_stage, slot, message);
    if (placement_.rank_of[message.stage] != rank_) return report(Rule::wrong_rank, slot, message);
    if (message.kind == Kind::reduce_gradients) return check_reduction(slot, message);
    if (!has_micro_batch(message.kind)) return;
    if (message.micro_batch >= program_.schedule.micro_batches) return report(Rule::no_such_stage, slot, message);

    const auto end = other_end_of(message, placement_);
    if (!end || !end->is_remote) return report(Rule::message_unneeded, slot, message);
    Seen& so_far = seen(message);
    if ((so_far & seen_bit(message.kind)) != 0) return report(Rule::message_doubled, slot, message);
    so_far |= seen_bit(message.kind);

    const Seen its_op = is_forward(message.kind)
                            ? seen_bit(Kind::forward)
                            : static_cast<Seen>(seen_bit(Kind::backward) | seen_bit(Kind::input_gradient));
    const bool op_ran = (so_far & its_op) != 0;
    if (op_ran == is_receive(message.kind)) report(Rule::message_misplaced, slot, message);
  }

  void check_reduction(std::size_t slot, Op message) {
    auto& count = reductions_[message.stage];
    if (count++ > 0) return report(Rule::message_doubled, slot, message);
    if (slot <= last_weight_[message.stage]) report(Rule::message_misplaced, slot, message);
  }

  // All that the ops need was received, all that they make is sent.
  void check_exchanged(std::span<const Op> ops) {
    const auto expect = [&](Op message, const std::optional<FlowEnd>& end, std::size_t slot) {
      if (!end || !end->is_remote || (seen(message) & seen_bit(message.kind)) != 0) return;
      report(Rule::message_missing, slot, message);
    };
    for (std::size_t begin = 0, end = 0; begin < ops.size(); begin = end) {
      end = begin + unit_size(ops.subspan(begin));
      for (const Op op : ops.subspan(begin, end - begin)) {
        expect(receive_for(op), producer_of(op, placement_), begin);
        expect(send_of(op), consumer_of(op, placement_), end);
      }
    }
  }

  // Stages that share weights reduce all or none.
  void check_reductions() {
    std::vector<int> reducing(placement_.rank_of.size());
    for (std::size_t s = 0; s < reductions_.size(); ++s) reducing[placement_.weights_of[s]] += reductions_[s] > 0;
    for (std::size_t s = 0; s < reductions_.size(); ++s) {
      if (reductions_[s] > 0 || reducing[placement_.weights_of[s]] == 0) continue;
      rank_ = placement_.rank_of[s];
      report(Rule::message_missing, program_.schedule.rank(rank_).size(),
             {0, static_cast<std::uint16_t>(s), Kind::reduce_gradients, false});
    }
  }

  const Program& program_;
  const Placement& placement_;
  std::vector<Violation>& violations_;
  StagesByRank by_rank_;
  std::vector<int> reductions_;  // per stage

  int rank_ = 0;
  std::vector<std::size_t> local_;
  std::vector<Seen> seen_;
  std::vector<std::size_t> last_weight_;  // per stage, the position of its last B or W
};

// Whether `begins` divides `count` things into `parts`.
template <typename Index>
void check_divided(std::string_view things, const std::vector<Index>& begins, std::size_t parts, std::size_t count) {
  if (begins.size() == parts + 1 && begins.front() == 0 && begins.back() == count && std::ranges::is_sorted(begins)) {
    return;
  }
  throw InputError(fmt::format("the {} {} are not divided into {} parts, one after the other", count, things, parts));
}

// "micro-batch 2", of one of several chains "micro-batch 2 of chain 1"; or "micro-batches 3 to 5".
std::string micro_batches_text(const Violation& v, const Placement& placement) {
  const std::string chain = placement.chains() > 1 ? fmt::format(" of chain {}", placement.chain_of(v.op.stage)) : "";
  if (v.rule != Rule::absent_micro_batches || v.op == v.other) {
    return fmt::format("micro-batch {}{}", v.op.micro_batch, chain);
  }
  return fmt::format("micro-batches {} to {}{}", v.op.micro_batch, v.other.micro_batch, chain);
}

std::string stray_text(const Violation& v) {
  if (v.position == 1) return fmt::format("occurs only as {} on rank {}", to_text(v.op), v.rank);
  return fmt::format("occurs only {} times, first as {} on rank {} and last as {}", v.position, to_text(v.op), v.rank,
                     to_text(v.other));
}

// What is said of a stage or a micro-batch; empty where it is said of an op.
std::string census_text(const Violation& v, const Placement& placement) {
  switch (v.rule) {
    case Rule::stray_micro_batch:
      return fmt::format("{} {}; it must run through all stages, or not at all", micro_batches_text(v, placement),
                         stray_text(v));
    case Rule::absent_micro_batches:
      return fmt::format("{} {} nowhere; they are numbered from 0, without gaps", micro_batches_text(v, placement),
                         v.op == v.other ? "occurs" : "occur");
    case Rule::stray_stage:
      return fmt::format("stage {} {}; every micro-batch must run through it, or none", v.op.stage, stray_text(v));
    case Rule::absent_stage:
      return fmt::format("stage {} runs nowhere, and rank {} holds it", v.op.stage, v.rank);
    default:
      return {};
  }
}

std::string reason(const Violation& v, const Placement& placement) {
  const std::string other = to_text(v.other);
  switch (v.rule) {
    case Rule::no_such_stage:
      return v.op.stage >= placement.stages()
                 ? fmt::format("there is no stage {}, the placement has {}", v.op.stage, placement.stages())
                 : fmt::format("there is no micro-batch {}", v.op.micro_batch);
    case Rule::wrong_rank:
      return fmt::format("stage {} is held by rank {}", v.op.stage, placement.rank_of[v.op.stage]);
    case Rule::doubled:
      return "runs a second time";
    case Rule::missing:
      return "runs nowhere on its rank";
    case Rule::backward_before_forward:
      return fmt::format("runs before {}", other);
    case Rule::split_and_full:
      return fmt::format("clashes with {}: a backward is either B, or I and W", other);
    case Rule::backward_alone:
      return "is a backward, and most forwards have none";
    case Rule::chain_order:
      return fmt::format("runs before {}, its neighbour in the chain on the same rank", other);
    case Rule::pair:
      return v.op == v.other ? std::string("is the first half of an F&B pair without a second")
                             : fmt::format(
                                   "cannot overlap with {}: an F&B pair is a forward, then a full backward, of "
                                   "two different micro-batches",
                                   other);
    case Rule::not_compute:
      return "is communication, and a schedule holds only F, B, I and W";
    case Rule::message_unneeded:
      return "is a message that no stage on another rank needs or makes";
    case Rule::message_alone:
      return "is a message, and most of the others that this schedule needs are not there; there must be all or none";
    case Rule::message_missing:
      return "is missing";
    case Rule::message_doubled:
      return "comes a second time";
    case Rule::message_misplaced:
      if (v.op != v.other) return fmt::format("stands inside the F&B pair that begins with {}", other);
      return is_receive(v.op.kind) ? "comes after the op that needs it" : "comes before the op that makes it";
    case Rule::stray_micro_batch:
    case Rule::absent_micro_batches:
    case Rule::stray_stage:
    case Rule::absent_stage:
      break;
  }
  return census_text(v, placement);
}

}  // namespace

std::string to_text(const Violation& violation, const Placement& placement) {
  if (std::string of_census = census_text(violation, placement); !of_census.empty()) return of_census;
  const bool in_slot = !is_compute(violation.op.kind) && violation.rule != Rule::not_compute;
  const std::string place =
      violation.rule == Rule::missing ? "" : fmt::format(", {} {}", in_slot ? "slot" : "op", violation.position);
  return fmt::format("rank {}{}, {}: {}", violation.rank, place, to_text(violation.op), reason(violation, placement));
}

std::vector<Violation> validate(const Schedule& schedule) {
  check(schedule.placement);
  check_divided("ops", schedule.rank_begin, static_cast<std::size_t>(schedule.ranks()), schedule.ops.size());
  std::vector<Violation> violations;
  ScheduleCheck(schedule, violations).run();
  return violations;
}

std::vector<Violation> validate(const Program& program) {
  std::vector<Violation> violations = validate(program.schedule);
  const std::size_t slots = program.schedule.ops.size() + static_cast<std::size_t>(program.schedule.ranks());
  check_divided("messages", program.slot_begin, slots, program.communication.size());
  if (violations.empty()) MessageCheck(program, violations).run();
  return violations;
}

}  // namespace dualpipe
