#include "focus/score_field.h"

#include <algorithm>
#include <cmath>

#include "base/str_cat.h"

namespace mc {
namespace {

float largest(const float* scores, size_t count) {
  float best = scores[0];
  for (size_t i = 1; i < count; ++i) best = scores[i] > best ? scores[i] : best;
  return best;
}

}  // namespace

ScorePyramid::ScorePyramid(std::span<const float> block_scores) {
  if (block_scores.empty()) return;
  scores_.reserve(block_scores.size() + block_scores.size() / (kFanOut - 1) + kMaxLod);
  scores_.assign(block_scores.begin(), block_scores.end());
  rows_.push_back({0, block_scores.size()});
  for (int lod = 2; lod <= kMaxLod; ++lod) {
    const Row below = rows_.back();
    const Row row{scores_.size(), (below.count + kFanOut - 1) / kFanOut};
    for (size_t i = 0; i < row.count; ++i) {
      const size_t first = i * kFanOut;
      scores_.push_back(largest(scores_.data() + below.start + first,
                                std::min<size_t>(kFanOut, below.count - first)));
    }
    rows_.push_back(row);
  }
}

float ScorePyramid::score(NodeId node, uint64_t timeline_block_count) const {
  if (rows_.empty()) return 0;
  const Row& row = rows_[node.lod - 1u];
  if (node.index >= row.count) return 0;
  const float best = scores_[row.start + node.index];
  const uint64_t end_block = std::min(node.span().end / kFanOut, timeline_block_count);
  return end_block > block_count() ? std::max(best, 0.0f) : best;
}

std::span<const float> ScorePyramid::child_scores(NodeId node) const {
  if (rows_.empty()) return {};
  const Row& row = rows_[node.lod - 2u];
  const uint64_t first = node.index * kFanOut;
  if (first >= row.count) return {};
  return {scores_.data() + row.start + first, std::min<uint64_t>(kFanOut, row.count - first)};
}

Status ScoreField::set(uint32_t partition, std::span<const float> block_scores) {
  for (size_t block = 0; block < block_scores.size(); ++block) {
    if (!std::isfinite(block_scores[block])) {
      return Status::invalid_argument(str_cat("[set] scores must be finite, got ",
                                              block_scores[block], " at block ", block,
                                              " of partition ", partition));
    }
  }
  pyramids_.insert_or_assign(partition, ScorePyramid(block_scores));
  return Status::ok();
}

const ScorePyramid* ScoreField::find(uint32_t partition) const {
  const auto found = pyramids_.find(partition);
  return found == pyramids_.end() ? nullptr : &found->second;
}

}  // namespace mc
