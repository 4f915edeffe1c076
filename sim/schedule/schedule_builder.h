// A Schedule that grows op by op, on any rank at any time: what decides the order may walk from rank to rank, or
// through time.
//
//   builder.go_to(0);                  builder.go_to(0);
//   builder.forward(0, 0);             builder.forward(0, 0);
//   builder.backward(0, 0);            builder.go_to(1);
//   builder.go_to(1);                  builder.forward(1, 0);
//   builder.forward(1, 0);             builder.backward(1, 0);
//   builder.backward(1, 0);            builder.go_to(0);
//                                      builder.backward(0, 0);
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/schedule.h"

namespace dualpipe {

class ScheduleBuilder {
 public:
  // `micro_batches` of each chain. Room for `ops_expected` is made at once; there may be more, or fewer.
  ScheduleBuilder(Placement placement, std::uint32_t micro_batches, std::size_t ops_expected);

  [[nodiscard]] const Placement& placement() const { return schedule_.placement; }

  // The ops that follow go behind those that the rank has: one of the placement's ranks, and rank 0 at first.
  void go_to(int rank) {
    if (rank != runs_.back().rank) begin_run(rank);
  }

  void add(Op op) { schedule_.ops.push_back(op); }
  void add(Kind kind, int stage, std::int64_t micro_batch) {
    add({static_cast<std::uint32_t>(micro_batch), static_cast<std::uint16_t>(stage), kind, false});
  }
  void forward(int stage, std::int64_t micro_batch) { add(Kind::forward, stage, micro_batch); }
  void backward(int stage, std::int64_t micro_batch) { add(Kind::backward, stage, micro_batch); }
  void input_gradient(int stage, std::int64_t micro_batch) { add(Kind::input_gradient, stage, micro_batch); }
  void weight_gradient(int stage, std::int64_t micro_batch) { add(Kind::weight_gradient, stage, micro_batch); }
  // An F&B pair.
  void overlapped(int forward_stage, std::int64_t forward_micro_batch, int backward_stage,
                  std::int64_t backward_micro_batch) {
    forward(forward_stage, forward_micro_batch);
    schedule_.ops.back().with_next = true;
    backward(backward_stage, backward_micro_batch);
  }

  // If rank followed rank all ops are where they belong already; else this takes time linear in them. What is left of
  // the builder is of no more use.
  [[nodiscard]] Schedule take(std::string name);

 private:
  // Ops of one rank that came one after the other; they end where the next run begins.
  struct Run {
    int rank;
    std::size_t begin;  // of Schedule::ops
  };

  void begin_run(int rank);
  // `visit(rank, ops)` for every run, in the order in which they came.
  template <typename Visit>
  void for_each_run(Visit visit) const;
  void sort_by_rank();

  Schedule schedule_;  // `ops` as they came
  std::vector<Run> runs_;
};

}  // namespace dualpipe
