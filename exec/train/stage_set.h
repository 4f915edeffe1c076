// The stages that a thread holds, as train() and the reference both make them. Private to exec/train.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/model/device_data.h"
#include "dualpipe/exec/model/model.h"
#include "dualpipe/exec/stage/stage.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/transport.h"
#include "dualpipe/sim/schedule/schedule.h"

namespace dualpipe::detail::train {

// Some stages of a placement, with the samples that they read.
class StageSet {
 public:
  // `numbers`: which stages, in ascending order. `data`: make_data(), which sets may share; null: of its own. Throws
  // InputError.
  StageSet(const Schedule& schedule, const TrainOptions& options, std::span<const int> numbers,
           Device& device = host_device(), std::shared_ptr<Data> data = nullptr);

  // The step whose samples are read from now on. Puts them on the device, in its first compute stream.
  void begin_step(int step);

  // Stage::add_up_gradients() of each.
  void add_up_gradients() const;

  // By number in the placement; null for those that are not in the set.
  [[nodiscard]] std::span<Stage* const> by_number() const { return by_number_; }
  // Of each stage in the set, in order.
  [[nodiscard]] std::span<const std::vector<at::Tensor>> parameters() const { return parameters_; }
  [[nodiscard]] std::vector<at::Tensor> all_parameters() const;
  [[nodiscard]] std::vector<NamedTensor> named_parameters() const;
  // Those that count for the global norm: no copies of an earlier stage's.
  [[nodiscard]] std::span<const at::Tensor> counted_parameters() const { return counted_parameters_; }
  // The stages of the placement that have tied parameters, in order; also those that are not in the set.
  [[nodiscard]] std::span<const int> tied_stages() const { return tied_stages_; }
  // What a stage of the set holds between steps of this training.
  [[nodiscard]] StageBytes resident(int number, const TrainOptions& options) const;

 private:
  void note_samples(const Schedule& schedule, int number, std::int64_t first_micro_batch);

  Device& device_;
  std::shared_ptr<Data> data_;
  detail::model::DeviceData* on_device_ = nullptr;        // data_, unless the device is the host
  std::vector<detail::model::DeviceData::Range> inputs_;  // that the stages read in a step
  std::vector<detail::model::DeviceData::Range> targets_;
  std::vector<std::unique_ptr<Feed>> feeds_;  // stages point at them
  std::vector<std::unique_ptr<Stage>> stages_;
  std::vector<Stage*> by_number_;
  std::vector<std::vector<at::Tensor>> parameters_;
  std::vector<at::Tensor> counted_parameters_;
  std::vector<int> tied_stages_;
};

// The copies of a tied parameter get the sum of their gradients. By all ranks that hold one.
void reduce_tied(const StageSet& stages, Transport& transport);

// Scales gradients so that their global norm is at most `norm_max`. By all ranks: each adds what it holds, but no
// parameter counts twice.
void clip(const StageSet& stages, Transport& transport, double norm_max);

// The samples that options.data, or the seed, stand for. Throws InputError.
[[nodiscard]] std::shared_ptr<Data> make_data(const Schedule& schedule, const TrainOptions& options);

// The device of a rank, which is one of those `here` and holds so many stages. Null: it runs on the host_device().
[[nodiscard]] std::unique_ptr<Device> device_of(const TrainOptions& options, std::span<const int> here, int rank,
                                                std::size_t stages);

// How this process computes on GPUs: as exactly as the types allow (no TF32, no sums kept in bfloat16), and attention
// by LibTorch's flash kernel in bfloat16, by its memory-efficient one in float32, step by step in float64. The
// backwards of the first two add in an order of their own, so that two runs may differ in the last bits: its
// deterministic variants take longer, and would still not have the bits of a GPU with another number of
// multiprocessors, or of a part of one.
void set_up_arithmetic();

// To be called by a thread before it runs ops: an op then uses so many threads, and a backward runs on this very
// thread.
void set_up_thread(int threads);

// The loss of a step: the mean over its micro-batches, added in the order of chains and micro-batches.
[[nodiscard]] double mean_loss(std::span<const double> losses);

}  // namespace dualpipe::detail::train
