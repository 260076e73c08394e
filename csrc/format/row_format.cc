#include "format/row_format.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/checks.h"
#include "base/scalar.h"
#include "base/str_cat.h"

namespace mc {
namespace {

// Groups below would need a scale that float32 has only with few bits, if at all; they become 0.
constexpr float kLeastMagnitude = 1e-30f;

struct int4 {};  // two a byte

// Of every code: a look-up is several times faster than taking one apart.
const std::array<float, 256> kE4m3Values = [] {
  std::array<float, 256> values;
  for (size_t code = 0; code < values.size(); ++code) {
    values[code] = to_float(fp8{static_cast<uint8_t>(code)});
  }
  return values;
}();

template <class Code>
struct CodeOf;

template <>
struct CodeOf<int8_t> {
  static constexpr float kLargest = 127.f;
  static float load(const std::byte* codes, uint32_t at) { return static_cast<int8_t>(codes[at]); }
  static void store(std::byte* codes, uint32_t at, float value) {
    codes[at] = static_cast<std::byte>(from_float<int8_t>(value));
  }
};

template <>
struct CodeOf<fp8> {
  static constexpr float kLargest = kFp8Largest;
  static float load(const std::byte* codes, uint32_t at) {
    return kE4m3Values[static_cast<uint8_t>(codes[at])];
  }
  static void store(std::byte* codes, uint32_t at, float value) {
    codes[at] = std::byte{from_float<fp8>(value).bits};
  }
};

template <>
struct CodeOf<int4> {
  static constexpr float kLargest = 7.f;
  static float load(const std::byte* codes, uint32_t at) {
    const auto pair = static_cast<uint8_t>(codes[at / 2]);
    const auto high = static_cast<int8_t>(at % 2 == 0 ? pair << 4 : pair & 0xf0);
    return static_cast<float>(high >> 4);
  }
  // Elements are stored in order, so the first of a pair clears what was there.
  static void store(std::byte* codes, uint32_t at, float value) {
    const auto code = static_cast<uint8_t>(from_float<int8_t>(value) & 0xf);
    if (at % 2 == 0) {
      codes[at / 2] = std::byte{code};
    } else {
      codes[at / 2] |= static_cast<std::byte>(code << 4);
    }
  }
};

template <class Code>
void decode_scaled(const RowFormat& format, const std::byte* row, float* values) {
  const std::byte* codes = row + format.scale_bytes();
  for (uint32_t start = 0; start < format.width; row += sizeof(float)) {
    float scale;
    std::memcpy(&scale, row, sizeof(scale));
    const uint32_t end = std::min(format.width - start, format.group_size) + start;
    for (uint32_t i = start; i < end; ++i) values[i] = CodeOf<Code>::load(codes, i) * scale;
    start = end;
  }
}

template <class Code>
bool encode_scaled(const RowFormat& format, const float* values, std::byte* row) {
  constexpr float kLargest = CodeOf<Code>::kLargest;
  std::byte* codes = row + format.scale_bytes();
  for (uint32_t start = 0; start < format.width; row += sizeof(float)) {
    const uint32_t end = std::min(format.width - start, format.group_size) + start;
    float highest = 0.f;
    bool finite = true;
    for (uint32_t i = start; i < end; ++i) {
      highest = std::max(highest, std::fabs(values[i]));
      finite &= std::isfinite(values[i]);
    }
    if (!finite) return false;
    const bool is_zero = highest < kLeastMagnitude;
    const float inverse = is_zero ? 0.f : kLargest / highest;
    for (uint32_t i = start; i < end; ++i) CodeOf<Code>::store(codes, i, values[i] * inverse);
    float scale = is_zero ? 0.f : highest / kLargest;
    if (!std::isfinite(scale * kLargest)) scale = std::nextafter(scale, 0.f);
    std::memcpy(row, &scale, sizeof(scale));
    start = end;
  }
  return true;
}

template <class T>
void decode_plain(uint32_t width, const std::byte* row, float* values) {
  for (uint32_t i = 0; i < width; ++i) {
    T element;
    std::memcpy(&element, row + i * sizeof(T), sizeof(T));
    values[i] = to_float(element);
  }
}

template <class T>
void encode_plain(uint32_t width, const float* values, std::byte* row) {
  for (uint32_t i = 0; i < width; ++i) {
    const T element = from_float<T>(values[i]);
    std::memcpy(row + i * sizeof(T), &element, sizeof(T));
  }
}

}  // namespace

bool RowFormat::is_valid() const {
  if (!is_known(type) || width == 0) return false;
  if (is_scaled(type) != (group_size > 0) || group_size > width) return false;
  return row_bytes() <= kMostRowBytes;
}

std::string describe(const RowFormat& format) {
  std::string text = str_cat(row_type_name(format.type), " width ", format.width);
  return format.group_size == 0 ? text : str_cat(text, " group ", format.group_size);
}

uint32_t default_group_size(RowType type, uint32_t width) {
  if (!is_scaled(type)) return 0;
  return type == RowType::kQ4 ? std::min(width, kQ4GroupSize) : width;
}

void decode_row(const RowFormat& format, const std::byte* row, float* values) {
  switch (format.type) {
    case RowType::kF16: return decode_plain<f16>(format.width, row, values);
    case RowType::kBf16: return decode_plain<bf16>(format.width, row, values);
    case RowType::kQ8: return decode_scaled<int8_t>(format, row, values);
    case RowType::kE4m3: return decode_scaled<fp8>(format, row, values);
    case RowType::kQ4: return decode_scaled<int4>(format, row, values);
    default: std::memcpy(values, row, format.width * sizeof(float));
  }
}

bool encode_row(const RowFormat& format, const float* values, std::byte* row) {
  switch (format.type) {
    case RowType::kF16: encode_plain<f16>(format.width, values, row); return true;
    case RowType::kBf16: encode_plain<bf16>(format.width, values, row); return true;
    case RowType::kQ8: return encode_scaled<int8_t>(format, values, row);
    case RowType::kE4m3: return encode_scaled<fp8>(format, values, row);
    case RowType::kQ4: return encode_scaled<int4>(format, values, row);
    default: std::memcpy(row, values, format.width * sizeof(float)); return true;
  }
}

Status convert_rows(const RowFormat& from, Bytes rows, const RowFormat& to, MutableBytes out) {
  MC_ASSERT(from.holds_floats() && to.holds_floats() && from.width == to.width);
  const uint64_t in_bytes = from.row_bytes(), out_bytes = to.row_bytes();
  MC_ASSERT(rows.size() / in_bytes == out.size() / out_bytes);
  const uint64_t count = rows.size() / in_bytes;
  const bool aligned = reinterpret_cast<uintptr_t>(out.data()) % alignof(float) == 0;
  if (to.type == RowType::kF32 && aligned) {  // what readers ask for: no copy in between
    auto* values = reinterpret_cast<float*>(out.data());
    for (uint64_t i = 0; i < count; ++i) {
      decode_row(from, rows.data() + i * in_bytes, values + i * to.width);
    }
    return Status::ok();
  }
  std::vector<float> values(from.width);
  for (uint64_t i = 0; i < count; ++i) {
    decode_row(from, rows.data() + i * in_bytes, values.data());
    if (!encode_row(to, values.data(), out.data() + i * out_bytes)) {
      return Status::invalid_argument(
          str_cat("row ", i, " must be finite to be kept as ", row_type_name(to.type)));
    }
  }
  return Status::ok();
}

Status check_rows(const RowFormat& format, Bytes rows) {
  if (!is_scaled(format.type)) return Status::ok();
  std::vector<float> values(format.width);
  const uint64_t row_bytes = format.row_bytes();
  for (uint64_t i = 0; i < rows.size() / row_bytes; ++i) {
    const std::byte* row = rows.data() + i * row_bytes;
    for (uint64_t group = 0; group < format.group_count(); ++group) {
      float scale;
      std::memcpy(&scale, row + group * sizeof(scale), sizeof(scale));
      if (!(scale >= 0.f) || !std::isfinite(scale)) {
        return Status::invalid_argument(
            str_cat("row ", i, ": scale ", group, " must be finite and >= 0, got ", scale));
      }
    }
    decode_row(format, row, values.data());  // e4m3 has a code for NaN
    const auto bad = std::find_if(values.begin(), values.end(),
                                  [](float value) { return !std::isfinite(value); });
    if (bad != values.end()) {
      return Status::invalid_argument(
          str_cat("row ", i, ": element ", bad - values.begin(), " must be finite"));
    }
  }
  return Status::ok();
}

}  // namespace mc
