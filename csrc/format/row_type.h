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
  kU64 = 7,  // character starts; not offered either
  // 8..15 are kept for int8, fp8 and int4 rows with a scale in front, 16..31 for KV pages.
};

// 0 for a code that is not known.
constexpr uint32_t element_bytes(RowType type) {
  switch (type) {
    case RowType::kU8:
    case RowType::kI8: return 1;
    case RowType::kF16:
    case RowType::kBf16: return 2;
    case RowType::kF32:
    case RowType::kU32: return 4;
    case RowType::kU64: return 8;
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
  }
  return "unknown";
}

constexpr std::optional<RowType> row_type_from_name(std::string_view name) {
  for (uint8_t code = 1; code <= 7; ++code) {
    const auto type = static_cast<RowType>(code);
    if (row_type_name(type) == name) return type;
  }
  return std::nullopt;
}

}  // namespace mc
