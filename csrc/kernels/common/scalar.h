// bf16 and f16 as plain 16-bit structs, the same on the host, on the device and in emulation.
// Arithmetic happens in float: to_float(x), from_float<T>(f) (round to nearest even).
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/common/tensor_view.h"

#if defined(__CUDACC__)
#define MC_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MC_HOST_DEVICE inline
#endif

namespace mc {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2);

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

MC_HOST_DEVICE uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
MC_HOST_DEVICE float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

MC_HOST_DEVICE float to_float(float value) {
  return value;
}
MC_HOST_DEVICE float to_float(bf16 value) {
  return bits_float(uint32_t{value.bits} << 16);
}
MC_HOST_DEVICE float to_float(f16 value) {
#if defined(__CUDA_ARCH__)
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(value.bits));
  return out;
#else
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x400u) return bits_float(sign | ((magnitude << 13) + 0x38000000u));
  const float subnormal = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24
  return sign != 0 ? -subnormal : subnormal;
#endif
}

template <class T>
MC_HOST_DEVICE T from_float(float value);

template <>
MC_HOST_DEVICE float from_float<float>(float value) {
  return value;
}

template <>
MC_HOST_DEVICE bf16 from_float<bf16>(float value) {
#if defined(__CUDA_ARCH__)
  bf16 out;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
  return out;
#else
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {  // stays NaN: rounding could carry it to infinity
    return bf16{static_cast<uint16_t>(bits >> 16 | 0x40u)};
  }
  return bf16{static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
#endif
}

template <>
MC_HOST_DEVICE f16 from_float<f16>(float value) {
#if defined(__CUDA_ARCH__)
  f16 out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
  return out;
#else
  const uint32_t bits = float_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half = 0;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and more round to infinity
  } else if (magnitude >= 0x38800000u) {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  } else {
    // Below 2^-14 the result is a multiple of 2^-24. Adding 0.5 leaves exactly that many bits.
    half = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  }
  return f16{static_cast<uint16_t>(sign | half)};
#endif
}

}  // namespace mc
