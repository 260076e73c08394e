#include "focus/block_set.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace mc {
namespace {

TEST(BlockSet, agrees_with_a_set_under_random_changes) {
  std::mt19937 random(9);
  BlockSet blocks;
  std::set<uint64_t> model;
  for (int step = 0; step < 3000; ++step) {
    const uint64_t start = random() % 60;
    const Span span{start, start + random() % 12};
    const bool adds = random() % 2 == 0;
    adds ? blocks.add(span) : blocks.remove(span);
    for (uint64_t block = span.start; block < span.end; ++block) {
      adds ? static_cast<void>(model.insert(block)) : static_cast<void>(model.erase(block));
    }
    for (uint64_t block = 0; block < 75; ++block) {
      ASSERT_EQ(blocks.contains(block), model.contains(block)) << block << " at step " << step;
    }
    for (size_t i = 1; i < blocks.ranges().size(); ++i) {  // sorted, and never two that touch
      ASSERT_LT(blocks.ranges()[i - 1].end, blocks.ranges()[i].start);
    }
  }
}

TEST(BlockSet, overlap_is_half_open) {
  BlockSet blocks;
  blocks.add({10, 20});
  EXPECT_TRUE(blocks.overlaps({19, 25}));
  EXPECT_FALSE(blocks.overlaps({20, 25}));
  EXPECT_FALSE(blocks.overlaps({0, 10}));
  EXPECT_TRUE(blocks.overlaps({0, 11}));
}

}  // namespace
}  // namespace mc
