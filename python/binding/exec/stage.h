// A stage whose model is a Python object: what replay() calls, it calls there. Private to the binding.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/exec/stage/autograd_stage.h"

namespace dualpipe::python {

// What Python threw, on its way through C++, which has not the GIL. Says "ValueError: …", and its notes.
class PythonError final : public std::exception {
 public:
  // With the GIL. Takes over what is set in the interpreter.
  PythonError();
  [[nodiscard]] const char* what() const noexcept override { return text_.c_str(); }
  // With the GIL: the same exception, with the traceback that it has. `note` is added to it.
  void restore(const std::string& note) const;

 private:
  std::shared_ptr<nanobind::python_error> error_;
  std::string text_;
};

// Something of Python's that C++ may copy and drop without the GIL.
template <typename Object>
class Shared {
 public:
  // With the GIL.
  explicit Shared(Object object)
      : object_(new Object(std::move(object)), [](Object* last) {
          const nanobind::gil_scoped_acquire gil;
          delete last;
        }) {}
  [[nodiscard]] const Object& get() const { return *object_; }

 private:
  std::shared_ptr<Object> object_;
};

// What a Python stage has for each op. Its backwards are autograd's, over a graph of its own for each micro-batch.
//
//   run(micro_batch, inputs) -> tensor, or sequence of tensors and None
//   has_hook: whether overlap() runs F&B pairs
//   overlap(micro_batch, inputs, back, returned, gradients) -> as run(); it has also run the backward of `back`, the
//       Python object of another stage, from what its run() had returned
//   store: DeepSeek's WeightGradStore, whose `enabled` says that an I runs
//   mode: a TorchFunctionMode that is active in the stage's forward, and in its backward, which may repeat the forward
//       (activation checkpointing). None: there is none
class PythonStage final : public detail::stage::AutogradStage {
 public:
  // Whether it is the first of its chain, and what the optimizer updates.
  PythonStage(nanobind::object object, bool is_first, std::vector<at::Tensor> parameters);

  using AutogradStage::set_loss_scale;
  [[nodiscard]] Tensors forward(std::uint32_t micro_batch, Tensors inputs) override;
  [[nodiscard]] Tensors backward(std::uint32_t micro_batch, Tensors gradients) override;
  [[nodiscard]] Tensors backward_input(std::uint32_t micro_batch, Tensors gradients) override;
  [[nodiscard]] Overlapped overlapped_forward_backward(std::uint32_t forward_micro_batch, Tensors inputs, Stage& back,
                                                       std::uint32_t backward_micro_batch, Tensors gradients,
                                                       const PairStreams& streams) override;
  [[nodiscard]] std::vector<NamedTensor> named_parameters() override;

  // The stage that this thread is in; null: none.
  [[nodiscard]] static PythonStage* current();
  using AutogradStage::weight_gradients;

  int traverse(visitproc visit, void* argument) const;
  void clear();

 private:
  class Entered;
  [[nodiscard]] Tensors compute(std::uint32_t micro_batch, const Tensors& inputs) override;
  template <typename Backward>
  [[nodiscard]] Tensors run_backward(const Backward& backward);

  nanobind::object object_;
  nanobind::object run_;
  nanobind::object overlap_;  // null: F and B run by themselves
  nanobind::object store_;
  std::shared_ptr<c10::SafePyObject> mode_;
  std::vector<at::Tensor> parameters_;
  std::map<std::uint32_t, Tensors> returned_;  // by run(), with its graph, for overlap(); by micro-batch
};

// Gives the weight gradients of layers to the current stage. False, or None: it takes none of this layer, which has to
// be computed as it is.
void bind_deferral(nanobind::module_& module);

}  // namespace dualpipe::python
