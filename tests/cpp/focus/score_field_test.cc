#include "focus/score_field.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace mc {
namespace {

std::vector<float> random_scores(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> scores(count);
  for (float& score : scores) score = static_cast<float>(random() % 2001) / 1000 - 1;
  return scores;
}

TEST(ScoreField, a_node_scores_as_its_best_block) {
  for (const size_t count : {1, 31, 32, 33, 1024, 1025, 40'000}) {
    const std::vector<float> scores = random_scores(count, 3);
    const ScorePyramid pyramid(scores);
    for (int lod = 1; lod <= kMaxLod; ++lod) {
      const uint64_t each = tokens_per_node(lod) / kFanOut;
      for (uint64_t index = 0; index * each < count; ++index) {
        const auto first = scores.begin() + static_cast<ptrdiff_t>(index * each);
        const auto last =
            scores.begin() + static_cast<ptrdiff_t>(std::min(count, (index + 1) * each));
        ASSERT_EQ(pyramid.score({static_cast<uint8_t>(lod), index}, count),
                  *std::max_element(first, last));
      }
    }
  }
}

TEST(ScoreField, blocks_without_a_score_count_as_zero) {
  const std::vector<float> scores(40, -1.0f);
  const ScorePyramid pyramid(scores);
  EXPECT_EQ(pyramid.score({1, 39}, 50), -1.0f);
  EXPECT_EQ(pyramid.score({1, 40}, 50), 0.0f);
  EXPECT_EQ(pyramid.score({2, 0}, 50), -1.0f);
  EXPECT_EQ(pyramid.score({2, 1}, 50), 0.0f);   // blocks 40 to 49 have none
  EXPECT_EQ(pyramid.score({2, 1}, 40), -1.0f);  // there are no such blocks
  EXPECT_EQ(ScorePyramid({}).score({3, 0}, 50), 0.0f);
}

TEST(ScoreField, refuses_what_is_not_finite_and_says_where) {
  ScoreField field;
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const std::vector<float> scores = {0.0f, 1.0f, bad};
    const Status status = field.set(4, scores);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("block 2 of partition 4"), std::string::npos);
  }
  EXPECT_EQ(field.find(4), nullptr);
}

}  // namespace
}  // namespace mc
