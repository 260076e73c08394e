#include "search/bm25.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

namespace mc {
namespace {

struct Block {
  BlockId id;
  std::string text;
};

std::vector<Block> random_blocks(uint32_t seed, int count) {
  std::mt19937 random(seed);
  std::map<BlockId, std::string> blocks;
  for (int i = 0; i < count; ++i) {
    std::string text;
    for (auto words = random() % 20; words > 0; --words) {
      text += "w" + std::to_string(random() % 40 * (random() % 40) / 20) + " ";
    }
    blocks[{static_cast<uint32_t>(random() % 3), random() % 200}] = text;
  }
  std::vector<Block> ordered;
  for (const auto& [id, text] : blocks) ordered.push_back({id, text});
  return ordered;
}

// The formula of the header in double, over all documents at once.
std::vector<SearchHit> slow_search(const std::vector<Block>& blocks, const std::string& query) {
  double total = 0;
  for (const Block& block : blocks) total += term_total(analyze(block.text));
  const double count = static_cast<double>(blocks.size());
  std::map<BlockId, double> scores;
  for (const Term& wanted : analyze(query)) {
    std::map<BlockId, std::pair<uint32_t, uint32_t>> holding;  // occurrences, length
    for (const Block& block : blocks) {
      const std::vector<Term> terms = analyze(block.text);
      for (const Term& term : terms) {
        if (term.hash == wanted.hash) holding[block.id] = {term.count, term_total(terms)};
      }
    }
    const double n = static_cast<double>(holding.size());
    for (const auto& [id, found] : holding) {
      const double norm = 0.9 * (1 - 0.4 + 0.4 * found.second / (total / count));
      scores[id] += wanted.count * std::log(1 + (count - n + 0.5) / (n + 0.5)) * found.first /
                    (found.first + norm);
    }
  }
  std::vector<SearchHit> hits;
  for (const auto& [id, score] : scores) {
    hits.push_back({id.partition, id.block, static_cast<float>(score)});
  }
  return hits;
}

struct Index {
  std::vector<std::string> bytes;
  std::vector<PostingsView> views;
  Memtable memtable;

  std::vector<SearchHit> search(const std::string& query, size_t k,
                                std::optional<uint32_t> partition = std::nullopt) const {
    return Bm25Searcher(views, memtable.view()).search(analyze(query), k, partition);
  }
};

// Spreads blocks over `segment_count` postings and the memtable.
Index spread(const std::vector<Block>& blocks, uint32_t segment_count, uint32_t seed) {
  std::mt19937 random(seed);
  Index index;
  std::vector<PostingsBuilder> builders(segment_count);
  for (const Block& block : blocks) {
    const auto which = static_cast<uint32_t>(random() % (segment_count + 1));
    const std::vector<Term> terms = analyze(block.text);
    const Status status = which == segment_count
                              ? index.memtable.add(block.id.partition, block.id.block, terms)
                              : builders[which].add(block.id.partition, block.id.block, terms);
    EXPECT_TRUE(status.is_ok());
  }
  for (PostingsBuilder& builder : builders) index.bytes.push_back(builder.finish());
  for (const std::string& bytes : index.bytes) {
    index.views.push_back(PostingsView::parse(std::as_bytes(std::span(bytes))).value());
  }
  return index;
}

TEST(Bm25, agrees_with_the_formula) {
  const std::vector<Block> blocks = random_blocks(1, 300);
  const Index index = spread(blocks, 2, 5);
  for (const char* query : {"w1", "w3 w7 w0", "w0 w0 w2 unseen", "unseen", ""}) {
    std::vector<SearchHit> expected = slow_search(blocks, query);
    std::map<std::pair<uint32_t, uint64_t>, float> by_block;
    for (const SearchHit& hit : expected) by_block[{hit.partition, hit.block}] = hit.score;
    const std::vector<SearchHit> hits = index.search(query, 1000);
    ASSERT_EQ(hits.size(), expected.size()) << query;
    for (const SearchHit& hit : hits) {
      const float wanted = by_block.at({hit.partition, hit.block});
      EXPECT_NEAR(hit.score, wanted, 1e-5f * wanted + 1e-7f);
    }
  }
}

TEST(Bm25, hits_do_not_depend_on_how_blocks_are_spread) {
  const std::vector<Block> blocks = random_blocks(2, 400);
  const Index one = spread(blocks, 1, 1);
  for (uint32_t segments = 0; segments < 5; ++segments) {
    const Index other = spread(blocks, segments, segments);
    for (const char* query : {"w1 w2", "w0 w5 w9 w11", "w40"}) {
      EXPECT_EQ(other.search(query, 25), one.search(query, 25));  // bit for bit
      EXPECT_EQ(other.search(query, 1000), one.search(query, 1000));
    }
  }
}

TEST(Bm25, best_first_with_ties_in_block_order_and_k_is_a_prefix) {
  const Index index = spread(random_blocks(3, 300), 3, 9);
  const std::vector<SearchHit> all = index.search("w1 w2 w3", 1000);
  for (size_t i = 1; i < all.size(); ++i) {
    const auto key = [](const SearchHit& hit) {
      return std::tuple(-hit.score, hit.partition, hit.block);
    };
    EXPECT_LT(key(all[i - 1]), key(all[i]));
  }
  for (const size_t k : {size_t{0}, size_t{1}, size_t{7}, all.size()}) {
    const std::vector<SearchHit> hits = index.search("w1 w2 w3", k);
    EXPECT_EQ(hits, std::vector<SearchHit>(all.begin(), all.begin() + static_cast<ptrdiff_t>(k)));
  }
}

TEST(Bm25, a_partition_restricts_blocks_but_not_scores) {
  const Index index = spread(random_blocks(4, 300), 2, 9);
  const std::vector<SearchHit> all = index.search("w1 w2", 1000);
  for (uint32_t partition = 0; partition < 4; ++partition) {
    std::vector<SearchHit> expected;
    for (const SearchHit& hit : all) {
      if (hit.partition == partition) expected.push_back(hit);
    }
    EXPECT_EQ(index.search("w1 w2", 1000, partition), expected);
  }
}

TEST(Bm25, rare_words_beat_common_ones) {
  Index index;
  for (uint64_t block = 0; block < 100; ++block) {
    ASSERT_TRUE(
        index.memtable.add(0, block, analyze(block == 42 ? "the secret" : "the the")).is_ok());
  }
  const std::vector<SearchHit> hits = index.search("the secrets", 3);
  ASSERT_EQ(hits.size(), 3u);
  EXPECT_EQ(hits[0].block, 42u);
  EXPECT_GT(hits[0].score, 10 * hits[1].score);
}

TEST(Memtable, a_view_does_not_see_later_documents) {
  Memtable memtable;
  ASSERT_TRUE(memtable.add(0, 0, analyze("red fish")).is_ok());
  ASSERT_TRUE(memtable.add(0, 1, analyze("blue bird")).is_ok());
  const MemtableView before = memtable.view();
  const std::vector<SearchHit> hits = Bm25Searcher({}, before).search(analyze("fish bird"), 9);
  for (uint64_t block = 2; block < 50; ++block) {
    ASSERT_TRUE(memtable.add(0, block, analyze("fish fish and chips")).is_ok());
  }
  EXPECT_EQ(Bm25Searcher({}, before).search(analyze("fish bird"), 9), hits);
  EXPECT_GT(Bm25Searcher({}, memtable.view()).search(analyze("fish"), 99).size(), 40u);
}

TEST(Memtable, to_postings_equals_building_in_order) {
  const std::vector<Block> blocks = random_blocks(6, 200);
  std::vector<Block> shuffled = blocks;
  std::shuffle(shuffled.begin(), shuffled.end(), std::mt19937(1));
  Memtable memtable;
  for (const Block& block : shuffled) {
    ASSERT_TRUE(memtable.add(block.id.partition, block.id.block, analyze(block.text)).is_ok());
  }
  PostingsBuilder builder;
  for (const Block& block : blocks) {
    ASSERT_TRUE(builder.add(block.id.partition, block.id.block, analyze(block.text)).is_ok());
  }
  EXPECT_EQ(memtable.to_postings().value(), builder.finish());
  ASSERT_TRUE(memtable.add(blocks[0].id.partition, blocks[0].id.block, {}).is_ok());
  EXPECT_EQ(memtable.to_postings().status().code(), StatusCode::kInvalidArgument);
  memtable.clear();
  EXPECT_EQ(memtable.to_postings().value(), PostingsBuilder().finish());
}

TEST(Bm25, an_empty_index_has_no_hits) {
  EXPECT_TRUE(Index().search("anything", 5).empty());
  Index index;
  ASSERT_TRUE(index.memtable.add(0, 0, {}).is_ok());
  EXPECT_TRUE(index.search("anything", 5).empty());
}

}  // namespace
}  // namespace mc
