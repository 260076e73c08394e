#include "search/unicode.h"

#include <algorithm>
#include <iterator>

namespace mc {
namespace {

struct WordRange {
  char32_t start, end;
  int kind;
};

struct FoldRun {
  char32_t start, end;
  uint32_t stride;
  int32_t delta;
};

#include "search/unicode_tables.inc"

template <class Range, size_t kCount>
const Range* range_of(const Range (&ranges)[kCount], char32_t code) {
  const Range* after =
      std::upper_bound(std::begin(ranges), std::end(ranges), code,
                       [](char32_t wanted, const Range& range) { return wanted < range.start; });
  if (after == std::begin(ranges)) return nullptr;
  const Range* range = after - 1;
  return code < range->end ? range : nullptr;
}

struct LeadByte {
  uint32_t byte_count;
  uint8_t second_min, second_max;  // allowed range of the second byte: no overlong, no surrogate
};

LeadByte lead_byte(uint8_t byte) {
  if (byte >= 0xC2 && byte <= 0xDF) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

DecodedCodePoint decode_utf8(std::string_view utf8, size_t at) {
  const uint8_t first = static_cast<uint8_t>(utf8[at]);
  if (first < 0x80) return {first, 1};
  const LeadByte lead = lead_byte(first);
  if (lead.byte_count == 0) return {kReplacementCharacter, 1};
  char32_t code = first & (0x7Fu >> lead.byte_count);
  for (uint32_t part = 1; part < lead.byte_count; ++part) {
    if (at + part >= utf8.size()) return {kReplacementCharacter, part};
    const uint8_t byte = static_cast<uint8_t>(utf8[at + part]);
    const uint8_t least = part == 1 ? lead.second_min : 0x80;
    const uint8_t most = part == 1 ? lead.second_max : 0xBF;
    if (byte < least || byte > most) return {kReplacementCharacter, part};
    code = (code << 6) | (byte & 0x3F);
  }
  return {code, lead.byte_count};
}

WordKind word_kind(char32_t code) {
  const WordRange* range = range_of(kWordRanges, code);
  return range == nullptr ? WordKind::kSeparator : static_cast<WordKind>(range->kind);
}

char32_t fold_code_point(char32_t code) {
  const FoldRun* run = range_of(kFoldRuns, code);
  if (run == nullptr || (code - run->start) % run->stride != 0) return code;
  return static_cast<char32_t>(static_cast<int64_t>(code) + run->delta);
}

}  // namespace mc
