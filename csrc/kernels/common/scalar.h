// The float types of base/scalar.h as the dtypes of a TensorView.
#pragma once

#include "base/scalar.h"
#include "kernels/common/tensor_view.h"

namespace mc {

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::kBF16;
};
template <>
struct DTypeOf<f16> {
  static constexpr DType value = DType::kF16;
};
template <class T>
inline constexpr DType kDTypeOf = DTypeOf<T>::value;

// Calls body(T{}) with the type of a float dtype that was checked before, and returns its result.
template <class Body>
auto with_float_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::kBF16: return body(bf16{});
    case DType::kF16: return body(f16{});
    default: return body(float{});
  }
}

}  // namespace mc
