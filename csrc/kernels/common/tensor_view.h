// TensorView: a borrowed, typed, strided array. Kernels see nothing else: no torch, no Python.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/str_cat.h"

namespace mc {

enum class DType : uint8_t {
  kF32,
  kBF16,
  kF16,
  kF64,
  kI8,
  kU8,
  kI32,
  kI64,
  kBool,
  kF8E4M3,
  kOther
};
enum class Device : uint8_t { kCpu, kCuda };

constexpr int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64: return 8;
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    default: return 1;
  }
}

constexpr std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "float32";
    case DType::kBF16: return "bfloat16";
    case DType::kF16: return "float16";
    case DType::kF64: return "float64";
    case DType::kI8: return "int8";
    case DType::kU8: return "uint8";
    case DType::kI32: return "int32";
    case DType::kI64: return "int64";
    case DType::kBool: return "bool";
    case DType::kF8E4M3: return "float8_e4m3fn";
    case DType::kOther: break;
  }
  return "an unsupported dtype";
}

inline constexpr int kMaxRank = 6;

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kOther;
  Device device = Device::kCpu;
  int32_t rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> strides{};  // in elements

  bool defined() const { return rank > 0 || data != nullptr; }  // false: an absent optional
  int64_t numel() const {
    int64_t count = 1;
    for (int axis = 0; axis < rank; ++axis) count *= shape[axis];
    return count;
  }
  bool is_contiguous() const {
    if (numel() == 0) return true;
    int64_t expected = 1;
    for (int axis = rank - 1; axis >= 0; --axis) {
      if (shape[axis] != 1 && strides[axis] != expected) return false;
      expected *= shape[axis];
    }
    return true;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

inline std::string shape_string(const TensorView& view) {
  std::string text = "[";
  for (int axis = 0; axis < view.rank; ++axis) {
    text += str_cat(axis == 0 ? "" : ", ", view.shape[axis]);
  }
  return text + "]";
}

}  // namespace mc
