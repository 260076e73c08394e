#include "search/text_index.h"

#include <gtest/gtest.h>

namespace mc {
namespace {

TEST(TextIndex, finds_the_same_before_and_after_sealing) {
  TextIndex index;
  ASSERT_TRUE(index.add(0, 0, {"the red fish", "a blue bird", ""}).is_ok());
  ASSERT_TRUE(index.add(4, 7, {"red birds and red fishes"}).is_ok());
  const std::vector<SearchHit> before = index.search("red fish", 9);
  ASSERT_EQ(before.size(), 2u);
  ASSERT_TRUE(index.seal().is_ok());
  EXPECT_EQ(index.search("red fish", 9), before);
  ASSERT_TRUE(index.add(0, 3, {"one more bird"}).is_ok());
  ASSERT_TRUE(index.seal().is_ok());
  ASSERT_TRUE(index.seal().is_ok());  // nothing to do
  EXPECT_EQ(index.search("bird", 9).size(), 3u);
  EXPECT_EQ(index.search("bird", 9, 4).size(), 1u);
  EXPECT_EQ(index.document_count(), 5u);
  EXPECT_GT(index.sealed_bytes(), 0u);
}

TEST(TextIndex, refuses_to_seal_a_block_twice) {
  TextIndex index;
  ASSERT_TRUE(index.add(0, 0, {"a", "b"}).is_ok());
  ASSERT_TRUE(index.add(0, 1, {"c"}).is_ok());
  EXPECT_EQ(index.seal().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mc
