#include "torch_ops/op_support.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>

#include <algorithm>
#include <atomic>

// Exported by CUDA builds of torch only; weak, so that this library also loads on CPU builds.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace mc::torch_ops {
namespace {

std::atomic<bool> heeds_fill{false};

DType to_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return DType::kF32;
    case ScalarType::BFloat16: return DType::kBF16;
    case ScalarType::Half: return DType::kF16;
    case ScalarType::Double: return DType::kF64;
    case ScalarType::Char: return DType::kI8;
    case ScalarType::Byte: return DType::kU8;
    case ScalarType::Int: return DType::kI32;
    case ScalarType::Long: return DType::kI64;
    case ScalarType::Bool: return DType::kBool;
    case ScalarType::Float8_e4m3fn: return DType::kF8E4M3;
    default: return DType::kOther;
  }
}

void torch_parallel_for(int64_t begin, int64_t end, int64_t grain, const RangeBody& body) {
  torch::stable::parallel_for(begin, end, grain, body);
}

}  // namespace

#ifdef MC_EMU
Device emulated_device = Device::kCuda;
#endif

TensorView view(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() <= kMaxRank, "tensors must have rank <= ", kMaxRank, ", got ",
                  tensor.dim());
  TensorView out;
  out.data = tensor.mutable_data_ptr();
  out.dtype = to_dtype(tensor.scalar_type());
#ifdef MC_EMU
  out.device = emulated_device;
#else
  out.device = tensor.is_cuda() ? Device::kCuda : Device::kCpu;
#endif
  out.rank = static_cast<int32_t>(tensor.dim());
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  for (int axis = 0; axis < out.rank; ++axis) {
    out.shape[axis] = sizes[axis];
    out.strides[axis] = strides[axis];
  }
  return out;
}

TensorView view(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? view(*tensor) : TensorView{};
}

Exec exec_for(const Tensor& tensor) {
  Exec exec;
  exec.parallel_for = &torch_parallel_for;
  if (!tensor.is_cuda()) return exec;
  STD_TORCH_CHECK(&aoti_torch_get_current_cuda_stream != nullptr,
                  "a CUDA tensor was given, but this torch has no CUDA");
  exec.device_index = tensor.get_device_index();
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(exec.device_index, &exec.stream));
  return exec;
}

DeviceScope::DeviceScope(const Tensor& tensor) {
  if (tensor.is_cuda()) guard_.emplace(tensor.get_device_index());
}

void raise_if_error(const Status& status) {
  STD_TORCH_CHECK(status.is_ok(), status.to_string());
}

// By the C shim: torch::stable::empty looks its operator up by name, which costs 1.5 us. On CPU
// aoti_torch_empty_strided is quicker still, but fills nothing where torch was asked to.
Tensor empty_like_device(const Tensor& like, std::initializer_list<int64_t> shape,
                         ScalarType dtype) {
  int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  const auto rank = static_cast<int64_t>(shape.size());
  int32_t device, index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle out;
  if (!heeds_fill.load(std::memory_order_relaxed) && !like.is_cuda()) {
    int64_t strides[kMaxRank], step = 1;
    for (int64_t axis = rank - 1; axis >= 0; --axis) {
      strides[axis] = step;
      step *= std::max<int64_t>(shape.begin()[axis], 1);
    }
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(rank, shape.begin(), strides, code, device, index, &out));
    return Tensor(out);
  }
  int32_t layout;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(like.get(), &layout));
  TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(like.get(), shape.begin(), rank, &code, &layout,
                                                   &device, index, nullptr, &out));
  return Tensor(out);
}

void set_heeds_fill(bool heeds) {
  heeds_fill.store(heeds, std::memory_order_relaxed);
}

}  // namespace mc::torch_ops
