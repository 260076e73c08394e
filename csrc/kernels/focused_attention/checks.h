// The checks that the operators of this folder share.
#pragma once

#include <initializer_list>

#include "base/status.h"
#include "base/str_cat.h"
#include "kernels/common/tensor_view.h"

namespace mc::focused {

template <class... Parts>
Status bad(const Parts&... parts) {
  return Status::invalid_argument(str_cat("[focused_attention] ", parts...));
}

inline std::string wanted_shape(std::initializer_list<int64_t> shape) {
  std::string text = "[";
  const char* comma = "";
  for (int64_t size : shape) {
    text += comma;
    text += size < 0 ? std::string("any") : std::to_string(size);
    comma = ", ";
  }
  return text + "]";
}

// `tensor` has this dtype and shape (-1: any size), is contiguous, and lies beside `like`.
inline Status check_tensor(const TensorView& tensor, const char* name, DType dtype,
                           std::initializer_list<int64_t> shape, const TensorView& like) {
  bool fits = tensor.rank == static_cast<int32_t>(shape.size());
  int axis = 0;
  for (int64_t size : shape) {
    fits = fits && (size < 0 || tensor.shape[axis] == size);
    ++axis;
  }
  if (!fits) {
    return bad(name, " must have shape ", wanted_shape(shape), ", got ", shape_string(tensor));
  }
  if (tensor.dtype != dtype) {
    return bad(name, " must be ", dtype_name(dtype), ", got ", dtype_name(tensor.dtype));
  }
  if (tensor.device != like.device) return bad(name, " must be on the device of the others");
  if (tensor.numel() > 0 && !tensor.is_contiguous()) {
    return bad(name, " must be contiguous, got strides that are not");
  }
  return {};
}

inline Status check_optional(const TensorView& tensor, const char* name, DType dtype,
                             std::initializer_list<int64_t> shape, const TensorView& like) {
  return tensor.defined() ? check_tensor(tensor, name, dtype, shape, like) : Status::ok();
}

// On CUDA whole rows are read 16 bytes at a time; a view that starts in between is refused.
inline Status check_aligned(const TensorView& tensor, const char* name) {
  const auto address = reinterpret_cast<uintptr_t>(tensor.data);
  if (tensor.device == Device::kCpu || address % 16 == 0) return {};
  return bad(name, " must start at a multiple of 16 bytes, got an address ", address % 16,
             " bytes beyond one; clone() it");
}

}  // namespace mc::focused
