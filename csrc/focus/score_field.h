// ScoreField: how much detail every block deserves, for what is being asked now.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "tree/span.h"

namespace mc {

// Scores of the blocks of one timeline, and above them the largest of every K: the range-max
// pyramid on the grid of the tree, so the score of any node is one load.
class ScorePyramid {
 public:
  explicit ScorePyramid(std::span<const float> block_scores);

  uint64_t block_count() const { return rows_.empty() ? 0 : rows_[0].count; }
  // The largest score of the blocks under `node` (LOD >= 1), of a timeline of `block_count`
  // blocks. Blocks without a score count as 0.
  float score(NodeId node, uint64_t timeline_block_count) const;
  // Scores of the children of `node` (LOD >= 2) that have any.
  std::span<const float> child_scores(NodeId node) const;

 private:
  struct Row {
    size_t start, count;
  };
  std::vector<float> scores_;
  std::vector<Row> rows_;  // [lod - 1]
};

class ScoreField {
 public:
  // One signed score a LOD-1 block, from the start of the timeline; replaces earlier ones.
  // InvalidArgument: a score that is not finite. Cost: 33/32 of a copy.
  Status set(uint32_t partition, std::span<const float> block_scores);
  void remove(uint32_t partition) { pyramids_.erase(partition); }
  void clear() { pyramids_.clear(); }

  // nullptr: no score of this partition was set, all count as 0.
  const ScorePyramid* find(uint32_t partition) const;
  size_t partition_count() const { return pyramids_.size(); }

 private:
  std::unordered_map<uint32_t, ScorePyramid> pyramids_;
};

}  // namespace mc
