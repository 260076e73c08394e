// Allocator: scores -> a plan of whole-block swaps within the budget.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "focus/entry.h"
#include "focus/score_field.h"
#include "focus/working_context.h"

namespace mc {

struct AllocatorConfig {
  float expand_threshold = 0.2f;    // >= 0; blocks above it are worth being raw
  float collapse_threshold = 0.2f;  // >= 0; nodes below its negative are collapsed without need
  float hysteresis = 0.1f;          // >= 0; what a swap must gain, in score
  uint32_t max_actions = 4096;      // of one plan
  int cooldown_steps = 2;           // plans for which an action is not reversed, 0 to 16
  uint64_t reserve_places = 0;      // kept free, for a question or for tokens to come
};

// Greedy, best first:
//   1. While more than budget - reserve is used: collapse the lowest node.
//   2. Take blocks that are not raw and score above expand_threshold, best first. A block is
//      expanded all the way down from the entry that covers it, or not at all. Where that does not
//      fit, the lowest nodes that score less are collapsed first, if the block's score exceeds the
//      sum of theirs (negative ones count as 0) by more than `hysteresis`.
//   3. Collapse nodes that score below -collapse_threshold, and nodes not worth expanding whose
//      collapse changes nothing that the model sees (it keeps the number of entries small).
// A node scores as its best block. Ties: nearer to the end of its timeline, lower partition, lower
// index; so the plan is a function of the working context and the scores.
class Allocator {
 public:
  static Result<Allocator> create(const AllocatorConfig& config);
  const AllocatorConfig& config() const { return config_; }

  // InvalidArgument: more scores than a partition has blocks.
  // Cost: O(expanded nodes + K * actions * LODs); see csrc/focus/README.md.
  Result<FocusPlan> plan(const WorkingContext& context, const ScoreField& field) const;

 private:
  explicit Allocator(const AllocatorConfig& config) : config_(config) {}

  AllocatorConfig config_;
};

}  // namespace mc
