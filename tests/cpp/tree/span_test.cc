#include "tree/span.h"

#include <gtest/gtest.h>

namespace mc {
namespace {

TEST(Span, a_node_covers_k_to_the_lod_tokens_on_its_grid) {
  for (int lod = 0; lod <= kMaxLod; ++lod) {
    const NodeId node{static_cast<uint8_t>(lod), 3};
    EXPECT_EQ(node.span().token_count(), tokens_per_node(lod));
    EXPECT_EQ(node.span().start, 3 * tokens_per_node(lod));
  }
  EXPECT_EQ(tokens_per_node(2), 1024u);
  EXPECT_EQ((NodeId{1, 2}.span()), (Span{64, 96}));
}

TEST(Span, children_tile_their_parent_and_know_it) {
  const NodeId parent{2, 5};
  uint64_t position = parent.span().start;
  for (uint64_t which = 0; which < kFanOut; ++which) {
    const NodeId child = parent.child(which);
    EXPECT_EQ(child.parent(), parent);
    EXPECT_EQ(child.place_in_parent(), which);
    EXPECT_EQ(child.span().start, position);
    position = child.span().end;
  }
  EXPECT_EQ(position, parent.span().end);
}

TEST(Span, ancestors_and_node_at_agree) {
  const uint64_t position = 123'456'789;
  for (int lod = 0; lod <= kMaxLod; ++lod) {
    const NodeId node = node_at(position, lod);
    EXPECT_LE(node.span().start, position);
    EXPECT_GT(node.span().end, position);
    EXPECT_EQ(node_at(position, 0).ancestor(lod), node);
  }
}

TEST(Span, only_whole_nodes_are_full) {
  EXPECT_EQ(full_node_count(31, 1), 0u);
  EXPECT_EQ(full_node_count(32, 1), 1u);
  EXPECT_EQ(full_node_count(1023, 2), 0u);
  EXPECT_EQ(full_node_count(1024, 2), 1u);
  EXPECT_EQ(full_node_count(1025, 0), 1025u);
}

TEST(Span, half_open_ranges_touch_without_overlap) {
  EXPECT_FALSE((Span{0, 32}.overlaps({32, 64})));
  EXPECT_TRUE((Span{0, 33}.overlaps({32, 64})));
  EXPECT_TRUE((Span{0, 64}.contains({32, 64})));
  EXPECT_FALSE((Span{0, 63}.contains({32, 64})));
}

}  // namespace
}  // namespace mc
