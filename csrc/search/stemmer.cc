#include "search/stemmer.h"

#include <string_view>

namespace mc {
namespace {

bool is_vowel(const char* word, size_t at) {
  switch (word[at]) {
    case 'a':
    case 'e':
    case 'i':
    case 'o':
    case 'u': return true;
    case 'y': return at > 0 && !is_vowel(word, at - 1);
    default: return false;
  }
}

bool has_vowel(const char* word, size_t length) {
  for (size_t at = 0; at < length; ++at) {
    if (is_vowel(word, at)) return true;
  }
  return false;
}

// Porter's measure: how often a vowel is followed by a consonant, roughly syllables.
int measure(const char* word, size_t length) {
  int count = 0;
  for (size_t at = 1; at < length; ++at) {
    count += is_vowel(word, at - 1) && !is_vowel(word, at);
  }
  return count;
}

// Consonant, vowel, consonant other than w, x, y: "hop" wants its e back, "play" does not.
bool ends_short(const char* word, size_t length) {
  if (length == 2) return is_vowel(word, 0) && !is_vowel(word, 1);
  if (length < 3) return false;
  const char last = word[length - 1];
  return !is_vowel(word, length - 3) && is_vowel(word, length - 2) && !is_vowel(word, length - 1) &&
         last != 'w' && last != 'x' && last != 'y';
}

bool ends_with(const char* word, size_t length, std::string_view ending) {
  return std::string_view(word, length).ends_with(ending);
}

size_t drop_plural(char* word, size_t length) {
  if (length < 4 || word[length - 1] != 's') return length;
  if (ends_with(word, length, "ies")) {
    if (length == 4) return length - 1;  // ties, lies
    word[length - 3] = 'y';
    return length - 2;
  }
  const char before = word[length - 2];
  return before == 's' || before == 'u' || before == 'i' ? length : length - 1;
}

// After -ing or -ed is gone: "stopp" -> "stop", "creat" -> "create", "mak" -> "make".
size_t mend_ending(char* word, size_t length) {
  const char last = word[length - 1];
  if (length > 2 && last == word[length - 2] && !is_vowel(word, length - 1)) {
    return last == 'l' || last == 's' || last == 'z' ? length : length - 1;
  }
  const bool wants_e = ends_with(word, length, "at") || ends_with(word, length, "bl") ||
                       ends_with(word, length, "iz") ||
                       (measure(word, length) == 1 && ends_short(word, length));
  if (wants_e) word[length++] = 'e';
  return length;
}

size_t drop_ing_ed(char* word, size_t length) {
  if (ends_with(word, length, "eed")) return measure(word, length - 3) > 0 ? length - 1 : length;
  if (ends_with(word, length, "ied") && length > 4) {
    word[length - 3] = 'y';
    return length - 2;
  }
  size_t stem = length;
  if (ends_with(word, length, "ing")) stem = length - 3;
  if (ends_with(word, length, "ed")) stem = length - 2;
  if (stem == length || stem < 2 || !has_vowel(word, stem)) return length;
  return mend_ending(word, stem);
}

size_t drop_silent_e(const char* word, size_t length) {
  if (length < 4 || word[length - 1] != 'e') return length;
  const int syllables = measure(word, length - 1);
  const bool silent = syllables > 1 || (syllables == 1 && !ends_short(word, length - 1));
  return silent ? length - 1 : length;
}

}  // namespace

size_t stem_word(char* word, size_t length) {
  if (length < 4) return length;
  length = drop_plural(word, length);
  length = drop_ing_ed(word, length);
  return drop_silent_e(word, length);
}

}  // namespace mc
