#include "kernels/score_topk/row_dots.h"

// GCC 12's own intrinsics read a vector that they leave undefined on purpose (GCC PR 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <bit>
#include <cstring>

#include "kernels/common/cpu_level.h"

namespace mc {
namespace {

using Dots = float[kQueriesTogether][kRowsTogether];

float element(const float* row, int64_t d) {
  return row[d];
}
float element(const uint16_t* row, int64_t d) {
  return std::bit_cast<float>(static_cast<uint32_t>(row[d]) << 16);
}
float element(const int8_t* row, int64_t d) {
  return static_cast<float>(row[d]);
}

float query_element(const TensorView& queries, int64_t at) {
  return queries.dtype == DType::kBF16 ? element(queries.as<uint16_t>(), at)
                                       : queries.as<float>()[at];
}

// How many rows' elements one step of the kernels of `level` takes, and so the padding of queries.
constexpr int64_t kStep = 32;

// The element that a query holds at slot `slot` of its step, for bf16 rows.
int64_t bf16_slot_element(int64_t slot, CpuLevel level) {
  if (level >= CpuLevel::kAvx512) return slot < 16 ? 2 * slot : 2 * (slot - 16) + 1;
  if (level == CpuLevel::kAvx2) {
    const int64_t half = slot / 16 * 16, in_half = slot % 16;
    return half + (in_half < 8 ? 2 * in_half : 2 * (in_half - 8) + 1);
  }
  return slot;
}

template <class T>
void dots_portable(const void* const* rows, const float* queries, int64_t query_stride,
                   int64_t width, int64_t query_count, Dots dots) {
  constexpr int64_t kLanes = 8;
  for (int64_t n = 0; n < kRowsTogether; ++n) {
    const T* row = static_cast<const T*>(rows[n]);
    for (int64_t q = 0; q < query_count; ++q) {
      const float* query = queries + q * query_stride;
      float lanes[kLanes] = {};
      int64_t d = 0;
      for (; d + kLanes <= width; d += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          lanes[lane] += element(row, d + lane) * query[d + lane];
        }
      }
      for (; d < width; ++d) lanes[d % kLanes] += element(row, d) * query[d];
      float sum = 0.0f;
      for (float lane : lanes) sum += lane;
      dots[q][n] = sum;
    }
  }
}

// 16 elements as two vectors of 8, in the slot order of bf16_slot_element.
struct Pair8 {
  __m256 first, second;
};
MC_TARGET_AVX2 inline Pair8 load16_avx2(const float* row) {
  return {_mm256_loadu_ps(row), _mm256_loadu_ps(row + 8)};
}
MC_TARGET_AVX2 inline Pair8 load16_avx2(const uint16_t* row) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)))};
}
MC_TARGET_AVX2 inline Pair8 load16_avx2(const int8_t* row) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

template <class T, int kQueries>
MC_TARGET_AVX2 void dots_avx2_q(const void* const* rows, const float* queries, int64_t query_stride,
                                int64_t width, Dots dots) {
  __m256 sums[kQueries][kRowsTogether];
  for (auto& per_query : sums) {
    for (auto& sum : per_query) sum = _mm256_setzero_ps();
  }
  const auto step = [&](const T* const* at, int64_t d) MC_TARGET_AVX2 {
    for (int n = 0; n < kRowsTogether; ++n) {
      const Pair8 row = load16_avx2(at[n]);
      for (int q = 0; q < kQueries; ++q) {
        const float* query = queries + q * query_stride + d;
        sums[q][n] = _mm256_fmadd_ps(row.first, _mm256_loadu_ps(query), sums[q][n]);
        sums[q][n] = _mm256_fmadd_ps(row.second, _mm256_loadu_ps(query + 8), sums[q][n]);
      }
    }
  };
  const T* at[kRowsTogether];
  int64_t d = 0;
  for (; d + 16 <= width; d += 16) {
    for (int n = 0; n < kRowsTogether; ++n) at[n] = static_cast<const T*>(rows[n]) + d;
    step(at, d);
  }
  if (d < width) {
    T tails[kRowsTogether][16] = {};
    for (int n = 0; n < kRowsTogether; ++n) {
      std::memcpy(tails[n], static_cast<const T*>(rows[n]) + d, (width - d) * sizeof(T));
      at[n] = tails[n];
    }
    step(at, d);
  }
  for (int q = 0; q < kQueries; ++q) {
    const __m256 ab = _mm256_hadd_ps(sums[q][0], sums[q][1]);
    const __m256 cd = _mm256_hadd_ps(sums[q][2], sums[q][3]);
    const __m256 all = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(dots[q], _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }
}

// 32 elements as two vectors of 16, in slot order; `left` < 32 elements exist, the rest are 0.
struct Pair16 {
  __m512 first, second;
};
MC_TARGET_AVX512 inline __mmask32 first_lanes(int64_t left) {
  return left >= 32 ? 0xffffffffu : (1u << left) - 1;
}
MC_TARGET_AVX512 inline Pair16 load32_avx512(const float* row, __mmask32 lanes) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), row),
          _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes >> 16), row + 16)};
}
MC_TARGET_AVX512 inline Pair16 load32_avx512(const uint16_t* row, __mmask32 lanes) {
  const __m512i pairs = _mm512_maskz_loadu_epi16(lanes, row);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)))};
}
MC_TARGET_AVX512 inline Pair16 load32_avx512(const int8_t* row, __mmask32 lanes) {
  const __m256i bytes = _mm256_maskz_loadu_epi8(lanes, row);
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes))),
          _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)))};
}

// The sums of four vectors, as four floats.
MC_TARGET_AVX512 inline __m128 sum_each(const __m512* v) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  const __m512 all =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

template <class T, int kQueries>
MC_TARGET_AVX512 void dots_avx512_q(const void* const* rows, const float* queries,
                                    int64_t query_stride, int64_t width, Dots dots) {
  __m512 sums[kQueries][kRowsTogether];
  for (auto& per_query : sums) {
    for (auto& sum : per_query) sum = _mm512_setzero_ps();
  }
  for (int64_t d = 0; d < width; d += kStep) {
    const __mmask32 lanes = first_lanes(width - d);
    for (int n = 0; n < kRowsTogether; ++n) {
      const Pair16 row = load32_avx512(static_cast<const T*>(rows[n]) + d, lanes);
      for (int q = 0; q < kQueries; ++q) {
        const float* query = queries + q * query_stride + d;
        sums[q][n] = _mm512_fmadd_ps(row.first, _mm512_loadu_ps(query), sums[q][n]);
        sums[q][n] = _mm512_fmadd_ps(row.second, _mm512_loadu_ps(query + 16), sums[q][n]);
      }
    }
  }
  for (int q = 0; q < kQueries; ++q) _mm_storeu_ps(dots[q], sum_each(sums[q]));
}

template <class T>
void dots_avx2(const void* const* rows, const float* queries, int64_t query_stride, int64_t width,
               int64_t query_count, Dots dots) {
  switch (query_count) {
    case 1: return dots_avx2_q<T, 1>(rows, queries, query_stride, width, dots);
    case 2: return dots_avx2_q<T, 2>(rows, queries, query_stride, width, dots);
    case 3: return dots_avx2_q<T, 3>(rows, queries, query_stride, width, dots);
    default: return dots_avx2_q<T, 4>(rows, queries, query_stride, width, dots);
  }
}

template <class T>
void dots_avx512(const void* const* rows, const float* queries, int64_t query_stride, int64_t width,
                 int64_t query_count, Dots dots) {
  switch (query_count) {
    case 1: return dots_avx512_q<T, 1>(rows, queries, query_stride, width, dots);
    case 2: return dots_avx512_q<T, 2>(rows, queries, query_stride, width, dots);
    case 3: return dots_avx512_q<T, 3>(rows, queries, query_stride, width, dots);
    default: return dots_avx512_q<T, 4>(rows, queries, query_stride, width, dots);
  }
}

template <class T>
RowDots row_dots_of() {
  switch (cpu_level()) {
    case CpuLevel::kAmx:
    case CpuLevel::kAvx512: return &dots_avx512<T>;
    case CpuLevel::kAvx2: return &dots_avx2<T>;
    case CpuLevel::kPortable: break;
  }
  return &dots_portable<T>;
}

}  // namespace

PreparedQueries prepare_queries(const TensorView& queries, DType row_dtype) {
  const int64_t width = queries.shape[1];
  PreparedQueries out;
  out.count = queries.shape[0];
  out.stride = (width + kStep - 1) / kStep * kStep;
  out.elements.assign(out.count * out.stride, 0.0f);
  const CpuLevel level = cpu_level();
  for (int64_t q = 0; q < out.count; ++q) {
    float* to = out.elements.data() + q * out.stride;
    for (int64_t slot = 0; slot < out.stride; ++slot) {
      const int64_t step = slot / kStep * kStep;
      const int64_t d =
          row_dtype == DType::kBF16 ? step + bf16_slot_element(slot - step, level) : slot;
      if (d < width) to[slot] = query_element(queries, q * width + d);
    }
  }
  return out;
}

RowDots row_dots_for(DType row_dtype) {
  switch (row_dtype) {
    case DType::kBF16: return row_dots_of<uint16_t>();
    case DType::kI8: return row_dots_of<int8_t>();
    default: return row_dots_of<float>();
  }
}

}  // namespace mc
