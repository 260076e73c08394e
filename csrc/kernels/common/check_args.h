// The checks that all kernels share. Messages: "[op] name must ..., got ...".
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "base/status.h"
#include "kernels/common/tensor_view.h"

namespace mc {

inline constexpr int64_t kAnyCount = -1;

inline bool is_float_type(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

// Checks tensors of one operator against its first one, which decides the device.
class ArgCheck {
 public:
  ArgCheck(std::string_view op, const TensorView& first) : op_(op), device_(first.device) {}

  template <class... Parts>
  Status fail(std::string_view name, const Parts&... must) const {
    return Status::invalid_argument(str_cat("[", op_, "] ", name, " must ", must...));
  }

  Status float_type(std::string_view name, const TensorView& view) const {
    if (is_float_type(view.dtype)) return Status::ok();
    return fail(name, "be float32, bfloat16 or float16, got ", dtype_name(view.dtype));
  }

  // dtype, device, contiguity and shape; kAnyCount stands for any extent.
  Status tensor(std::string_view name, const TensorView& view, DType dtype,
                std::initializer_list<int64_t> shape) const {
    if (view.dtype != dtype) {
      return fail(name, "be ", dtype_name(dtype), ", got ", dtype_name(view.dtype));
    }
    if (view.device != device_) {
      return fail(name, "be on ", device_ == Device::kCpu ? "CPU" : "CUDA",
                  " as the first argument is");
    }
    bool same = view.rank == static_cast<int32_t>(shape.size());
    int axis = 0;
    for (int64_t extent : shape) {
      same = same && (extent == kAnyCount || view.shape[axis] == extent);
      ++axis;
    }
    if (!same) return fail(name, "have shape ", wanted(shape), ", got ", shape_string(view));
    if (!view.is_contiguous()) {
      return fail(name, "be contiguous, got strides ", strides(view), " for ", shape_string(view));
    }
    return Status::ok();
  }

 private:
  static std::string wanted(std::initializer_list<int64_t> shape) {
    std::string text = "[";
    for (int64_t extent : shape) {
      if (text.size() > 1) text += ", ";
      text += extent == kAnyCount ? "any" : str_cat(extent);
    }
    return text + "]";
  }
  static std::string strides(const TensorView& view) {
    TensorView shown = view;
    shown.shape = view.strides;
    return shape_string(shown);
  }

  std::string_view op_;
  Device device_;
};

}  // namespace mc
