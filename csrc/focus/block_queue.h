// BlockQueue: the blocks of all timelines, best score first, found by descending score pyramids.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "focus/score_field.h"
#include "focus/working_context.h"

namespace mc {

struct ScoredBlock {
  const Timeline* timeline;
  uint64_t block;
  float score;
};

// Visits only what lies on the way to a block that is taken: a search of the best first, in which a
// node stands for its best block and, among equals, for its last. The order is total: score, nearer
// to the end, lower partition, lower index.
class BlockQueue {
 public:
  // Blocks that score above `threshold` >= 0.
  BlockQueue(const WorkingContext& context, const ScoreField& field, float threshold);

  std::optional<ScoredBlock> pop();

 private:
  struct Item {
    float score;
    uint64_t distance_to_end;
    const Timeline* timeline;
    const ScorePyramid* pyramid;
    NodeId node;
  };

  static bool heap_order(const Item& left, const Item& right);
  void push(const Item& item);
  // The best child of `parent` that comes after `previous` (nullptr: the best of all).
  void push_next_child(const Item& of, NodeId parent, const Item* previous);

  float threshold_;
  std::vector<Item> heap_;
};

}  // namespace mc
