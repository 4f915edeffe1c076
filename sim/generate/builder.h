// What the generators share: shape checks, and a Schedule that grows op by op. Private to sim.
#pragma once

#include <cassert>
#include <string_view>
#include <utility>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/large_vector.h"

namespace dualpipe::detail::generate {

// At least one rank, micro-batch and chunk, no more of them than an op can number. Throws ShapeError.
void check_counts(std::string_view family_name, const Shape& shape);
// The rules of every family: those, and chunks only where the family takes them. Throws ShapeError.
void check_shape(std::string_view family_name, const Shape& shape);

class Builder {
 public:
  // `ops_per_micro_batch`: of one stage; 2 for F B, 3 for F I W (and enough where both occur).
  Builder(std::string_view name, Placement placement, std::int64_t micro_batches_per_chain, int ops_per_micro_batch) {
    schedule_.name = name;
    schedule_.placement = std::move(placement);
    schedule_.micro_batches = static_cast<std::uint32_t>(micro_batches_per_chain);
    const auto per_stage = static_cast<std::size_t>(micro_batches_per_chain * ops_per_micro_batch);
    detail::schedule::reserve_large(schedule_.ops, static_cast<std::size_t>(schedule_.placement.stages()) * per_stage);
    schedule_.rank_begin.reserve(static_cast<std::size_t>(schedule_.placement.ranks) + 1);
    schedule_.rank_begin.push_back(0);
  }

  void add(Kind kind, int stage, std::int64_t micro_batch) {
    schedule_.ops.push_back({static_cast<std::uint32_t>(micro_batch), static_cast<std::uint16_t>(stage), kind, false});
  }
  void forward(int stage, std::int64_t micro_batch) { add(Kind::forward, stage, micro_batch); }
  void backward(int stage, std::int64_t micro_batch) { add(Kind::backward, stage, micro_batch); }
  void input_gradient(int stage, std::int64_t micro_batch) { add(Kind::input_gradient, stage, micro_batch); }
  void weight_gradient(int stage, std::int64_t micro_batch) { add(Kind::weight_gradient, stage, micro_batch); }
  void overlapped(int forward_stage, std::int64_t forward_micro_batch, int backward_stage,
                  std::int64_t backward_micro_batch) {
    forward(forward_stage, forward_micro_batch);
    schedule_.ops.back().with_next = true;
    backward(backward_stage, backward_micro_batch);
  }

  // The ops that follow are the next rank's.
  void end_rank() { schedule_.rank_begin.push_back(schedule_.ops.size()); }

  [[nodiscard]] Schedule take() {
    assert(schedule_.rank_begin.size() == static_cast<std::size_t>(schedule_.placement.ranks) + 1);
    return std::move(schedule_);
  }

 private:
  Schedule schedule_;
};

}  // namespace dualpipe::detail::generate
