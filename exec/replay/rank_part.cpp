#include "dualpipe/exec/replay/rank_part.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/flow.h"
#include "dualpipe/sim/schedule/validate.h"

namespace dualpipe::detail::replay {
namespace {

// Where each of them begins, and the end of the last.
std::span<const std::uint32_t> slots_of(const Program& program, int rank) {
  return std::span(program.slot_begin).subspan(program.slot_index(rank, 0), program.schedule.rank(rank).size() + 2);
}

class OpCheck {
 public:
  OpCheck(const Program& program, int rank, std::span<const HeldStage> held)
      : program_(program), rank_(rank), held_(held) {}

  void run() const {
    const auto ops = program_.schedule.rank(rank_);
    for (std::size_t position = 0; position < ops.size();) {
      const auto unit = ops.subspan(position, unit_size(ops.subspan(position)));
      for (std::size_t i = 0; i < unit.size(); ++i) check_op(position + i, unit[i]);
      if (unit[0].with_next) check_pair(position, unit);
      position += unit.size();
    }
    for (std::size_t position = 0; position <= ops.size(); ++position) {
      for (const Op& message : program_.slot(rank_, position)) check_message(position, message);
    }
  }

 private:
  [[noreturn]] void refuse(Rule rule, std::size_t position, Op op, Op other) const {
    const Violation violation{rule, rank_, position, op, other};
    throw InputError(to_text(violation, program_.schedule.placement) +
                     "; validate() says what else is wrong with the program");
  }

  void check_place(std::size_t position, Op op) const {
    const bool has_micro_batch =
        !dualpipe::has_micro_batch(op.kind) || op.micro_batch < program_.schedule.micro_batches;
    if (op.stage >= held_.size() || !has_micro_batch) refuse(Rule::no_such_stage, position, op, op);
    if (held_[op.stage].stage == nullptr) refuse(Rule::wrong_rank, position, op, op);
  }

  void check_op(std::size_t position, Op op) const {
    if (!is_compute(op.kind)) refuse(Rule::not_compute, position, op, op);
    check_place(position, op);
  }

  void check_pair(std::size_t position, std::span<const Op> unit) const {
    if (unit.size() == 1) refuse(Rule::pair, position, unit[0], unit[0]);
    const bool is_pair = unit[0].kind == Kind::forward && unit[1].kind == Kind::backward && !unit[1].with_next;
    const bool is_of_one = unit[0].stage == unit[1].stage && unit[0].micro_batch == unit[1].micro_batch;
    if (!is_pair || is_of_one) refuse(Rule::pair, position, unit[0], unit[1]);
  }

  // Those that a rank passes over (UNSHARD, RESHARD) may be of any stage.
  void check_message(std::size_t position, const Op& message) const {
    if (is_compute(message.kind)) refuse(Rule::message_misplaced, position, message, message);
    const bool is_exchanged = is_send(message.kind) || is_receive(message.kind);
    if (!is_exchanged && message.kind != Kind::reduce_gradients) return;
    check_place(position, message);
    if (!is_exchanged) return;
    const HeldStage& stage = held_[message.stage];
    const bool is_forward_on = message.kind == Kind::send_forward || message.kind == Kind::receive_backward;
    const Neighbour& neighbour = is_forward_on ? stage.next : stage.previous;
    if (neighbour.where != Neighbour::Where::other_rank) refuse(Rule::message_unneeded, position, message, message);
  }

  const Program& program_;
  const int rank_;
  const std::span<const HeldStage> held_;
};

void check_made(Op op, const Tensors& made, std::string_view what, std::string_view who_wants_it) {
  if (std::ranges::none_of(made, &at::Tensor::defined)) {
    throw InputError(fmt::format("stage {} returned {} as the {}, which {}", op.stage,
                                 made.empty() ? "no tensor" : "an undefined tensor", what, who_wants_it));
  }
  if (std::ranges::any_of(made, [](const at::Tensor& each) { return each.defined() && each.requires_grad(); })) {
    throw InputError(
        fmt::format("stage {} returned the {} with its autograd graph, and stages have graphs of their own; "
                    "return it detached (at::Tensor::detach())",
                    op.stage, what));
  }
}

}  // namespace

void check_rank(const Program& program, int rank) {
  const Schedule& schedule = program.schedule;
  check(schedule.placement);
  const auto ranks = static_cast<std::size_t>(schedule.ranks());
  if (rank < 0 || rank >= schedule.ranks()) {
    throw InputError(fmt::format("the program has {} ranks, from 0 on, and no rank {}", ranks, rank));
  }
  const bool has_ops = schedule.rank_begin.size() == ranks + 1 && schedule.rank_begin.front() == 0 &&
                       std::ranges::is_sorted(schedule.rank_begin) && schedule.rank_begin.back() == schedule.ops.size();
  const bool has_slots = has_ops && program.slot_begin.size() == schedule.ops.size() + ranks + 1 &&
                         program.slot_begin.back() == program.communication.size() &&
                         std::ranges::is_sorted(slots_of(program, rank)) &&
                         slots_of(program, rank).back() <= program.communication.size();
  if (!has_slots) {
    throw InputError(
        fmt::format("the program is not of one piece: {} ops of {} ranks take {} slots, and it has {}, for {} "
                    "messages; make it with lower()",
                    schedule.ops.size(), ranks, schedule.ops.size() + ranks,
                    std::max<std::size_t>(program.slot_begin.size(), 1) - 1, program.communication.size()));
  }
}

std::span<const Op> messages_of(const Program& program, int rank) {
  const auto slots = slots_of(program, rank);
  return std::span(program.communication).subspan(slots.front(), slots.back() - slots.front());
}

std::vector<HeldStage> held_stages(const Placement& placement, int rank, std::span<Stage* const> stages) {
  if (stages.size() != placement.rank_of.size()) {
    throw InputError(fmt::format(
        "the placement has {} stages, and {} are given: there must be one for each, null for those of other "
        "ranks",
        placement.rank_of.size(), stages.size()));
  }
  const auto here = placement.stages_on(rank);
  const auto neighbour = [&](const std::optional<FlowEnd>& end) -> Neighbour {
    if (!end) return {};
    if (end->is_remote) return {Neighbour::Where::other_rank, 0};
    const auto found = std::ranges::lower_bound(here, int{end->stage});
    return {Neighbour::Where::this_rank, static_cast<std::size_t>(found - here.begin())};
  };
  std::vector<HeldStage> held(placement.rank_of.size());
  for (std::size_t i = 0; i < here.size(); ++i) {
    const auto stage = static_cast<std::size_t>(here[i]);
    if (stages[stage] == nullptr) {
      throw InputError(
          fmt::format("rank {} holds stage {}, and no Stage is given for it; stages are given by their number in the "
                      "placement",
                      rank, stage));
    }
    const Op forward{0, static_cast<std::uint16_t>(stage), Kind::forward, false};
    held[stage] = {stages[stage], i, neighbour(producer_of(forward, placement)),
                   neighbour(consumer_of(forward, placement))};
  }
  return held;
}

void check_ops(const Program& program, int rank, std::span<const HeldStage> held) {
  OpCheck(program, rank, held).run();
}

void check_made(Op op, const Tensors& made) {
  check_made(op, made, op.kind == Kind::forward ? "output" : "gradient of its input", "the stage next to it waits for");
}

at::Tensor loss_of(Op op, Tensors made) {
  check_made(op, made, "loss", "the last stage of a chain has to compute");
  if (made.size() != 1 || made[0].numel() != 1) {
    std::int64_t numbers = 0;
    for (const at::Tensor& each : made) numbers += each.defined() ? each.numel() : 0;
    throw InputError(
        fmt::format("stage {} is the last of its chain, and has to return the loss, a scalar; it returned "
                    "{} numbers",
                    op.stage, numbers));
  }
  at::Tensor loss = std::move(made[0]);
  const bool keeps_more = loss.has_storage() && loss.storage().nbytes() > loss.nbytes();
  return keeps_more ? loss.clone() : std::move(loss);
}

}  // namespace dualpipe::detail::replay
