#include "search/analyzer.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

#include "search/stemmer.h"
#include "search/unicode.h"

namespace mc {
namespace {

std::string stemmed(std::string word) {
  word.resize(stem_word(word.data(), word.size()));
  return word;
}

TEST(Analyzer, equal_words_meet_whatever_their_case_accents_or_form) {
  for (const auto& [left, right] : std::vector<std::pair<std::string, std::string>>{
           {"Token", "tokens"},
           {"CAFÉ", "café"},
           {"cafe\xCC\x81", "cafés"},  // decomposed and plural
           {"ÉCOLE", "ecole"},
           {"ПРИВЕТ", "привет"},
           {"ΣΟΦΊΑ", "σοφια"},
           {"making", "make"},
           {"stopped", "stopping"},
           {"cities", "city"},
           {"don't", "don’t"},
           {"Tesla's", "Tesla"},
           {"Tesla’s", "tesla"},
           {"1,234,567", "1234567"},
           {"ＡＢＣ１", "abc1"},
           {"  word\n", "(word)"},
       }) {
    EXPECT_EQ(analyze(left), analyze(right)) << left << " | " << right;
    EXPECT_EQ(analyze(left).size(), 1u) << left;
  }
}

TEST(Analyzer, different_words_stay_apart) {
  for (const auto& [left, right] : std::vector<std::pair<std::string, std::string>>{
           {"hop", "hope"},
           {"plan", "plane"},
           {"car", "care"},
           {"3.14", "314"},
           {"1990", "1991"},
           {"kind", "king"},
           {"and", "ant"},
           {"a", "b"},
       }) {
    EXPECT_NE(analyze(left), analyze(right)) << left << " | " << right;
  }
}

TEST(Analyzer, counts_each_term_once_in_hash_order) {
  const std::vector<Term> terms = analyze("red fish, blue fish; Red FISH.");
  ASSERT_EQ(terms.size(), 3u);
  EXPECT_EQ(term_total(terms), 6u);
  EXPECT_LT(terms[0].hash, terms[1].hash);
  EXPECT_LT(terms[1].hash, terms[2].hash);
  EXPECT_EQ(terms, analyze("fish fish fish blue red red"));
}

TEST(Analyzer, long_texts_count_as_their_parts) {
  std::mt19937 random(2);
  std::map<uint64_t, uint32_t> counts;
  std::string text;
  for (int word = 0; word < 60'000; ++word) {
    const std::string part = "w" + std::to_string(random() % 9000 * (random() % 9000) / 2000) + " ";
    for (const Term& term : analyze(part)) counts[term.hash] += term.count;
    text += part;
  }
  const std::vector<Term> terms = analyze(text);
  ASSERT_EQ(terms.size(), counts.size());
  size_t at = 0;
  for (const auto& [hash, count] : counts) EXPECT_EQ(terms[at++], (Term{hash, count}));
}

TEST(Analyzer, numbers_stay_whole) {
  EXPECT_EQ(analyze("3.14").size(), 1u);
  EXPECT_EQ(analyze("192.168.0.1").size(), 1u);
  EXPECT_EQ(analyze("in 1990. 7 days").size(), 4u);
  EXPECT_EQ(analyze("1,2,3").size(), 3u);  // a list, not thousands
  EXPECT_EQ(analyze("1,2345").size(), 2u);
  EXPECT_EQ(analyze("84721-3390").size(), 2u);
}

TEST(Analyzer, hashes_never_change) {
  // Stores keep these hashes: a change here needs a new kAnalyzerVersion.
  EXPECT_EQ(analyze("token")[0].hash, 0x95BA480385469087ull);
  EXPECT_EQ(analyze("a rather long hyphenless concatenatedcompoundword")[0].count, 1u);
}

TEST(Analyzer, scripts_without_spaces_give_characters_and_pairs) {
  EXPECT_EQ(term_total(analyze("東京都")), 5u);  // 3 characters, 2 pairs
  EXPECT_EQ(term_total(analyze("東 京")), 2u);
  EXPECT_EQ(term_total(analyze("東abc京")), 3u);  // no pair across a word
  const std::vector<Term> city = analyze("東京都");
  for (const Term& term : analyze("京都")) {
    EXPECT_NE(std::find(city.begin(), city.end(), term), city.end());
  }
}

TEST(Analyzer, empty_and_wordless_text_has_no_terms) {
  EXPECT_TRUE(analyze("").empty());
  EXPECT_TRUE(analyze(" \t\n.,;!?'\"").empty());
  EXPECT_TRUE(analyze("\xF0\x9F\x98\x80 \xE2\x80\x94").empty());  // an emoji, a dash
  EXPECT_TRUE(analyze(std::string(5, '\0')).empty());
}

TEST(Analyzer, invalid_utf8_separates_and_swallows_nothing) {
  for (const std::string& junk :
       {std::string("\xFF"), std::string("\xC0\xAF"), std::string("\xED\xA0\x80"),
        std::string("\xF5\x80\x80\x80"), std::string("\xE2\x82"), std::string("\x80")}) {
    EXPECT_EQ(analyze("alpha" + junk + "beta"), analyze("alpha beta")) << junk.size();
    EXPECT_EQ(analyze("alpha" + junk), analyze("alpha"));
  }
  EXPECT_EQ(decode_utf8("\xE2\x82z", 0).byte_count, 2u);
  EXPECT_EQ(decode_utf8("\xE2\x82\xAC", 0).code, 0x20ACu);
  EXPECT_EQ(decode_utf8("\xF0\x9F\x98\x80", 0).code, 0x1F600u);
}

TEST(Analyzer, any_bytes_are_analyzed_without_harm) {
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    std::string bytes(random() % 200, ' ');
    for (char& byte : bytes) byte = static_cast<char>(random());
    const std::vector<Term> terms = analyze(bytes);
    EXPECT_EQ(terms, analyze(bytes));
    EXPECT_TRUE(std::is_sorted(terms.begin(), terms.end(),
                               [](const Term& a, const Term& b) { return a.hash < b.hash; }));
  }
}

TEST(Analyzer, words_of_every_length_are_one_term_and_differ) {
  std::vector<uint64_t> hashes;
  for (size_t length = 1; length < 300; ++length) {
    const std::vector<Term> terms = analyze(std::string(length, 'q'));
    ASSERT_EQ(terms.size(), 1u) << length;
    hashes.push_back(terms[0].hash);
  }
  std::sort(hashes.begin(), hashes.end());
  EXPECT_EQ(std::unique(hashes.begin(), hashes.end()), hashes.end());
  EXPECT_EQ(analyze(std::string(20'000'000, 'x')).size(), 1u);
}

TEST(Stemmer, undoes_light_endings_only) {
  for (const auto& [word, stem] : std::vector<std::pair<std::string, std::string>>{
           {"tokens", "token"},  {"boxes", "box"},      {"city", "city"},
           {"cities", "city"},   {"glass", "glass"},    {"analysis", "analysis"},
           {"virus", "virus"},   {"making", "make"},    {"make", "make"},
           {"hopping", "hop"},   {"hoping", "hope"},    {"agreed", "agre"},
           {"agree", "agre"},    {"need", "need"},      {"used", "use"},
           {"created", "creat"}, {"create", "creat"},   {"falling", "fall"},
           {"sing", "sing"},     {"red", "red"},        {"carried", "carry"},
           {"carries", "carry"}, {"managing", "manag"}, {"managed", "manag"},
           {"manage", "manag"},  {"playing", "play"},   {"is", "is"},
           {"as", "as"},
       }) {
    EXPECT_EQ(stemmed(word), stem) << word;
  }
}

}  // namespace
}  // namespace mc
