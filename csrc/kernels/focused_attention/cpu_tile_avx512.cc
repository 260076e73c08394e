// TileOps for AVX-512 with BF16.

// GCC 12's own intrinsics headers initialise values with themselves (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels/common/cpu_level.h"
#include "kernels/focused_attention/cpu_tile.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")

namespace mc::focused {
namespace {

#include "kernels/focused_attention/cpu_avx512.inc"

constexpr int kPanelRows = 8;

inline float reduce_max(V v) {
  return _mm512_reduce_max_ps(v);
}
inline float reduce_add(V v) {
  return _mm512_reduce_add_ps(v);
}
inline V select_bits(uint32_t bits, V yes, V no) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), no, yes);
}
inline V load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_f16(uint16_t* p, V v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

inline float exp2_scalar(float x) {
  return _mm512_cvtss_f32(exp2_of(set(x)));
}

#include "kernels/focused_attention/cpu_tile.inc"

inline void transpose_16x16(const float* from, int64_t from_row, float* to, int64_t to_row) {
  __m512 r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = load(from + i * from_row);
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    store(to + i * to_row, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
    store(to + (i + 8) * to_row, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
  }
}

void transpose(const float* from, int64_t rows, int64_t columns, int64_t from_row, float* to,
               int64_t to_row) {
  for (int64_t i = 0; i < rows; i += 16) {
    for (int64_t j = 0; j < columns; j += 16) {
      transpose_16x16(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
    }
  }
}

template <int M>
inline __attribute__((always_inline)) void pair_panel(const PairGemm& g, int64_t row,
                                                      int64_t column) {
  V sum[M][2];
  float* c = g.c + row * g.c_row + column;
  for (int i = 0; i < M; ++i) {
    sum[i][0] = g.accumulate ? load(c + i * g.c_row) : set(0.0f);
    sum[i][1] = g.accumulate ? load(c + i * g.c_row + W) : set(0.0f);
  }
  const uint32_t* a = g.a + row * g.a_row;
  const uint32_t* b = g.b + column;
  for (int64_t begin = 0; begin < g.k; begin += kAheadStep) {
    const int64_t end = begin + kAheadStep < g.k ? begin + kAheadStep : g.k;
    if (g.ahead != nullptr) g.ahead->ask();
    for (int64_t k = begin; k < end; ++k, b += g.b_row) {
      const auto b0 = (__m512bh)_mm512_loadu_si512(b);
      const auto b1 = (__m512bh)_mm512_loadu_si512(b + W);
      for (int i = 0; i < M; ++i) {
        const auto value = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[i * g.a_row + k]));
        sum[i][0] = _mm512_dpbf16_ps(sum[i][0], value, b0);
        sum[i][1] = _mm512_dpbf16_ps(sum[i][1], value, b1);
      }
    }
  }
  for (int i = 0; i < M; ++i) {
    store(c + i * g.c_row, sum[i][0]);
    store(c + i * g.c_row + W, sum[i][1]);
  }
}

template <int M>
void pair_gemm_rows(const PairGemm& g, int64_t row) {
  for (int64_t column = 0; column < g.n; column += 2 * W) pair_panel<M>(g, row, column);
}

void pair_gemm(const PairGemm& g) {
  int64_t row = 0;
  for (; row + 8 <= g.m; row += 8) pair_gemm_rows<8>(g, row);
  for (; row + 4 <= g.m; row += 4) pair_gemm_rows<4>(g, row);
  for (; row + 2 <= g.m; row += 2) pair_gemm_rows<2>(g, row);
  if (row < g.m) pair_gemm_rows<1>(g, row);
}

void pair_rows(const uint16_t* even, const uint16_t* odd, int64_t n, uint32_t* to) {
  for (int64_t j = 0; j < n; j += 32) store_pairs(even + j, odd + j, to + j);
}

uint32_t visible_bits(const int32_t* positions, int32_t query, int64_t window) {
  const int64_t oldest = window > 0 ? static_cast<int64_t>(query) - window + 1 : 0;
  const __m512i least = _mm512_set1_epi32(static_cast<int32_t>(oldest < 0 ? 0 : oldest));
  const __m512i most = _mm512_set1_epi32(query);
  uint32_t bits = 0;
  for (int half = 0; half < 2; ++half) {
    const __m512i position = _mm512_loadu_si512(positions + 16 * half);
    const __mmask16 in_reach =
        _mm512_cmple_epi32_mask(position, most) & _mm512_cmpge_epi32_mask(position, least);
    const __mmask16 always = _mm512_movepi32_mask(position);
    bits |= static_cast<uint32_t>(static_cast<uint16_t>(in_reach | always)) << (16 * half);
  }
  return bits;
}

}  // namespace

const TileOps kTileOpsAvx512 = {
    &gemm,     &pair_gemm, &softmax_row, &grad_row,  &visible_bits, &transpose, &to_f32,
    &from_f32, &rotate,    &pair_rows,   &scale_row, &add_row,      &dot,
};

}  // namespace mc::focused

#pragma GCC pop_options
