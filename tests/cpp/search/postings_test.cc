#include "search/postings.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

#include "base/crc32c.h"

namespace mc {
namespace {

std::span<const std::byte> bytes_of(const std::string& bytes) {
  return std::as_bytes(std::span(bytes));
}

PostingsView view_of(const std::string& bytes) {
  Result<PostingsView> view = PostingsView::parse(bytes_of(bytes));
  EXPECT_TRUE(view.is_ok()) << view.status().to_string();
  return view.value();
}

std::string small_postings() {
  PostingsBuilder builder;
  EXPECT_TRUE(builder.add(0, 0, analyze("alpha beta beta")).is_ok());
  EXPECT_TRUE(builder.add(0, 1, analyze("")).is_ok());
  EXPECT_TRUE(builder.add(0, 7, analyze("beta gamma")).is_ok());
  EXPECT_TRUE(builder.add(3, 0, analyze("alpha")).is_ok());
  return builder.finish();
}

uint64_t hash_of(const char* word) {
  return analyze(word)[0].hash;
}

TEST(Postings, read_back_what_was_built) {
  const std::string bytes = small_postings();
  const PostingsView view = view_of(bytes);
  EXPECT_EQ(view.document_count(), 4u);
  EXPECT_EQ(view.total_length(), 6u);
  EXPECT_EQ(view.term_count(), 3u);
  EXPECT_EQ(view.lookup(hash_of("beta")).decode(), (std::vector<Posting>{{0, 2}, {2, 1}}));
  EXPECT_EQ(view.lookup(hash_of("alpha")).decode(), (std::vector<Posting>{{0, 1}, {3, 1}}));
  EXPECT_EQ(view.lookup(hash_of("alpha")).posting_count(), 2u);
  EXPECT_TRUE(view.lookup(hash_of("delta")).decode().empty());
  EXPECT_EQ(view.block_of(1), (BlockId{0, 1}));
  EXPECT_EQ(view.block_of(2), (BlockId{0, 7}));
  EXPECT_EQ(view.block_of(3), (BlockId{3, 0}));
  EXPECT_EQ(view.length_of(0), 3u);
  EXPECT_EQ(view.length_of(1), 0u);
  EXPECT_EQ(view.documents_of(0), (std::pair<uint32_t, uint32_t>(0, 3)));
  EXPECT_EQ(view.documents_of(3), (std::pair<uint32_t, uint32_t>(3, 4)));
  EXPECT_EQ(view.documents_of(1), (std::pair<uint32_t, uint32_t>(0, 0)));
}

TEST(Postings, of_nothing_are_valid) {
  const std::string bytes = PostingsBuilder().finish();
  const PostingsView view = view_of(bytes);
  EXPECT_EQ(view.document_count(), 0u);
  EXPECT_TRUE(view.lookup(1).decode().empty());
}

TEST(Postings, builder_is_empty_after_finish_and_gives_the_same_bytes_again) {
  PostingsBuilder builder;
  ASSERT_TRUE(builder.add(1, 1, analyze("one")).is_ok());
  const std::string first = builder.finish();
  EXPECT_EQ(builder.document_count(), 0u);
  ASSERT_TRUE(builder.add(1, 1, analyze("one")).is_ok());
  EXPECT_EQ(builder.finish(), first);
}

TEST(Postings, blocks_out_of_order_are_refused) {
  PostingsBuilder builder;
  ASSERT_TRUE(builder.add(2, 5, {}).is_ok());
  for (const auto& [partition, block] :
       std::vector<std::pair<uint32_t, uint64_t>>{{2, 5}, {2, 4}, {1, 9}}) {
    const Status status = builder.add(partition, block, {});
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("block 5"), std::string::npos) << status.message();
  }
  EXPECT_TRUE(builder.add(2, 6, {}).is_ok());
}

TEST(Postings, every_flipped_byte_is_refused) {
  const std::string bytes = small_postings();
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (const int flip : {0x01, 0x80, 0xFF}) {
      std::string corrupt = bytes;
      corrupt[at] = static_cast<char>(corrupt[at] ^ flip);
      const Result<PostingsView> view = PostingsView::parse(bytes_of(corrupt));
      ASSERT_FALSE(view.is_ok()) << at;
      EXPECT_EQ(view.status().code(), StatusCode::kCorruption) << at;
    }
  }
}

TEST(Postings, every_truncation_and_extension_is_refused) {
  const std::string bytes = small_postings();
  for (size_t length = 0; length < bytes.size(); ++length) {
    // A copy of exactly this length, so that a sanitizer sees a read beyond it.
    const std::vector<char> part(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(length));
    EXPECT_FALSE(PostingsView::parse(std::as_bytes(std::span(part))).is_ok()) << length;
  }
  EXPECT_FALSE(PostingsView::parse(bytes_of(bytes + '\0')).is_ok());
}

// Bytes whose checksums are right but whose content may be anything: what a hostile writer makes.
std::string with_checksums(std::string bytes) {
  if (bytes.size() < 64) return bytes;
  const uint32_t body = crc32c(bytes_of(bytes).subspan(64));
  std::memcpy(bytes.data() + 56, &body, 4);
  const uint32_t header = crc32c(bytes_of(bytes).first(60));
  std::memcpy(bytes.data() + 60, &header, 4);
  return bytes;
}

void read_everything(const PostingsView& view) {
  uint64_t total = 0;
  for (uint64_t term = 0; term < view.term_count(); ++term) {
    view.lookup(view.term_hash(term)).for_each([&](uint32_t document, uint32_t count) {
      ASSERT_LT(document, view.document_count());
      total += count + view.length_of(document) + view.block_of(document).block;
    });
  }
  const PostingsView views[] = {view};
  const Result<std::string> merged = merge(views);
  EXPECT_TRUE(merged.is_ok() || merged.status().code() == StatusCode::kInvalidArgument);
}

TEST(Postings, lies_with_right_checksums_stay_in_bounds) {
  const std::string bytes = small_postings();
  size_t accepted = 0;
  for (size_t at = 8; at < bytes.size(); ++at) {
    for (int value = 0; value < 256; value += 5) {
      std::string lie = bytes;
      lie[at] = static_cast<char>(value);
      lie = with_checksums(lie);
      const std::vector<char> exact(lie.begin(), lie.end());
      const Result<PostingsView> view = PostingsView::parse(std::as_bytes(std::span(exact)));
      if (!view.is_ok()) continue;
      ++accepted;
      read_everything(view.value());
    }
  }
  EXPECT_GT(accepted, 0u);
}

TEST(Postings, another_version_is_unsupported_and_names_both) {
  for (const size_t field : {size_t{8}, size_t{12}}) {
    std::string newer = small_postings();
    newer[field] = 9;
    const Result<PostingsView> view = PostingsView::parse(bytes_of(with_checksums(newer)));
    ASSERT_FALSE(view.is_ok());
    EXPECT_EQ(view.status().code(), StatusCode::kUnsupported);
    EXPECT_NE(view.status().message().find('9'), std::string::npos);
  }
}

TEST(Postings, merge_equals_building_from_the_documents) {
  std::mt19937 random(3);
  for (int round = 0; round < 30; ++round) {
    std::map<BlockId, std::vector<Term>> documents;
    for (int i = 0; i < 60; ++i) {
      std::string text;
      for (uint32_t word = random() % 8; word > 0; --word)
        text += "w" + std::to_string(random() % 9) + " ";
      documents[{static_cast<uint32_t>(random() % 4), random() % 30}] = analyze(text);
    }
    PostingsBuilder whole, without_two, parts[3];
    uint32_t part = 0;
    for (const auto& [block, terms] : documents) {
      if (random() % 4 == 0) part = static_cast<uint32_t>(random() % 3);
      ASSERT_TRUE(whole.add(block.partition, block.block, terms).is_ok());
      ASSERT_TRUE(parts[part].add(block.partition, block.block, terms).is_ok());
      if (block.partition != 2) {
        ASSERT_TRUE(without_two.add(block.partition, block.block, terms).is_ok());
      }
    }
    const std::string bytes[] = {parts[0].finish(), parts[1].finish(), parts[2].finish()};
    const PostingsView views[] = {view_of(bytes[0]), view_of(bytes[1]), view_of(bytes[2])};
    EXPECT_EQ(merge(views).value(), whole.finish());
    DocumentMask masks[3];
    for (size_t view = 0; view < 3; ++view) {
      const auto [first, end] = views[view].documents_of(2);
      for (uint32_t document = first; document < end; ++document) {
        masks[view].kill(document, views[view].length_of(document));
      }
    }
    EXPECT_EQ(merge(views, masks).value(), without_two.finish());
  }
}

TEST(Postings, merge_refuses_a_block_that_is_in_two_views) {
  const std::string bytes = small_postings();
  const PostingsView views[] = {view_of(bytes), view_of(bytes)};
  EXPECT_EQ(merge(views).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(merge({}).value(), PostingsBuilder().finish());
}

}  // namespace
}  // namespace mc
