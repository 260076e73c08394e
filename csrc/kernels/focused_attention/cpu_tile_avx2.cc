// TileOps for AVX2 with FMA and F16C.
#include <immintrin.h>

#include "kernels/common/cpu_level.h"
#include "kernels/focused_attention/cpu_tile.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace mc::focused {
namespace {

using V = __m256;
constexpr int W = 8;
constexpr int kPanelRows = 6;
constexpr float kInfinity = __builtin_inff();

inline V load(const float* p) {
  return _mm256_loadu_ps(p);
}
inline void store(float* p, V v) {
  _mm256_storeu_ps(p, v);
}
inline V set(float x) {
  return _mm256_set1_ps(x);
}
inline V fma(V a, V b, V c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline V add(V a, V b) {
  return _mm256_add_ps(a, b);
}
inline V sub(V a, V b) {
  return _mm256_sub_ps(a, b);
}
inline V mul(V a, V b) {
  return _mm256_mul_ps(a, b);
}
inline V div(V a, V b) {
  return _mm256_div_ps(a, b);
}
inline V vmax(V a, V b) {
  return _mm256_max_ps(a, b);
}
inline V vmin(V a, V b) {
  return _mm256_min_ps(a, b);
}
inline float reduce_max(V v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline float reduce_add(V v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline V select_bits(uint32_t bits, V yes, V no) {
  const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set_bits = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lanes);
  return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set_bits, lanes)));
}
inline V load_bf16(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline V load_f16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store_bf16(uint16_t* p, V v) {  // round to nearest even; NaN keeps its top bits
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i top = _mm256_srli_epi32(
      _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(0x400000)), nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(top, top), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline void store_f16(uint16_t* p, V v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// 2^x, relative error 2e-7; exactly 0 below -126, NaN stays. The polynomial is exp2f's of Cephes.
inline V exp2_of(V x) {
  const V flushed = _mm256_cmp_ps(x, set(-126.0f), _CMP_LT_OQ);
  const V safe = _mm256_blendv_ps(x, set(0.0f), flushed);
  const V whole = _mm256_round_ps(safe, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const V rest = sub(safe, whole);
  V p = fma(set(1.535336188e-4f), rest, set(1.339887440e-3f));
  p = fma(p, rest, set(9.618437357e-3f));
  p = fma(p, rest, set(5.550332471e-2f));
  p = fma(p, rest, set(2.402264791e-1f));
  p = fma(p, rest, set(6.931472028e-1f));
  p = fma(p, rest, set(1.0f));
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
  return _mm256_andnot_ps(flushed, mul(p, _mm256_castsi256_ps(exponent)));
}
inline float exp2_scalar(float x) {
  return _mm256_cvtss_f32(exp2_of(set(x)));
}

#include "kernels/focused_attention/cpu_tile.inc"

inline void transpose_8x8(const float* from, int64_t from_row, float* to, int64_t to_row) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = load(from + i * from_row);
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    store(to + i * to_row, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    store(to + (i + 4) * to_row, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

void transpose(const float* from, int64_t rows, int64_t columns, int64_t from_row, float* to,
               int64_t to_row) {
  for (int64_t i = 0; i < rows; i += 8) {
    for (int64_t j = 0; j < columns; j += 8) {
      transpose_8x8(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
    }
  }
}

}  // namespace

const TileOps kTileOpsAvx2 = {
    &gemm,     nullptr, &softmax_row, &grad_row,  &visible, &transpose, &to_f32,
    &from_f32, &rotate, nullptr,      &scale_row, &add_row, &dot,
};

}  // namespace mc::focused

#pragma GCC pop_options
