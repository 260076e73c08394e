// bf16, f16 and fp8 as plain structs, the same on the host, on the device and in emulation.
// Arithmetic happens in float: to_float(x), from_float<T>(f) (round to nearest even).
#pragma once

#include <cstdint>
#include <cstring>

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
struct fp8 {  // e4m3fn: 4 bits of exponent, 3 of mantissa, no infinity, NaN is 0x7f, largest 448
  uint8_t bits;
};
static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2 && sizeof(fp8) == 1);
inline constexpr float kFp8Largest = 448.f;

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

MC_HOST_DEVICE float to_float(int8_t value) {
  return static_cast<float>(value);
}
MC_HOST_DEVICE float to_float(fp8 value) {
  const uint32_t magnitude = value.bits & 0x7fu;
  if (magnitude == 0x7fu) return bits_float(0x7fc00000u);
  // The same fields as f16 has, under another exponent bias: 15 instead of 7.
  const auto half = static_cast<uint16_t>((value.bits & 0x80u) << 8 | magnitude << 7);
  return 256.f * to_float(f16{half});
}

template <class T>
MC_HOST_DEVICE T from_float(float value);

// Nearest, ties to even, larger values become +-127.
template <>
MC_HOST_DEVICE int8_t from_float<int8_t>(float value) {
  const float clamped = value < -127.f ? -127.f : value > 127.f ? 127.f : value;
  // 1.5 * 2^23 leaves the integer in the low bits.
  return static_cast<int8_t>(float_bits(clamped + 12582912.f) & 0xffu);
}

// Nearest, ties to even, larger values become +-448; NaN stays NaN.
template <>
MC_HOST_DEVICE fp8 from_float<fp8>(float value) {
  const uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffffu;
  const uint32_t sign = bits >> 24 & 0x80u;
  uint32_t out;
  if (magnitude > 0x7f800000u) {
    out = 0x7fu;
  } else if (magnitude >= 0x43e00000u) {
    out = 0x7eu;
  } else if (magnitude >= 0x3c800000u) {  // 2^-6, the smallest normal number
    const uint32_t rounded = (magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
    out = rounded - (120u << 3);
  } else {
    // A multiple of 2^-9; adding 2^14 leaves exactly that many bits.
    out = float_bits(bits_float(magnitude) + 16384.f) - float_bits(16384.f);
  }
  return fp8{static_cast<uint8_t>(sign | out)};
}

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
