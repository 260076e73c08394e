// The door to torch, over the LibTorch stable ABI: one binary for torch 2.11 and later. It turns a
// tensor into a TensorView, finds the current stream, and raises a Status. Nothing else.
//
// The same files are compiled twice: into _ops, and into the emulated twin that tests load, where
// MC_EMU sends CPU tensors through the CUDA source of each kernel.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "base/status.h"
#include "kernels/common/exec.h"
#include "kernels/common/tensor_view.h"

#ifdef MC_EMU
#define MC_OPS_NAMESPACE megacontext_emu
#else
#define MC_OPS_NAMESPACE megacontext
#endif

namespace mc::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#ifdef MC_EMU
extern Device emulated_device;  // what CPU tensors stand for: kCpu runs AMX, on emulated tiles
#endif
TensorView view(const Tensor& tensor);
TensorView view(const std::optional<Tensor>& tensor);  // absent: an undefined view

// Threads and stream of the caller for work on `tensor`'s device.
Exec exec_for(const Tensor& tensor);

// Makes `tensor`'s device current while it lives; nothing on CPU.
class DeviceScope {
 public:
  explicit DeviceScope(const Tensor& tensor);

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

// RuntimeError with the kernel's own message. Typed wrappers turn it into InvalidArgument.
void raise_if_error(const Status& status);

Tensor empty_like_device(const Tensor& like, std::initializer_list<int64_t> shape,
                         ScalarType dtype);
// For tests: outputs are filled with NaN where torch.utils.deterministic asks for it.
void set_heeds_fill(bool heeds);

}  // namespace mc::torch_ops
