#include "focus/allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace mc {
namespace {

std::vector<uint64_t> raw_blocks(const WorkingContext& context) {
  std::vector<uint64_t> blocks;
  for (const Entry& entry : context.entries()) {
    if (entry.lod == 0) blocks.push_back(entry.index);
  }
  return blocks;
}

// A context of one partition without a protected tail, and its allocator.
struct Bench {
  Bench(uint64_t budget, uint64_t tokens, uint32_t gist, AllocatorConfig config = {})
      : context(WorkingContext::create({budget, std::vector<uint32_t>(8, gist), 0}).value()),
        allocator(Allocator::create(config).value()) {
    EXPECT_TRUE(context.set_partition(0, tokens).is_ok());
    scores.resize((tokens + 31) / 32, 0.0f);
  }

  FocusPlan plan() {
    EXPECT_TRUE(field.set(0, scores).is_ok());
    return allocator.plan(context, field).value();
  }
  void refocus() {
    const Status status = context.apply(plan());
    EXPECT_TRUE(status.is_ok()) << status.to_string();
    EXPECT_TRUE(context.check().is_ok());
  }
  void ask(const std::vector<uint64_t>& blocks, float score = 1.0f) {
    std::fill(scores.begin(), scores.end(), 0.0f);
    for (const uint64_t block : blocks) scores[block] = score;
    refocus();
  }

  WorkingContext context;
  Allocator allocator;
  ScoreField field;
  std::vector<float> scores;
};

TEST(Allocator, descends_through_all_lods_in_one_plan) {
  Bench bench(8192, 1'000'000, 1);
  bench.ask({12'345, 777});
  EXPECT_EQ(raw_blocks(bench.context), (std::vector<uint64_t>{777, 12'345}));
  EXPECT_EQ(bench.context.places(), 64u + 2 * 3 * 31);
}

TEST(Allocator, follows_a_question_that_changes) {
  AllocatorConfig config;
  config.cooldown_steps = 0;
  Bench bench(160, 1'000'000, 0, config);  // five raw blocks
  bench.ask({1, 2, 3, 20'000, 30'000});
  bench.ask({9, 31'249});
  EXPECT_EQ(raw_blocks(bench.context), (std::vector<uint64_t>{3, 9, 20'000, 30'000, 31'249}));
  bench.ask({500, 501, 502, 503, 504, 505, 506});  // more than fit: those nearest to the end
  EXPECT_EQ(raw_blocks(bench.context), (std::vector<uint64_t>{502, 503, 504, 505, 506}));
  EXPECT_LT(bench.context.entries().size(), 200u);  // what no one wants was folded away
}

TEST(Allocator, a_swap_must_gain_more_than_the_hysteresis) {
  AllocatorConfig config;
  config.cooldown_steps = 0;
  Bench bench(32, 4096, 0, config);
  bench.ask({5}, 0.5f);
  bench.scores[7] = 0.59f;
  bench.scores[5] = 0.5f;
  bench.refocus();
  EXPECT_EQ(raw_blocks(bench.context), std::vector<uint64_t>{5});
  bench.scores[7] = 0.75f;
  bench.refocus();
  EXPECT_EQ(raw_blocks(bench.context), std::vector<uint64_t>{7});
}

TEST(Allocator, actions_are_not_reversed_while_they_cool_down) {
  Bench bench(32, 4096, 0);  // cooldown_steps 2
  bench.ask({5});
  for (int plan = 0; plan < 2; ++plan) {
    bench.ask({7});
    EXPECT_EQ(raw_blocks(bench.context), std::vector<uint64_t>{5});
  }
  bench.ask({7});
  EXPECT_EQ(raw_blocks(bench.context), std::vector<uint64_t>{7});
  bench.ask({5});
  EXPECT_EQ(raw_blocks(bench.context), std::vector<uint64_t>{7});
}

TEST(Allocator, negative_scores_collapse_without_need) {
  AllocatorConfig config;
  config.cooldown_steps = 0;
  Bench bench(8192, 4096, 1, config);
  bench.ask({5, 6});
  std::fill(bench.scores.begin(), bench.scores.end(), -0.1f);
  bench.refocus();
  EXPECT_EQ(raw_blocks(bench.context).size(), 2u);
  std::fill(bench.scores.begin(), bench.scores.end(), -0.3f);
  bench.refocus();
  EXPECT_EQ(bench.context.entries().size(), 1u);
  EXPECT_EQ(bench.context.places(), 0u);
}

TEST(Allocator, keeps_its_reserve_and_its_number_of_actions) {
  AllocatorConfig config;
  config.cooldown_steps = 0;
  Bench bench(320, 100'000, 0, config);
  bench.ask({1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
  EXPECT_EQ(bench.context.places(), 320u);
  config.reserve_places = 100;
  bench.allocator = Allocator::create(config).value();
  bench.refocus();
  EXPECT_EQ(raw_blocks(bench.context), (std::vector<uint64_t>{5, 6, 7, 8, 9, 10}));
  config.max_actions = 3;
  bench.allocator = Allocator::create(config).value();
  std::fill(bench.scores.begin(), bench.scores.end(), -1.0f);
  EXPECT_EQ(bench.plan().actions.size(), 3u);
}

TEST(Allocator, plans_are_equal_for_equal_input) {
  std::mt19937 random(1);
  Bench one(4096, 500'000, 1), two(4096, 500'000, 1);
  for (int question = 0; question < 20; ++question) {
    for (size_t block = 0; block < one.scores.size(); ++block) {
      one.scores[block] = static_cast<float>(random() % 17) / 8 - 1;
    }
    two.scores = one.scores;
    const FocusPlan plan = one.plan();
    ASSERT_EQ(plan.actions, two.plan().actions);
    ASSERT_TRUE(one.context.apply(plan).is_ok());
    ASSERT_TRUE(two.context.apply(plan).is_ok());
    ASSERT_TRUE(one.context.check().is_ok());
  }
}

TEST(Allocator, prefers_what_is_nearer_to_the_end_then_the_lower_partition) {
  WorkingContext context = WorkingContext::create({64, {}, 0}).value();
  ScoreField field;
  for (const uint32_t partition : {3u, 1u, 2u}) {
    ASSERT_TRUE(context.set_partition(partition, 320).is_ok());
    ASSERT_TRUE(field.set(partition, std::vector<float>(10, 0.5f)).is_ok());
  }
  const Allocator allocator = Allocator::create({}).value();
  ASSERT_TRUE(context.apply(allocator.plan(context, field).value()).is_ok());
  std::vector<std::pair<uint32_t, uint64_t>> raw;
  for (const Entry& entry : context.entries()) {
    if (entry.lod == 0) raw.emplace_back(entry.partition, entry.index);
  }
  EXPECT_EQ(raw, (std::vector<std::pair<uint32_t, uint64_t>>{{1, 9}, {2, 9}}));
}

TEST(Allocator, bad_configurations_and_scores_are_refused) {
  AllocatorConfig config;
  config.hysteresis = -1;
  EXPECT_EQ(Allocator::create(config).status().code(), StatusCode::kInvalidArgument);
  config = {};
  config.cooldown_steps = kMaxCooldownSteps + 1;
  EXPECT_EQ(Allocator::create(config).status().code(), StatusCode::kInvalidArgument);
  Bench bench(64, 320, 0);
  bench.scores.resize(11);
  ASSERT_TRUE(bench.field.set(0, bench.scores).is_ok());
  EXPECT_EQ(bench.allocator.plan(bench.context, bench.field).status().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mc
