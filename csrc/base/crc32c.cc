#include "base/crc32c.h"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mc {
namespace {

static_assert(std::endian::native == std::endian::little, "stores are little-endian");

using Table = std::array<std::array<uint32_t, 256>, 8>;

constexpr Table make_table() {
  Table table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) {
      remainder = (remainder >> 1) ^ ((remainder & 1) ? 0x82F63B78u : 0u);
    }
    table[0][byte] = remainder;
  }
  for (uint32_t byte = 0; byte < 256; ++byte) {
    for (int slice = 1; slice < 8; ++slice) {
      const uint32_t previous = table[slice - 1][byte];
      table[slice][byte] = (previous >> 8) ^ table[0][previous & 0xFF];
    }
  }
  return table;
}

constexpr Table kTable = make_table();

uint64_t load_u64(const std::byte* bytes) {
  uint64_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

#if defined(__x86_64__)
// The instruction takes 8 bytes with a latency of 3 cycles, so three independent streams keep it
// busy. Three of these fill a page of 4 KiB but for 16 bytes.
constexpr size_t kStreamBytes = 1360;

// Appending zeros is linear over GF(2): the state after kStreamBytes zeros is the exclusive or of
// four entries, one for each byte of the state before.
using ShiftTable = std::array<std::array<uint32_t, 256>, 4>;

ShiftTable make_shift_table() {
  std::array<uint32_t, 32> basis{};
  for (int bit = 0; bit < 32; ++bit) {
    uint32_t state = uint32_t{1} << bit;
    for (size_t i = 0; i < kStreamBytes; ++i) state = (state >> 8) ^ kTable[0][state & 0xFF];
    basis[bit] = state;
  }
  ShiftTable table{};
  for (int byte = 0; byte < 4; ++byte) {
    for (uint32_t value = 0; value < 256; ++value) {
      for (int bit = 0; bit < 8; ++bit) {
        if (value >> bit & 1) table[byte][value] ^= basis[8 * byte + bit];
      }
    }
  }
  return table;
}

uint32_t shift(const ShiftTable& table, uint32_t state) {
  return table[0][state & 0xFF] ^ table[1][state >> 8 & 0xFF] ^ table[2][state >> 16 & 0xFF] ^
         table[3][state >> 24];
}

__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(std::span<const std::byte> bytes,
                                                        uint32_t checksum) {
  static const ShiftTable table = make_shift_table();
  uint64_t state = ~checksum;
  const std::byte* at = bytes.data();
  size_t left = bytes.size();
  for (; left >= 3 * kStreamBytes; at += 3 * kStreamBytes, left -= 3 * kStreamBytes) {
    uint64_t second = 0, third = 0;
    for (size_t i = 0; i < kStreamBytes; i += 8) {
      state = _mm_crc32_u64(state, load_u64(at + i));
      second = _mm_crc32_u64(second, load_u64(at + kStreamBytes + i));
      third = _mm_crc32_u64(third, load_u64(at + 2 * kStreamBytes + i));
    }
    state = shift(table, static_cast<uint32_t>(state)) ^ second;
    state = shift(table, static_cast<uint32_t>(state)) ^ third;
  }
  for (; left >= 8; at += 8, left -= 8) state = _mm_crc32_u64(state, load_u64(at));
  uint32_t tail = static_cast<uint32_t>(state);
  for (; left > 0; ++at, --left) tail = _mm_crc32_u8(tail, static_cast<uint8_t>(*at));
  return ~tail;
}
#endif

}  // namespace

uint32_t crc32c_portable(std::span<const std::byte> bytes, uint32_t checksum) {
  uint32_t state = ~checksum;
  size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8) {
    const uint64_t word = load_u64(bytes.data() + at) ^ state;
    state = 0;
    for (int slice = 0; slice < 8; ++slice) {
      state ^= kTable[7 - slice][(word >> (8 * slice)) & 0xFF];
    }
  }
  for (; at < bytes.size(); ++at) {
    state = (state >> 8) ^ kTable[0][(state ^ static_cast<uint8_t>(bytes[at])) & 0xFF];
  }
  return ~state;
}

uint32_t crc32c(std::span<const std::byte> bytes, uint32_t checksum) {
#if defined(__x86_64__)
  static const bool has_sse42 = __builtin_cpu_supports("sse4.2");
  if (has_sse42) return crc32c_sse42(bytes, checksum);
#endif
  return crc32c_portable(bytes, checksum);
}

}  // namespace mc
