// RowFormat: how one row lies in memory and on disk, and rows of floats from one format to another.
//
// A row of a plain type is its `width` elements. A row of a scaled type is
//
//   float32 scale[ceil(width / group_size)]   finite, >= 0
//   codes, element after element              q4: two a byte, the first in the low bits
//
// and element i is code[i] * scale[i / group_size]. A scale is the largest magnitude of its group
// divided by the largest code (127, 448 or 7), so the codes use their whole range.
#pragma once

#include <string>

#include "base/bytes.h"
#include "base/result.h"
#include "format/row_type.h"

namespace mc {

inline constexpr uint64_t kMostRowBytes = 64 << 20;
inline constexpr uint32_t kQ4GroupSize = 64;

struct RowFormat {
  RowType type = RowType::kF32;
  uint32_t width = 0;       // elements
  uint32_t group_size = 0;  // elements that share a scale; 0 for plain types

  uint64_t group_count() const {
    return group_size == 0 ? 0 : (uint64_t{width} + group_size - 1) / group_size;
  }
  uint64_t scale_bytes() const { return group_count() * sizeof(float); }
  // At most kMostRowBytes when is_valid().
  uint64_t row_bytes() const {
    return scale_bytes() + (uint64_t{width} * element_bits(type) + 7) / 8;
  }
  // A known type, a width, and a group size where there are scales and nowhere else.
  bool is_valid() const;
  // Whether values of a caller's float array can be in it.
  bool holds_floats() const { return is_float(type) || is_scaled(type); }
  bool operator==(const RowFormat&) const = default;
};

std::string describe(const RowFormat& format);  // "q8 width 576 group 64"

// What a type has when nobody chose: one scale a row, for q4 one for 64 elements.
uint32_t default_group_size(RowType type, uint32_t width);

// [width] floats of one row. holds_floats().
void decode_row(const RowFormat& format, const std::byte* row, float* values);
// Rounds to nearest. False, with nothing promised of `row`, when a scaled type met a value that is
// not finite. holds_floats().
[[nodiscard]] bool encode_row(const RowFormat& format, const float* values, std::byte* row);

// Rows of `to` from as many rows of `from`, both of the same width and of floats.
// InvalidArgument, naming the row, where encode_row says no.
Status convert_rows(const RowFormat& from, Bytes rows, const RowFormat& to, MutableBytes out);

// InvalidArgument, naming the row, for scales and codes that encode_row never makes.
Status check_rows(const RowFormat& format, Bytes rows);

}  // namespace mc
