// Columns on AVX-512: products by broadcast of what lies in the pool, and everything beside
// products.
//
// No key and no value is transposed. A turn of a product takes one word of each of several rows
// (places of keys, widths of values), broadcast from memory, times one register of queries or of
// weights a column: with eight rows and two columns, 16 sums and two loads of registers.

// GCC 12's own intrinsics headers initialise values with themselves (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels/focused_attention/cpu_columns.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")

namespace mc::focused {
namespace {

#include "kernels/focused_attention/cpu_avx512.inc"
#include "kernels/focused_attention/cpu_tanh.inc"

constexpr int64_t kBlockRows = 32;

inline V multiply_add(V sum, const float* word, const float* column) {
  return fma(set(*word), load(column), sum);
}
inline V multiply_add(V sum, const uint32_t* word, const uint32_t* column) {
  int pair_bits;
  __builtin_memcpy(&pair_bits, word, sizeof pair_bits);
  const auto pair = (__m512bh)_mm512_set1_epi32(pair_bits);
  return _mm512_dpbf16_ps(sum, pair, (__m512bh)_mm512_loadu_si512(column));
}

// Words of a row of the pool; rows of bf16 may start at any even address.
inline const float* words_of(const float* row) {
  return row;
}
inline const uint32_t* words_of(const uint16_t* row) {
  return reinterpret_cast<const uint32_t*>(row);
}

// sums [kRows][kColumns] += words of kRows rows, `row` apart, times `count` registers of each
// column.
template <int kRows, int kColumns, class W32>
inline __attribute__((always_inline)) void add_products(V (&sum)[kRows][kColumns], const W32* words,
                                                        int64_t row, int64_t word,
                                                        const W32* column, int64_t next_column,
                                                        int64_t count) {
  for (int64_t k = 0; k < count; ++k, words += word, column += kColumn) {
    for (int i = 0; i < kRows; ++i) {
      for (int c = 0; c < kColumns; ++c) {
        sum[i][c] = multiply_add(sum[i][c], words + i * row, column + c * next_column);
      }
    }
  }
}

template <int kRows, int kColumns, class T>
void score_columns(const Panel<T>& p) {
  const int64_t words = p.width / kPerWord<T>;
  for (int64_t place = 0; place < p.places; place += kRows) {
    V sum[kRows][kColumns];
    for (int i = 0; i < kRows; ++i) {
      const V start = p.bias == nullptr ? set(0.0f) : load(p.bias + (place + i) * kColumn);
      for (int c = 0; c < kColumns; ++c) sum[i][c] = start;
    }
    p.ahead->ask();
    const T* rows = p.keys[place / 16] + place % 16 * p.width;
    add_products(sum, words_of(rows), words, 1, p.queries, words * kColumn, words);
    for (int i = 0; i < kRows; ++i) {
      for (int c = 0; c < kColumns; ++c) {
        store(p.scores + (c * kGroupPlaces + place + i) * kColumn, sum[i][c]);
      }
    }
  }
}

template <int kRows, int kColumns, class T>
void add_values_columns(const Panel<T>& p) {
  constexpr int64_t kWords = kBlockRows / kPerWord<T>;  // of a block, in each width
  for (int64_t e = 0; e < p.width; e += kRows) {
    V sum[kRows][kColumns];
    for (int i = 0; i < kRows; ++i) {
      for (int c = 0; c < kColumns; ++c) {
        sum[i][c] = load(p.sums + (c * p.width + e + i) * kColumn);
      }
    }
    p.ahead->ask();
    for (int64_t block = 0; block < p.places / kBlockRows; ++block) {
      add_products(sum, p.values[block] + e, 1, p.width, p.weights + block * kWords * kColumn,
                   kGroupPlaces * kColumn, kWords);
    }
    for (int i = 0; i < kRows; ++i) {
      for (int c = 0; c < kColumns; ++c) {
        store(p.sums + (c * p.width + e + i) * kColumn, sum[i][c]);
      }
    }
  }
}

// A column alone takes twice the rows: a sum must wait for itself.
template <class T>
void score_panel(const Panel<T>& panel) {
  panel.columns == 2 ? score_columns<8, 2>(panel) : score_columns<16, 1>(panel);
}

template <class T>
void add_values_panel(const Panel<T>& panel) {
  panel.columns == 2 ? add_values_columns<8, 2>(panel) : add_values_columns<16, 1>(panel);
}

int64_t asks(int64_t columns, int64_t places, int64_t width) {
  return (places + width) / (columns == 2 ? 8 : 16);
}

const float* lay_values(const float* const* rows, bool together, int64_t width, float* room) {
  if (together) return rows[0];
  for (int64_t j = 0; j < kBlockRows; ++j) {
    for (int64_t e = 0; e < width; e += W) store(room + j * width + e, load(rows[j] + e));
  }
  return room;
}

// [32 / 2][E] pairs of two rows.
const uint32_t* lay_pairs(const uint16_t* const* rows, bool, int64_t width, uint32_t* room) {
  for (int64_t j = 0; j < kBlockRows; j += 2) {
    uint32_t* to = room + j / 2 * width;
    for (int64_t e = 0; e < width; e += 2 * W) store_pairs(rows[j] + e, rows[j + 1] + e, to + e);
  }
  return room;
}

void nothing() {}

// --- softmax ---------------------------------------------------------------------------------

// Minimax fit of 2^x on [0, 1): relative error 2.7e-6, for weights that are rounded to 2e-3.
constexpr float kExp2[] = {1.0000026226f, 0.69300383329f, 0.24144275486f, 0.052011460066f,
                           0.013534167781f};

// 2^x; 0 at -infinity.
inline V exp2_for(const uint16_t*, V x) {
  const V rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  V p = fma(set(kExp2[4]), rest, set(kExp2[3]));
  p = fma(p, rest, set(kExp2[2]));
  p = fma(p, rest, set(kExp2[1]));
  p = fma(p, rest, set(kExp2[0]));
  return _mm512_scalef_ps(p, x);  // scales by 2^floor(x)
}
inline V exp2_for(const float*, V x) {
  return exp2_of(x);
}

// Log2 scores where they are more than a multiple of what the product gave.
template <class T>
inline V score_of(const ColumnSoftmax<T>& c, V dot, int64_t place) {
  V score;
  if (c.softcap > 0.0f) {
    score = mul(tanh_of(mul(dot, set(c.scale / c.softcap))), set(c.softcap * kLog2e));
  } else {
    score = mul(dot, set(c.scale * kLog2e));
  }
  return c.bias == nullptr ? score : add(score, set(c.bias[place]));
}

// The largest score of each query.
template <bool kScored, bool kMasked, class T>
V highest(const ColumnSoftmax<T>& c) {
  const V hidden = set(-kInfinity);
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
      top[i] = vmax(top[i], score);
    }
  }
  return vmax(top[0], top[1]);
}

// Of two places, as the second product reads them.
inline void store_weights(V even, V odd, int64_t place, float* weights) {
  _mm512_store_ps(weights + place * kColumn, even);
  _mm512_store_ps(weights + (place + 1) * kColumn, odd);
}
inline void store_weights(V even, V odd, int64_t place, uint32_t* weights) {
  alignas(64) static constexpr uint16_t kPairs[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i pairs = _mm512_load_si512(kPairs);
  const auto both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
  _mm512_store_si512(weights + place / 2 * kColumn, _mm512_permutexvar_epi16(pairs, both));
}

// Writes exp2(score * scale - anchor); returns their sums.
template <class T>
V weigh(const ColumnSoftmax<T>& c, V scale, V anchor) {
  V sum[2] = {set(0.0f), set(0.0f)};
  for (int64_t place = 0; place < c.places; place += 2) {
    V weight[2];
    for (int i = 0; i < 2; ++i) {
      const V score = _mm512_load_ps(c.scores + (place + i) * kColumn);
      weight[i] = exp2_for(static_cast<const T*>(nullptr), _mm512_fmsub_ps(score, scale, anchor));
      sum[i] = add(sum[i], weight[i]);
    }
    store_weights(weight[0], weight[1], place, c.weights);
  }
  return add(sum[0], sum[1]);
}

template <bool kScored, bool kMasked, class T>
bool softmax_of(const ColumnSoftmax<T>& c, float* factor) {
  const V scale = set(kScored ? 1.0f : c.scale * kLog2e);
  const V none = set(-kInfinity);
  const V old_max = _mm512_load_ps(c.max);
  const V top = mul(highest<kScored, kMasked>(c), scale);
  const V new_max = vmax(old_max, top);
  const __mmask16 seen = _mm512_cmpneq_ps_mask(new_max, none);
  const V anchor = _mm512_maskz_mov_ps(seen, new_max);
  const V sum = weigh(c, scale, anchor);
  const __mmask16 grown = _mm512_cmpneq_ps_mask(new_max, old_max);
  const V left = exp2_for(static_cast<const T*>(nullptr), sub(old_max, anchor));
  const V kept = _mm512_mask_mov_ps(set(1.0f), grown, left);
  _mm512_store_ps(c.max, new_max);
  _mm512_store_ps(c.sum, fma(_mm512_load_ps(c.sum), kept, sum));
  _mm512_store_ps(factor, kept);
  return grown != 0;
}

template <class T>
bool softmax(const ColumnSoftmax<T>& c, float* factor) {
  const bool scored = c.softcap > 0.0f || c.bias != nullptr || !(c.scale >= __FLT_MIN__);
  if (c.first == nullptr) {
    return scored ? softmax_of<true, false>(c, factor) : softmax_of<false, false>(c, factor);
  }
  return scored ? softmax_of<true, true>(c, factor) : softmax_of<false, true>(c, factor);
}

// --- rotation --------------------------------------------------------------------------------

inline V load_row(const float* p) {
  return load(p);
}
inline V load_row(const uint16_t* p) {
  return load_bf16(p);
}
inline void store_row(float* p, V v) {
  store(p, v);
}
inline void store_row(uint16_t* p, V v) {
  store_bf16(p, v);
}

template <class T>
void rotate_all(const RotatedRows<T>& from, T* to) {
  const int64_t half = from.table_width / 2;
  const float* table = from.table;
  for (int64_t row = 0; row < from.count; ++row, to += from.width, table += from.table_width) {
    const T* key = from.rows[row];
    for (int64_t j = 0; j < half; j += W) {
      const V cosine = load(table + j), sine = load(table + half + j);
      const V first = load_row(key + j), second = load_row(key + half + j);
      store_row(to + j, _mm512_fmsub_ps(first, cosine, mul(second, sine)));
      store_row(to + half + j, fma(second, cosine, mul(first, sine)));
    }
    __builtin_memcpy(to + from.table_width, key + from.table_width,
                     static_cast<size_t>(from.width - from.table_width) * sizeof(T));
  }
}

}  // namespace

const ColumnOps<float> kColumnsF32 = {
    &nothing, &nothing, &score_panel<float>, &add_values_panel<float>, &lay_values, &asks};
const ColumnOps<uint16_t> kColumnsBF16 = {
    &nothing, &nothing, &score_panel<uint16_t>, &add_values_panel<uint16_t>, &lay_pairs, &asks};

bool softmax_column(const ColumnSoftmax<float>& column, float* factor) {
  return softmax(column, factor);
}
bool softmax_column(const ColumnSoftmax<uint16_t>& column, float* factor) {
  return softmax(column, factor);
}

void scale_column(float* sums, int64_t width, const float* factor) {
  const V by = _mm512_load_ps(factor);
  for (int64_t e = 0; e < width; ++e) {
    float* row = sums + e * kColumn;
    _mm512_store_ps(row, mul(_mm512_load_ps(row), by));
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
  for (int64_t i = 0; i < places; ++i) _mm512_store_ps(to + i * kColumn, set(bias[i] * factor));
}

void rotate_rows(const RotatedRows<float>& from, float* to) {
  rotate_all(from, to);
}
void rotate_rows(const RotatedRows<uint16_t>& from, uint16_t* to) {
  rotate_all(from, to);
}

}  // namespace mc::focused

#pragma GCC pop_options
