// AMX tiles in plain C++, for the emulated twin: the source of the level `amx` runs on a CPU that
// has AVX512-BF16 and no tiles. Included behind <immintrin.h>, whose names it replaces.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace mc::emu {

constexpr int kTiles = 8, kTileRows = 16, kTileBytes = 64;

struct Tiles {
  bool held = false;
  alignas(64) uint8_t bytes[kTiles][kTileRows][kTileBytes];
};
inline thread_local Tiles tiles;

// A product between hold and release only, on tiles that are full: what the hardware would fault
// at.
inline void need_tiles() {
  if (!tiles.held) std::abort();
}

inline void tile_loadconfig(const void* config) {
  const auto* bytes = static_cast<const uint8_t*>(config);
  uint16_t row_bytes[kTiles];
  std::memcpy(row_bytes, bytes + 16, sizeof row_bytes);
  for (int i = 0; i < kTiles; ++i) {
    if (bytes[0] != 1 || row_bytes[i] != kTileBytes || bytes[48 + i] != kTileRows) std::abort();
  }
  tiles.held = true;
}

inline void tile_release() {
  tiles.held = false;
  std::memset(tiles.bytes, 0xff, sizeof tiles.bytes);  // NaN in both formats
}

inline void tile_zero(int tile) {
  need_tiles();
  std::memset(tiles.bytes[tile], 0, sizeof tiles.bytes[tile]);
}

inline void tile_loadd(int tile, const void* from, int64_t stride) {
  need_tiles();
  for (int row = 0; row < kTileRows; ++row) {
    std::memcpy(tiles.bytes[tile][row], static_cast<const char*>(from) + row * stride, kTileBytes);
  }
}

inline void tile_stored(int tile, void* to, int64_t stride) {
  need_tiles();
  for (int row = 0; row < kTileRows; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, tiles.bytes[tile][row], kTileBytes);
  }
}

inline float bf16_at(int tile, int row, int column) {
  uint16_t half;
  std::memcpy(&half, &tiles.bytes[tile][row][2 * column], sizeof half);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// sum [16][16] += left [16][16 pairs] . right [16 pairs][16].
inline void tile_dpbf16ps(int sum, int left, int right) {
  need_tiles();
  for (int row = 0; row < kTileRows; ++row) {
    float total[16];
    std::memcpy(total, tiles.bytes[sum][row], sizeof total);
    for (int pair = 0; pair < 16; ++pair) {
      for (int column = 0; column < 16; ++column) {
        for (int half = 0; half < 2; ++half) {
          total[column] +=
              bf16_at(left, row, 2 * pair + half) * bf16_at(right, pair, 2 * column + half);
        }
      }
    }
    std::memcpy(tiles.bytes[sum][row], total, sizeof total);
  }
}

}  // namespace mc::emu

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) mc::emu::tile_loadconfig(config)
#define _tile_release() mc::emu::tile_release()
#define _tile_zero(tile) mc::emu::tile_zero(tile)
#define _tile_loadd(tile, from, stride) mc::emu::tile_loadd(tile, from, stride)
#define _tile_stored(tile, to, stride) mc::emu::tile_stored(tile, to, stride)
#define _tile_dpbf16ps(sum, left, right) mc::emu::tile_dpbf16ps(sum, left, right)
