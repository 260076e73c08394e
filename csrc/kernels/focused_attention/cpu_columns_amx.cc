// Columns on AMX tiles, for bf16: the products. What lies between them is cpu_columns_avx512.cc's.

// GCC 12's own intrinsics headers initialise values with themselves (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels/focused_attention/cpu_columns.h"
#ifdef MC_EMU
#include "amx_emu.h"
#endif

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
void score_columns(const Panel<uint16_t>& p) {
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
void add_values_columns(const Panel<uint16_t>& p) {
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
      const uint32_t* values = p.values[k] + e * kColumn;
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

void hold_tiles() {
  _tile_loadconfig(&kEightFullTiles);
}

void release_tiles() {
  _tile_release();
}

void score_panel(const Panel<uint16_t>& panel) {
  finish_stores();
  panel.columns == 2 ? score_columns<true>(panel) : score_columns<false>(panel);
}

void add_values_panel(const Panel<uint16_t>& panel) {
  finish_stores();
  panel.columns == 2 ? add_values_columns<true>(panel) : add_values_columns<false>(panel);
}

// 32 rows of values to [E][16] pairs. A register takes 8 values of four rows, 8 rows apart; within
// its lanes of 128 bits these stand transposed after three rounds of unpacking.
const uint32_t* transpose_values(const uint16_t* const* rows, bool, int64_t width, uint32_t* room) {
  uint32_t* to = room;
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
  return room;
}

int64_t asks(int64_t, int64_t places, int64_t width) {
  return 2 * (places / 32) * (width / 32);
}

constexpr ColumnOps<uint16_t> kColumnsAmx = {&hold_tiles,       &release_tiles,    &score_panel,
                                             &add_values_panel, &transpose_values, &asks};

}  // namespace

const ColumnOps<uint16_t>& amx_columns() {
  return kColumnsAmx;
}

}  // namespace mc::focused

#pragma GCC pop_options
