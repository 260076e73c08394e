#include "focus/working_context.h"

#include <gtest/gtest.h>

#include <numeric>

namespace mc {
namespace {

WorkingContext context_of(uint64_t budget,
                          std::vector<uint32_t> gists = std::vector<uint32_t>(8, 1),
                          uint64_t tail = 128) {
  return WorkingContext::create({budget, std::move(gists), tail}).value();
}

// LOD of each entry with its count, in order: "2x30 1x18 0x5".
std::string shape_of(const WorkingContext& context) {
  std::string shape;
  const std::vector<Entry> entries = context.entries();
  for (size_t at = 0; at < entries.size();) {
    size_t end = at;
    while (end < entries.size() && entries[end].lod == entries[at].lod) ++end;
    shape += (at ? " " : "") + std::to_string(entries[at].lod) + "x" + std::to_string(end - at);
    at = end;
  }
  return shape;
}

#define EXPECT_OK(expression)                            \
  do {                                                   \
    const Status status_ = (expression);                 \
    EXPECT_TRUE(status_.is_ok()) << status_.to_string(); \
  } while (false)

TEST(WorkingContext, tiles_a_new_partition_with_the_coarsest_full_nodes) {
  WorkingContext context = context_of(8192, std::vector<uint32_t>(8, 1), 0);
  EXPECT_OK(context.set_partition(0, 1'000'000));
  EXPECT_EQ(shape_of(context), "3x30 2x16 1x18");  // 983,040 + 16,384 + 576
  EXPECT_EQ(context.places(), 64u);
  EXPECT_OK(context.set_partition(3, 70));
  EXPECT_EQ(shape_of(context), "3x30 2x16 1x21");  // two gists, and 6 tokens left out
  EXPECT_EQ(context.places(), 66u);
  EXPECT_EQ(context.entries().back(), (Entry{3, 1, 2, 64, 70, 0}));
  EXPECT_OK(context.check());
}

TEST(WorkingContext, keeps_the_protected_tail_raw_and_absorbs_the_cut_block) {
  WorkingContext context = context_of(8192);
  EXPECT_OK(context.set_partition(0, 1024 + 128 + 5));
  // The tail starts within block 32, which joins it.
  EXPECT_EQ(shape_of(context), "2x1 0x5");
  EXPECT_EQ(context.places(), 1u + 4 * 32 + 5);
  EXPECT_OK(context.check());
}

TEST(WorkingContext, gists_that_are_not_shown_make_history_free) {
  WorkingContext context = context_of(256, std::vector<uint32_t>(8, 0), 0);
  for (uint32_t partition = 0; partition < 5000; ++partition) {
    EXPECT_OK(context.set_partition(partition, 1000 + partition));
  }
  EXPECT_EQ(context.entries().size(), 5000u);
  EXPECT_EQ(context.places(), 0u);
  EXPECT_EQ(context.tiling().expanded().node_count(), 0u);
  EXPECT_OK(context.check());
}

TEST(WorkingContext, more_partitions_than_places_are_left_out_not_refused) {
  WorkingContext context = context_of(100, std::vector<uint32_t>(8, 1), 0);
  for (uint32_t partition = 0; partition < 300; ++partition) {
    EXPECT_OK(context.set_partition(partition, 960));
    EXPECT_LE(context.places(), 100u);
  }
  EXPECT_EQ(context.places(), 90u);  // three partitions of 30 gists; the rest has no room
  EXPECT_OK(context.check());
}

TEST(WorkingContext, token_by_token_never_exceeds_the_budget) {
  WorkingContext context = context_of(200);
  for (uint64_t tokens = 1; tokens <= 5000; ++tokens) {
    ASSERT_TRUE(context.set_partition(0, tokens).is_ok()) << tokens;
    ASSERT_LE(context.places(), 200u);
    if (tokens % 61 == 0) {
      ASSERT_TRUE(context.check().is_ok()) << tokens;
    }
  }
  EXPECT_EQ(context.entries().back().lod, 0);
}

TEST(WorkingContext, what_cannot_fit_is_over_budget_and_changes_nothing) {
  WorkingContext context = context_of(300);
  EXPECT_OK(context.set_partition(0, 10'000));
  const std::vector<Entry> before = context.entries();
  const Status status = context.set_partition(1, 10'000, 200);
  EXPECT_EQ(status.code(), StatusCode::kOverBudget);
  EXPECT_NE(status.message().find("budget_places is 300"), std::string::npos) << status.message();
  EXPECT_EQ(context.pin(0, 0, 9000).code(), StatusCode::kOverBudget);
  EXPECT_EQ(context.pin(0, 0, 320).code(), StatusCode::kOverBudget);
  EXPECT_EQ(context.set_partition(0, 9'999).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(context.set_partition(2, kMaxTimelineTokens + 1).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(context.remove_partition(2).code(), StatusCode::kNotFound);
  EXPECT_EQ(context.entries(), before);
  EXPECT_OK(context.check());
}

TEST(WorkingContext, longest_timelines_are_handled) {
  WorkingContext context = context_of(4096);
  EXPECT_OK(context.set_partition(0, kMaxTimelineTokens));
  EXPECT_OK(context.set_partition(1, kMaxTimelineTokens - 1));
  EXPECT_OK(context.pin(0, kMaxTimelineTokens / 3, kMaxTimelineTokens / 3 + 1));
  EXPECT_OK(context.check());
  EXPECT_LT(context.entries().size(), 4096u);
}

TEST(WorkingContext, expand_and_collapse_are_inverse_whole_block_swaps) {
  WorkingContext context = context_of(8192, std::vector<uint32_t>(8, 1), 0);
  EXPECT_OK(context.set_partition(0, 4096));
  const std::vector<Entry> before = context.entries();
  EXPECT_OK(context.apply(
      {{{FocusActionKind::kExpand, 0, 2, 1, 0}, {FocusActionKind::kExpand, 0, 1, 40, 0}}}));
  EXPECT_EQ(shape_of(context), "2x1 1x8 0x1 1x23 2x2");
  EXPECT_EQ(context.places(), 4u + 31 + 31);
  EXPECT_OK(context.apply(
      {{{FocusActionKind::kCollapse, 0, 1, 40, 0}, {FocusActionKind::kCollapse, 0, 2, 1, 0}}}));
  EXPECT_EQ(context.entries(), before);
  EXPECT_EQ(context.step(), 2u);
}

TEST(WorkingContext, a_plan_is_carried_out_whole_or_not_at_all) {
  WorkingContext context = context_of(100, std::vector<uint32_t>(8, 1), 32);
  EXPECT_OK(context.set_partition(0, 2048));
  const std::vector<Entry> before = context.entries();
  const FocusAction good{FocusActionKind::kCollapse, 0, 2, 0, 0};
  const FocusAction expand{FocusActionKind::kExpand, 0, 2, 0, 0};
  for (const FocusAction& bad :
       std::vector<FocusAction>{good,  // not expanded: its children are no entries
                                {FocusActionKind::kCollapse, 0, 1, 63, 0},  // the protected tail
                                {FocusActionKind::kCollapse, 0, 2, 1, 0},   // a child is expanded
                                {FocusActionKind::kExpand, 0, 1, 5, 0},  // within a collapsed node
                                {FocusActionKind::kExpand, 0, 0, 5, 0},  // tokens have no children
                                {FocusActionKind::kExpand, 0, 9, 0, 0},  // above the root
                                {FocusActionKind::kExpand, 0, 2, 2, 0},  // behind the end
                                {FocusActionKind::kExpand, 5, 2, 0, 0},  // no such partition
                                {FocusActionKind::kExpand, 0, 8, UINT64_MAX, 0},
                                {static_cast<FocusActionKind>(7), 0, 2, 0, 0}}) {
    EXPECT_EQ(context.apply({{expand, good, bad}}).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(context.entries(), before);
  }
  const FocusAction raw{FocusActionKind::kExpand, 0, 1, 3, 0};
  EXPECT_EQ(context.apply({{expand, raw}}).code(), StatusCode::kOverBudget);
  EXPECT_EQ(context.entries(), before);
  EXPECT_EQ(context.step(), 0u);
  EXPECT_OK(context.check());
}

TEST(WorkingContext, pins_are_raw_and_exclusions_are_not) {
  WorkingContext context = context_of(2048, std::vector<uint32_t>(8, 1), 64);
  EXPECT_OK(context.set_partition(0, 100'000));
  EXPECT_OK(context.pin(0, 5000, 5001));
  const FocusAction collapse{FocusActionKind::kCollapse, 0, 1, 5000 / 32, 0};
  EXPECT_EQ(context.apply({{collapse}}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(context.exclude(0, 4990, 5001).code(), StatusCode::kInvalidArgument);
  EXPECT_OK(context.unpin(0, 5000, 5001));
  EXPECT_OK(context.exclude(0, 5000, 5001));
  const FocusAction expand{FocusActionKind::kExpand, 0, 1, 5000 / 32, 0};
  EXPECT_EQ(context.apply({{expand}}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(context.pin(0, 5000, 5010).code(), StatusCode::kInvalidArgument);
  EXPECT_OK(context.include(0, 5000, 5001));
  EXPECT_OK(context.apply({{expand}}));
  // Exclusion beats the protected tail; inclusion gives it back.
  EXPECT_OK(context.exclude(0, 99'990, 100'000));
  EXPECT_NE(context.entries().back().lod, 0);
  EXPECT_OK(context.include(0, 99'990, 100'000));
  EXPECT_EQ(context.entries().back().lod, 0);
  EXPECT_OK(context.check());
}

TEST(WorkingContext, bad_configurations_are_refused) {
  EXPECT_EQ(WorkingContext::create({1, std::vector<uint32_t>(9, 1), 0}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(WorkingContext::create({1, {33}, 0}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(WorkingContext::create({uint64_t{1} << 40, {1}, 0}).status().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mc
