// What the analyzer needs to know of Unicode: decoding, and which code points make a word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace mc {

inline constexpr char32_t kReplacementCharacter = 0xFFFD;

struct DecodedCodePoint {
  char32_t code;
  uint32_t byte_count;  // >= 1
};

// The code point at `at` < utf8.size(). Bytes that are not UTF-8 (overlong, surrogate, cut off, a
// stray continuation) decode to kReplacementCharacter and use up the longest valid beginning, as
// the Encoding Standard says, so the character after them is never swallowed.
DecodedCodePoint decode_utf8(std::string_view utf8, size_t at);

enum class WordKind : uint8_t {
  kSeparator = 0,  // ends a word
  kWord = 1,       // letter, digit or mark: part of a word
  kUnspaced = 2,   // of a script without spaces: a word by itself
  kAccent = 3,     // combining accent: part of a word, but not kept
};

// For code points >= 0x80. Cost: a binary search in about 700 ranges.
WordKind word_kind(char32_t code);

// Lower case without accents: U+00C9 and U+00E9 give "e". Code points >= 0x80; others unchanged.
char32_t fold_code_point(char32_t code);

}  // namespace mc
