// The element types a row may have. The codes are on disk: never renumber, never reuse.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace mc {

enum class RowType : uint8_t {
  kU8 = 1,
  kI8 = 2,
  kF16 = 3,
  kBf16 = 4,
  kF32 = 5,
  kU32 = 6,  // token ids, counts
  kU64 = 7,  // character starts; not offered to callers
  // Scaled: codes, and in front of them a float32 scale for each group of elements (row_format.h).
  kQ8 = 8,    // int8
  kE4m3 = 9,  // fp8: 4 bits of exponent, 3 of mantissa
  kQ4 = 10,   // int4, two a byte
  // 11..15 are kept for further scaled types, 16..31 for KV pages.
};

constexpr bool is_known(RowType type) {
  return type >= RowType::kU8 && type <= RowType::kQ4;
}
constexpr bool is_scaled(RowType type) {
  return type >= RowType::kQ8 && type <= RowType::kQ4;
}
// Whether elements are numbers of a caller's float array, exactly.
constexpr bool is_float(RowType type) {
  return type >= RowType::kF16 && type <= RowType::kF32;
}

// Without scales; 0 for a code that is not known.
constexpr uint32_t element_bits(RowType type) {
  switch (type) {
    case RowType::kQ4: return 4;
    case RowType::kU8:
    case RowType::kI8:
    case RowType::kQ8:
    case RowType::kE4m3: return 8;
    case RowType::kF16:
    case RowType::kBf16: return 16;
    case RowType::kF32:
    case RowType::kU32: return 32;
    case RowType::kU64: return 64;
  }
  return 0;
}

constexpr std::string_view row_type_name(RowType type) {
  switch (type) {
    case RowType::kU8: return "u8";
    case RowType::kI8: return "i8";
    case RowType::kF16: return "f16";
    case RowType::kBf16: return "bf16";
    case RowType::kF32: return "f32";
    case RowType::kU32: return "u32";
    case RowType::kU64: return "u64";
    case RowType::kQ8: return "q8";
    case RowType::kE4m3: return "e4m3";
    case RowType::kQ4: return "q4";
  }
  return "unknown";
}

constexpr std::optional<RowType> row_type_from_name(std::string_view name) {
  for (uint8_t code = 1; is_known(static_cast<RowType>(code)); ++code) {
    const auto type = static_cast<RowType>(code);
    if (row_type_name(type) == name) return type;
  }
  return std::nullopt;
}

}  // namespace mc
