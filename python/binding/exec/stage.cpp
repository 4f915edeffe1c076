#include "python/binding/exec/stage.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/GradMode.h>
#include <nanobind/stl/string.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/PyInterpreter.h>

#include "python/binding/exec/tensor.h"

namespace dualpipe::python {

namespace nb = nanobind;

PythonError::PythonError() : error_(std::make_shared<nb::python_error>()) {
  const nb::str value(error_->value());
  text_ = nb::cast<std::string>(error_->type().attr("__name__")) + ": " + value.c_str();
  if (const nb::object notes = nb::getattr(error_->value(), "__notes__", nb::none()); nb::isinstance<nb::list>(notes)) {
    for (const nb::handle note : notes) text_ += std::string("; ") + nb::str(note).c_str();
  }
}

void PythonError::restore(const std::string& note) const {
  try {
    error_->value().attr("add_note")(note.c_str());
  } catch (const nb::python_error&) {  // Python 3.10 has no notes
  }
  error_->restore();
}

namespace {

thread_local PythonStage* current_stage = nullptr;

nb::list list_of(const Tensors& tensors) {
  nb::list list;
  for (const at::Tensor& each : tensors) list.append(each);
  return list;
}

// What a stage returned.
Tensors tensors_of(nb::handle returned) {
  Tensors tensors;
  const auto add = [&](nb::handle each) {
    at::Tensor tensor;
    if (!nb::try_cast(each, tensor)) {
      PyErr_Format(PyExc_TypeError,
                   "a stage has to return a tensor, or a tuple of tensors and None; there is a %s in what it returned",
                   Py_TYPE(each.ptr())->tp_name);
      throw nb::python_error();
    }
    tensors.push_back(std::move(tensor));
  };
  if (nb::isinstance<nb::tuple>(returned) || nb::isinstance<nb::list>(returned)) {
    for (const nb::handle each : returned) add(each);
  } else {
    add(returned);
  }
  return tensors;
}

// Calls Python.
template <typename Call>
auto with_python(const Call& call) {
  const nb::gil_scoped_acquire gil;
  try {
    return call();
  } catch (nb::python_error& error) {
    error.restore();
    throw PythonError();
  }
}

}  // namespace

// While it lives, this thread is in the stage.
class PythonStage::Entered {
 public:
  // Where there will be no backward no layer has a weight gradient to leave to it.
  explicit Entered(PythonStage& stage)
      : before_(std::exchange(current_stage, &stage)), has_mode_(stage.mode_ && c10::GradMode::is_enabled()) {
    if (has_mode_) at::impl::PythonTorchFunctionTLS::push_onto_stack(stage.mode_);
  }
  ~Entered() {
    if (has_mode_) (void)at::impl::PythonTorchFunctionTLS::pop_stack();
    current_stage = before_;
  }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;

 private:
  PythonStage* before_;
  bool has_mode_;
};

PythonStage::PythonStage(nb::object object, bool is_first, std::vector<at::Tensor> parameters)
    : AutogradStage(1, Recompute::none,
                    is_first ? detail::stage::Segment::OfInputs::unwanted : detail::stage::Segment::OfInputs::wanted),
      object_(std::move(object)),
      run_(object_.attr("run")),
      store_(object_.attr("store")),
      parameters_(std::move(parameters)) {
  if (nb::cast<bool>(object_.attr("has_hook"))) overlap_ = object_.attr("overlap");
  if (nb::object mode = object_.attr("mode"); !mode.is_none()) {
    mode_ = std::make_shared<c10::SafePyObject>(mode.release().ptr(), getPyInterpreter());
  }
}

PythonStage* PythonStage::current() { return current_stage; }

Tensors PythonStage::forward(std::uint32_t micro_batch, Tensors inputs) {
  const Entered entered(*this);
  return AutogradStage::forward(micro_batch, std::move(inputs));
}

Tensors PythonStage::compute(std::uint32_t micro_batch, const Tensors& inputs) {
  Tensors made = with_python([&] { return tensors_of(run_(micro_batch, list_of(inputs))); });
  if (overlap_ && c10::GradMode::is_enabled()) returned_[micro_batch] = made;
  return made;
}

// What a backward written in Python throws, autograd brings as an error of its own.
template <typename Backward>
Tensors PythonStage::run_backward(const Backward& backward) {
  const Entered entered(*this);
  try {
    return backward();
  } catch (python_error& error) {
    const nb::gil_scoped_acquire gil;
    if (PyErr_Occurred() == nullptr) error.restore();
    throw PythonError();
  }
}

Tensors PythonStage::backward(std::uint32_t micro_batch, Tensors gradients) {
  returned_.erase(micro_batch);
  return run_backward([&] { return AutogradStage::backward(micro_batch, std::move(gradients)); });
}

Tensors PythonStage::backward_input(std::uint32_t micro_batch, Tensors gradients) {
  returned_.erase(micro_batch);
  const auto tell = [&](bool runs) { with_python([&] { store_.attr("enabled") = runs; }); };
  tell(true);
  try {
    Tensors result = run_backward([&] { return AutogradStage::backward_input(micro_batch, std::move(gradients)); });
    tell(false);
    return result;
  } catch (...) {
    tell(false);
    throw;
  }
}

Overlapped PythonStage::overlapped_forward_backward(std::uint32_t forward_micro_batch, Tensors inputs, Stage& back,
                                                    std::uint32_t backward_micro_batch, Tensors gradients,
                                                    const PairStreams& streams) {
  if (!overlap_ || !c10::GradMode::is_enabled()) {
    return Stage::overlapped_forward_backward(forward_micro_batch, std::move(inputs), back, backward_micro_batch,
                                              std::move(gradients), streams);
  }
  streams.device.use(streams.forward);
  auto& other = dynamic_cast<PythonStage&>(back);
  const Entered entered(*this);
  const Tensors returned = std::move(other.returned_.extract(backward_micro_batch).mapped());
  Tensors outputs = forward_by(forward_micro_batch, inputs, [&](const Tensors& own) {
    Tensors made = with_python([&] {
      return tensors_of(
          overlap_(forward_micro_batch, list_of(own), other.object_, list_of(returned), list_of(gradients)));
    });
    returned_[forward_micro_batch] = made;
    return made;
  });
  return {std::move(outputs), other.take_input_gradients(backward_micro_batch)};
}

std::vector<NamedTensor> PythonStage::named_parameters() {
  std::vector<NamedTensor> named;
  for (const at::Tensor& each : parameters_) named.push_back({std::to_string(named.size()), each});
  return named;
}

int PythonStage::traverse(visitproc visit, void* arg) const {
  for (const nb::object* each : {&object_, &run_, &overlap_, &store_}) Py_VISIT(each->ptr());
  return 0;
}

void PythonStage::clear() {
  for (nb::object* each : {&object_, &run_, &overlap_, &store_}) each->reset();
}

}  // namespace dualpipe::python
