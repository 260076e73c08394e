#include "search/analyzer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "search/stemmer.h"
#include "search/unicode.h"

namespace mc {
namespace {

constexpr size_t kWordBytes = 64;

// The lower-case form of an ASCII letter or digit, 0 for every other byte.
constexpr std::array<char, 256> kAsciiWord = [] {
  std::array<char, 256> table{};
  for (int c = '0'; c <= '9'; ++c) table[static_cast<size_t>(c)] = static_cast<char>(c);
  for (int c = 'a'; c <= 'z'; ++c) table[static_cast<size_t>(c)] = static_cast<char>(c);
  for (int c = 'A'; c <= 'Z'; ++c) table[static_cast<size_t>(c)] = static_cast<char>(c + 32);
  return table;
}();

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_letter(char c) {
  return kAsciiWord[static_cast<uint8_t>(c)] >= 'a';
}

// The finaliser of MurmurHash3 (Austin Appleby, public domain): a bijection, so words of up to 8
// bytes and equal length never collide.
uint64_t mix(uint64_t value) {
  value ^= value >> 33;
  value *= 0xFF51AFD7ED558CCDull;
  value ^= value >> 33;
  value *= 0xC4CEB9FE1A85EC53ull;
  return value ^ (value >> 33);
}

// Cuts text into words and collects their hashes.
class WordScanner {
 public:
  explicit WordScanner(std::string_view text) : text_(text) { hashes_.reserve(text.size() / 6); }

  std::vector<uint64_t> scan() {
    size_t at = 0;
    while (at < text_.size()) {
      const uint8_t byte = static_cast<uint8_t>(text_[at]);
      if (const char folded = kAsciiWord[byte]; folded != 0) {
        push(folded);
        ++at;
      } else if (byte >= 0x80) {
        at += take_non_ascii(at);
      } else {
        take_separator(at++, byte);
      }
    }
    finish_word();
    return std::move(hashes_);
  }

 private:
  char next(size_t at) const { return at < text_.size() ? text_[at] : ' '; }

  void push(char c) {
    if (length_ == kWordBytes) spill();
    word_[length_++] = c;
    last_ = c;
    all_letters_ &= static_cast<uint8_t>(c - 'a') < 26;
  }

  // Makes room in a word longer than the buffer: what is in it goes into the hash so far.
  void spill() {
    absorb(kWordBytes);
    spilled_bytes_ += kWordBytes;
    length_ = 0;
  }

  void absorb(size_t length) {
    std::memset(word_.data() + length, 0, (0 - length) & 7);
    for (size_t at = 0; at < length; at += 8) {
      uint64_t eight;
      std::memcpy(&eight, word_.data() + at, sizeof(eight));
      hash_ = mix(hash_ ^ eight);
    }
  }

  void finish_word() {
    previous_unspaced_ = 0;
    end_word();
  }

  void end_word() {
    if (length_ + spilled_bytes_ == 0) return;
    if (spilled_bytes_ == 0) {
      if (apostrophe_ != 0 && length_ == apostrophe_ + 1 && last_ == 's') length_ = apostrophe_;
      if (all_letters_) length_ = stem_word(word_.data(), length_);
    }
    absorb(length_);
    hashes_.push_back(mix(hash_ ^ (length_ + spilled_bytes_)));
    length_ = spilled_bytes_ = apostrophe_ = 0;
    hash_ = 0;
    last_ = 0;
    all_letters_ = true;
  }

  void take_separator(size_t at, uint8_t byte) {
    if (last_ != 0 && joins(at, byte)) return;
    finish_word();
  }

  // Whether the separator at `at` lies inside a word or number; keeps what of it is kept.
  bool joins(size_t at, uint8_t byte) {
    if (byte == '\'' && is_letter(last_) && is_letter(next(at + 1))) {
      apostrophe_ = length_;
      return true;
    }
    if (!is_digit(last_) || !is_digit(next(at + 1))) return false;
    if (byte == '.') {
      push('.');
      return true;
    }
    return byte == ',' && is_digit(next(at + 2)) && is_digit(next(at + 3)) &&
           !is_digit(next(at + 4));
  }

  size_t take_non_ascii(size_t at) {
    const DecodedCodePoint decoded = decode_utf8(text_, at);
    switch (word_kind(decoded.code)) {
      case WordKind::kAccent: break;
      case WordKind::kWord: push_code_point(fold_code_point(decoded.code)); break;
      case WordKind::kUnspaced: take_unspaced(decoded.code); break;
      case WordKind::kSeparator:
        if (decoded.code == 0x2019) {  // the typographic apostrophe; the ASCII rule decides
          const char after = next(at + decoded.byte_count);
          if (is_letter(last_) && is_letter(after)) {
            apostrophe_ = length_;
            break;
          }
        }
        finish_word();
    }
    return decoded.byte_count;
  }

  void take_unspaced(char32_t code) {
    if (length_ + spilled_bytes_ != 0) finish_word();
    if (previous_unspaced_ != 0) {
      push_code_point(previous_unspaced_);
      push_code_point(code);
      end_word();
    }
    push_code_point(code);
    end_word();
    previous_unspaced_ = code;
  }

  void push_code_point(char32_t code) {
    if (code < 0x80) return push_byte(code);
    if (code < 0x800) {
      push_byte(0xC0 | (code >> 6));
    } else {
      if (code < 0x10000) {
        push_byte(0xE0 | (code >> 12));
      } else {
        push_byte(0xF0 | (code >> 18));
        push_byte(0x80 | ((code >> 12) & 0x3F));
      }
      push_byte(0x80 | ((code >> 6) & 0x3F));
    }
    push_byte(0x80 | (code & 0x3F));
  }

  void push_byte(char32_t byte) { push(static_cast<char>(byte)); }

  std::string_view text_;
  std::vector<uint64_t> hashes_;
  std::array<char, kWordBytes> word_;
  size_t length_ = 0;         // bytes in word_
  size_t spilled_bytes_ = 0;  // bytes of this word that left word_
  size_t apostrophe_ = 0;     // length_ when the last apostrophe was skipped
  uint64_t hash_ = 0;         // of the spilled bytes
  char last_ = 0;             // last byte of the word, 0 at its start
  bool all_letters_ = true;   // a-z only
  char32_t previous_unspaced_ = 0;
};

// Equal hashes side by side; best for a block of text.
std::vector<Term> count_sorted(std::vector<uint64_t> hashes) {
  std::sort(hashes.begin(), hashes.end());
  std::vector<Term> terms;
  terms.reserve(hashes.size());
  for (const uint64_t hash : hashes) {
    if (terms.empty() || terms.back().hash != hash) terms.push_back({hash, 0});
    ++terms.back().count;
  }
  return terms;
}

// A long text repeats its words: counting first leaves few to sort.
std::vector<Term> count_repeated(const std::vector<uint64_t>& hashes) {
  std::vector<Term> slots(2048);  // empty where the count is 0; the hashes are uniform already
  size_t used = 0;
  const auto slot_of = [&slots](uint64_t hash) -> Term& {
    size_t at = hash & (slots.size() - 1);
    while (slots[at].count != 0 && slots[at].hash != hash) at = (at + 1) & (slots.size() - 1);
    return slots[at];
  };
  for (const uint64_t hash : hashes) {
    if (2 * used > slots.size()) {
      const std::vector<Term> full = std::exchange(slots, std::vector<Term>(4 * slots.size()));
      for (const Term& term : full) {
        if (term.count != 0) slot_of(term.hash) = term;
      }
    }
    Term& slot = slot_of(hash);
    used += slot.count == 0;
    slot = {hash, slot.count + 1};
  }
  std::erase_if(slots, [](const Term& term) { return term.count == 0; });
  std::sort(slots.begin(), slots.end(),
            [](const Term& left, const Term& right) { return left.hash < right.hash; });
  return slots;
}

}  // namespace

std::vector<Term> analyze(std::string_view utf8) {
  static_assert(std::endian::native == std::endian::little, "hashes read words of 8 bytes");
  std::vector<uint64_t> hashes = WordScanner(utf8).scan();
  constexpr size_t kBlockWords = 512;
  return hashes.size() <= kBlockWords ? count_sorted(std::move(hashes)) : count_repeated(hashes);
}

uint32_t term_total(std::span<const Term> terms) {
  uint64_t total = 0;
  for (const Term& term : terms) total += term.count;
  return static_cast<uint32_t>(std::min<uint64_t>(total, std::numeric_limits<uint32_t>::max()));
}

}  // namespace mc
