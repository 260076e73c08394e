// AMX and AVX-512 with BF16.

// GCC 12's own intrinsics headers initialise values with themselves (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels/focused_attention/cpu_columns.h"

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")

namespace mc::focused {
namespace {

constexpr int64_t kRowBytes = 64;  // of a tile
constexpr int64_t kTileWords = 256;

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);
alignas(64) constexpr TileConfig kEightFullTiles;

// Tile loads are opaque to the compiler: what they read must be in memory before.
inline void finish_stores() {
  __asm__ volatile("" ::: "memory");
}

using V = __m512;

// Minimax fit of 2^x on [0, 1): relative error 2.7e-6, where weights are rounded to 2e-3.
constexpr float kExp2[] = {1.0000026226f, 0.69300383329f, 0.24144275486f, 0.052011460066f,
                           0.013534167781f};

// 2^x; 0 at -infinity.
inline V exp2_of(V x) {
  const V rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  V p = _mm512_fmadd_ps(_mm512_set1_ps(kExp2[4]), rest, _mm512_set1_ps(kExp2[3]));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(kExp2[2]));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(kExp2[1]));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(kExp2[0]));
  return _mm512_scalef_ps(p, x);  // scales by 2^floor(x)
}

inline V load_bf16(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// Tiles 0 to 3 hold results, 4 and 5 the left operands, 6 and 7 the right ones.
template <bool kTwo>
inline void multiply_add(const void* left, int64_t left_row, const void* left_next,
                         const uint32_t* right, const uint32_t* right_next) {
  _tile_loadd(4, left, left_row);
  _tile_loadd(6, right, kRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(5, left_next, left_row);
  _tile_dpbf16ps(2, 5, 6);
  if constexpr (kTwo) {
    _tile_loadd(7, right_next, kRowBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
}

template <bool kTwo>
void score_columns(const Panel& p) {
  const int64_t steps = p.width / 32, row_bytes = p.width * 2;
  const uint32_t* next_queries = p.queries + p.width / 2 * kColumn;
  float* next_scores = p.scores + kGroupPlaces * kColumn;
  for (int64_t place = 0; place < p.places; place += 32) {
    const int64_t at = place * kColumn;
    if (p.bias == nullptr) {
      _tile_zero(0);
      _tile_zero(2);
      _tile_zero(1);
      _tile_zero(3);
    } else {
      _tile_loadd(0, p.bias + at, kRowBytes);
      _tile_loadd(2, p.bias + at + kTileWords, kRowBytes);
      _tile_loadd(1, p.bias + at, kRowBytes);
      _tile_loadd(3, p.bias + at + kTileWords, kRowBytes);
    }
    const uint16_t *key = p.keys[place / 16], *next = p.keys[place / 16 + 1];
    for (int64_t k = 0; k < steps; ++k) {
      p.ahead->ask();
      multiply_add<kTwo>(key + 32 * k, row_bytes, next + 32 * k, p.queries + k * kTileWords,
                         next_queries + k * kTileWords);
    }
    _tile_stored(0, p.scores + at, kRowBytes);
    _tile_stored(2, p.scores + at + kTileWords, kRowBytes);
    if constexpr (kTwo) {
      _tile_stored(1, next_scores + at, kRowBytes);
      _tile_stored(3, next_scores + at + kTileWords, kRowBytes);
    }
  }
}

template <bool kTwo>
void add_values_columns(const Panel& p) {
  const uint32_t* next_weights = p.weights + kGroupPlaces * kColumn;
  float* next_sums = p.sums + p.width * kColumn;
  for (int64_t e = 0; e < p.width; e += 32) {
    const int64_t at = e * kColumn;
    _tile_loadd(0, p.sums + at, kRowBytes);
    _tile_loadd(2, p.sums + at + kTileWords, kRowBytes);
    if constexpr (kTwo) {
      _tile_loadd(1, next_sums + at, kRowBytes);
      _tile_loadd(3, next_sums + at + kTileWords, kRowBytes);
    }
    for (int64_t k = 0; k < p.places / 32; ++k) {
      const uint32_t* values = p.values + (k * p.width + e) * kColumn;
      p.ahead->ask();
      multiply_add<kTwo>(values, kRowBytes, values + kTileWords, p.weights + k * kTileWords,
                         next_weights + k * kTileWords);
    }
    _tile_stored(0, p.sums + at, kRowBytes);
    _tile_stored(2, p.sums + at + kTileWords, kRowBytes);
    if constexpr (kTwo) {
      _tile_stored(1, next_sums + at, kRowBytes);
      _tile_stored(3, next_sums + at + kTileWords, kRowBytes);
    }
  }
}

inline V tanh_of(V x) {  // 1 - 2 / (1 + exp(2 x)); saturates without overflow
  const V bound = _mm512_set1_ps(20.0f), two = _mm512_set1_ps(2.0f), one = _mm512_set1_ps(1.0f);
  x = _mm512_min_ps(bound, _mm512_max_ps(_mm512_set1_ps(-20.0f), x));  // in this order NaN stays
  const V e = exp2_of(_mm512_mul_ps(x, _mm512_set1_ps(2.0f * kLog2e)));
  return _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(one, e)));
}

// Log2 scores where they are more than a multiple of what the product gave.
inline V score_of(const ColumnSoftmax& c, V dot, int64_t place) {
  V score;
  if (c.softcap > 0.0f) {
    score = _mm512_mul_ps(tanh_of(_mm512_mul_ps(dot, _mm512_set1_ps(c.scale / c.softcap))),
                          _mm512_set1_ps(c.softcap * kLog2e));
  } else {
    score = _mm512_mul_ps(dot, _mm512_set1_ps(c.scale * kLog2e));
  }
  return c.bias == nullptr ? score : _mm512_add_ps(score, _mm512_set1_ps(c.bias[place]));
}

// The largest score of each query.
template <bool kScored, bool kMasked>
V highest(const ColumnSoftmax& c) {
  const V hidden = _mm512_set1_ps(-__builtin_inff());
  const __m512i position = _mm512_loadu_si512(c.position), oldest = _mm512_loadu_si512(c.oldest);
  V top[2] = {hidden, hidden};
  for (int64_t place = 0; place < c.places; place += 2) {
    for (int i = 0; i < 2; ++i) {
      const int64_t at = place + i;
      V score = _mm512_load_ps(c.scores + at * kColumn);
      if constexpr (kScored) score = score_of(c, score, at);
      if constexpr (kMasked) {
        const __mmask16 seen = _mm512_cmpge_epi32_mask(position, _mm512_set1_epi32(c.first[at])) &
                               _mm512_cmple_epi32_mask(oldest, _mm512_set1_epi32(c.last[at]));
        score = _mm512_mask_blend_ps(seen, hidden, score);
      }
      if constexpr (kScored || kMasked) _mm512_store_ps(c.scores + at * kColumn, score);
      top[i] = _mm512_max_ps(top[i], score);
    }
  }
  return _mm512_max_ps(top[0], top[1]);
}

// Writes exp2(score * scale - anchor); returns their sums.
V weigh(const ColumnSoftmax& c, V scale, V anchor) {
  alignas(64) static constexpr uint16_t kPairs[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i pairs = _mm512_load_si512(kPairs);
  V sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t place = 0; place < c.places; place += 2) {
    V weight[2];
    for (int i = 0; i < 2; ++i) {
      const V score = _mm512_load_ps(c.scores + (place + i) * kColumn);
      weight[i] = exp2_of(_mm512_fmsub_ps(score, scale, anchor));
      sum[i] = _mm512_add_ps(sum[i], weight[i]);
    }
    const auto both = (__m512i)_mm512_cvtne2ps_pbh(weight[1], weight[0]);
    _mm512_store_si512(c.weights + place / 2 * kColumn, _mm512_permutexvar_epi16(pairs, both));
    if (place % kAskPlaces == 0) c.ahead->ask();
  }
  return _mm512_add_ps(sum[0], sum[1]);
}

template <bool kScored, bool kMasked>
bool softmax_of(const ColumnSoftmax& c, float* factor) {
  const V scale = _mm512_set1_ps(kScored ? 1.0f : c.scale * kLog2e);
  const V none = _mm512_set1_ps(-__builtin_inff());
  const V old_max = _mm512_load_ps(c.max);
  const V top = _mm512_mul_ps(highest<kScored, kMasked>(c), scale);
  const V new_max = _mm512_max_ps(old_max, top);
  const __mmask16 seen = _mm512_cmpneq_ps_mask(new_max, none);
  const V anchor = _mm512_maskz_mov_ps(seen, new_max);
  const V sum = weigh(c, scale, anchor);
  const __mmask16 grown = _mm512_cmpneq_ps_mask(new_max, old_max);
  const V kept =
      _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), grown, exp2_of(_mm512_sub_ps(old_max, anchor)));
  _mm512_store_ps(c.max, new_max);
  _mm512_store_ps(c.sum, _mm512_fmadd_ps(_mm512_load_ps(c.sum), kept, sum));
  _mm512_store_ps(factor, kept);
  return grown != 0;
}

}  // namespace

void hold_tiles() {
  _tile_loadconfig(&kEightFullTiles);
}

void release_tiles() {
  _tile_release();
}

void score_panel(const Panel& panel) {
  finish_stores();
  panel.columns == 2 ? score_columns<true>(panel) : score_columns<false>(panel);
}

void add_values_panel(const Panel& panel) {
  finish_stores();
  panel.columns == 2 ? add_values_columns<true>(panel) : add_values_columns<false>(panel);
}

bool softmax_column(const ColumnSoftmax& c, float* factor) {
  const bool scored = c.softcap > 0.0f || c.bias != nullptr || !(c.scale >= __FLT_MIN__);
  if (c.first == nullptr) {
    return scored ? softmax_of<true, false>(c, factor) : softmax_of<false, false>(c, factor);
  }
  return scored ? softmax_of<true, true>(c, factor) : softmax_of<false, true>(c, factor);
}

void scale_column(float* sums, int64_t width, const float* factor) {
  const V by = _mm512_load_ps(factor);
  for (int64_t e = 0; e < width; ++e) {
    float* row = sums + e * kColumn;
    _mm512_store_ps(row, _mm512_mul_ps(_mm512_load_ps(row), by));
  }
}

// A register takes 8 values of four rows, 8 rows apart; within its lanes of 128 bits these stand
// transposed after three rounds of unpacking.
void transpose_values(const uint16_t* const* rows, int64_t width, uint32_t* to) {
  for (int64_t e = 0; e < width; e += 8, to += 8 * kColumn) {
    const auto eight = [&](int row) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + e));
    };
    __m512i r[8], t[8];
    for (int i = 0; i < 8; ++i) {
      r[i] = _mm512_castsi128_si512(eight(i));
      r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x00f0, eight(8 + i));
      r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x0f00, eight(16 + i));
      r[i] = _mm512_mask_broadcast_i32x4(r[i], 0xf000, eight(24 + i));
    }
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm512_unpacklo_epi16(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi16(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm512_unpacklo_epi32(t[i], t[i + 2]);
      r[i + 1] = _mm512_unpackhi_epi32(t[i], t[i + 2]);
      r[i + 2] = _mm512_unpacklo_epi32(t[i + 1], t[i + 3]);
      r[i + 3] = _mm512_unpackhi_epi32(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      _mm512_store_si512(to + 2 * i * kColumn, _mm512_unpacklo_epi64(r[i], r[i + 4]));
      _mm512_store_si512(to + (2 * i + 1) * kColumn, _mm512_unpackhi_epi64(r[i], r[i + 4]));
    }
  }
}

void reach_of_places(const int32_t* rows, const int32_t* positions, int32_t* first, int32_t* last) {
  const __m512i least = _mm512_set1_epi32(INT32_MIN), most = _mm512_set1_epi32(INT32_MAX);
  for (int half = 0; half < 32; half += 16) {
    const __mmask16 empty = _mm512_movepi32_mask(_mm512_loadu_si512(rows + half));
    __m512i from = least, until = most;
    if (positions != nullptr) {
      const __m512i position = _mm512_loadu_si512(positions + half);
      const __mmask16 always = _mm512_movepi32_mask(position);
      from = _mm512_mask_mov_epi32(position, always, least);
      until = _mm512_mask_mov_epi32(position, always, most);
    }
    _mm512_store_si512(first + half, from);
    _mm512_store_si512(last + half, _mm512_mask_mov_epi32(until, empty, least));
  }
}

void spread_bias(const float* bias, int64_t places, float factor, float* to) {
  for (int64_t i = 0; i < places; ++i) {
    _mm512_store_ps(to + i * kColumn, _mm512_set1_ps(bias[i] * factor));
  }
}

void rotate_rows(const RotatedRows& from, uint16_t* to) {
  const int64_t half = from.table_width / 2;
  const float* table = from.table;
  for (int64_t row = 0; row < from.count; ++row, to += from.width, table += from.table_width) {
    const uint16_t* key = from.rows[row];
    for (int64_t j = 0; j < half; j += 16) {
      const V cosine = _mm512_loadu_ps(table + j), sine = _mm512_loadu_ps(table + half + j);
      const V first = load_bf16(key + j), second = load_bf16(key + half + j);
      const V turned = _mm512_fmsub_ps(first, cosine, _mm512_mul_ps(second, sine));
      const V other = _mm512_fmadd_ps(second, cosine, _mm512_mul_ps(first, sine));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + j), (__m256i)_mm512_cvtneps_pbh(turned));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + half + j),
                         (__m256i)_mm512_cvtneps_pbh(other));
    }
    for (int64_t j = from.table_width; j < from.width; j += 32) {
      _mm512_storeu_si512(to + j, _mm512_loadu_si512(key + j));
    }
  }
}

}  // namespace mc::focused

#pragma GCC pop_options
