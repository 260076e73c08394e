// TileOps for any CPU, and the choice between the three.
#include <cmath>
#include <cstring>

#include "kernels/common/cpu_level.h"
#include "kernels/focused_attention/cpu_tile.h"

namespace mc::focused {
namespace {

constexpr int W = 8;
constexpr int kPanelRows = 4;
constexpr float kInfinity = __builtin_inff();

struct V {  // the compiler makes vectors of these where it can
  float x[W];
};

inline V load(const float* p) {
  V v;
  std::memcpy(v.x, p, sizeof v.x);
  return v;
}
inline void store(float* p, V v) {
  std::memcpy(p, v.x, sizeof v.x);
}
template <class F>
inline V each(F f) {
  V v;
  for (int i = 0; i < W; ++i) v.x[i] = f(i);
  return v;
}
inline V set(float value) {
  return each([&](int) { return value; });
}
inline V fma(V a, V b, V c) {
  return each([&](int i) { return a.x[i] * b.x[i] + c.x[i]; });
}
inline V add(V a, V b) {
  return each([&](int i) { return a.x[i] + b.x[i]; });
}
inline V sub(V a, V b) {
  return each([&](int i) { return a.x[i] - b.x[i]; });
}
inline V mul(V a, V b) {
  return each([&](int i) { return a.x[i] * b.x[i]; });
}
inline V div(V a, V b) {
  return each([&](int i) { return a.x[i] / b.x[i]; });
}
inline V vmax(V a, V b) {
  return each([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
}
inline V vmin(V a, V b) {
  return each([&](int i) { return a.x[i] < b.x[i] ? a.x[i] : b.x[i]; });
}
inline float reduce_max(V v) {
  float top = v.x[0];
  for (int i = 1; i < W; ++i) top = v.x[i] > top ? v.x[i] : top;
  return top;
}
inline float reduce_add(V v) {
  float sum = 0.0f;
  for (float x : v.x) sum += x;
  return sum;
}
inline V select_bits(uint32_t bits, V yes, V no) {
  return each([&](int i) { return (bits >> i & 1) != 0 ? yes.x[i] : no.x[i]; });
}
inline V load_bf16(const uint16_t* p) {
  return each([&](int i) {
    const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  });
}
inline void store_bf16(uint16_t* p, V v) {  // round to nearest even; NaN keeps its top bits
  for (int i = 0; i < W; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &v.x[i], sizeof bits);
    const bool nan = v.x[i] != v.x[i];
    p[i] =
        static_cast<uint16_t>(nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}
inline float f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
  float value;
  if (exponent == 0) {  // zero and subnormals
    value = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline V load_f16(const uint16_t* p) {
  return each([&](int i) { return f16_to_f32(p[i]); });
}
inline uint16_t f32_to_f16(float value) {  // round to nearest even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const float size = std::fabs(value);
  if (value != value) return sign | 0x7e00;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 0x1p-14f) return sign | static_cast<uint16_t>(std::nearbyint(size * 0x1p24f));
  bits = (bits & 0x7fffffff) - (112u << 23);
  return sign | static_cast<uint16_t>((bits + 0xfff + (bits >> 13 & 1)) >> 13);
}
inline void store_f16(uint16_t* p, V v) {
  for (int i = 0; i < W; ++i) p[i] = f32_to_f16(v.x[i]);
}
inline float exp2_scalar(float x) {
  return std::exp2(x);
}
inline V exp2_of(V x) {
  return each([&](int i) { return std::exp2(x.x[i]); });
}

#include "kernels/focused_attention/cpu_tile.inc"

void transpose(const float* from, int64_t rows, int64_t columns, int64_t from_row, float* to,
               int64_t to_row) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[j * to_row + i] = from[i * from_row + j];
  }
}

}  // namespace

const TileOps kTileOpsPortable = {
    &gemm,     nullptr, &softmax_row, &grad_row,  &visible, &transpose, &to_f32,
    &from_f32, &rotate, nullptr,      &scale_row, &add_row, &dot,
};

const TileOps& tile_ops() {
  switch (cpu_level()) {
    case CpuLevel::kAmx:
    case CpuLevel::kAvx512: return kTileOpsAvx512;
    case CpuLevel::kAvx2: return kTileOpsAvx2;
    case CpuLevel::kPortable: break;
  }
  return kTileOpsPortable;
}

}  // namespace mc::focused
