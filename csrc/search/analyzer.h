// Text -> terms: the words that BM25 counts.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace mc {

// Written into every postings file. Raise it with any change of what analyze() returns: terms of
// two versions do not meet.
inline constexpr uint32_t kAnalyzerVersion = 1;

struct Term {
  uint64_t hash;   // of the folded, stemmed word; the word itself is not kept
  uint32_t count;  // occurrences in the text, >= 1

  bool operator==(const Term&) const = default;
};

// The terms of a text, sorted by hash, each once.
//
// A word is a run of letters, digits and marks, lower-cased and without accents; English plurals,
// -ing and -ed are undone (stemmer.h). A number stays whole: 3.14 and 192.168.0.1 are one word,
// 1,234 is 1234. An apostrophe joins (don't -> dont), 's is dropped. Scripts without spaces (Han,
// Kana, Thai, ...) give every character and every pair of neighbours. Bytes that are not UTF-8
// separate words. Words longer than 64 bytes are kept whole but not stemmed.
// Cost: one pass; see csrc/search/README.md for MB/s. Thread safe.
std::vector<Term> analyze(std::string_view utf8);

// The length of a document with these terms, in words.
uint32_t term_total(std::span<const Term> terms);

}  // namespace mc
