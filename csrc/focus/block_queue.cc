#include "focus/block_queue.h"

#include <algorithm>
#include <cmath>

namespace mc {

BlockQueue::BlockQueue(const WorkingContext& context, const ScoreField& field, float threshold)
    : threshold_(threshold) {
  for (const auto& [partition, timeline] : context.timelines()) {
    const ScorePyramid* pyramid = field.find(partition);
    if (pyramid == nullptr) continue;
    const NodeId root = timeline.root();
    const float score = pyramid->score(root, timeline.block_count());
    if (score > threshold) heap_.push_back({score, 0, &timeline, pyramid, root});
  }
  std::make_heap(heap_.begin(), heap_.end(), heap_order);
}

// Whether `left` comes out after `right`.
bool BlockQueue::heap_order(const Item& left, const Item& right) {
  if (left.score != right.score) return left.score < right.score;
  if (left.distance_to_end != right.distance_to_end) {
    return left.distance_to_end > right.distance_to_end;
  }
  // Two items of one timeline never end at the same place.
  return left.timeline->partition > right.timeline->partition;
}

void BlockQueue::push(const Item& item) {
  heap_.push_back(item);
  std::push_heap(heap_.begin(), heap_.end(), heap_order);
}

std::optional<ScoredBlock> BlockQueue::pop() {
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), heap_order);
    const Item item = heap_.back();
    heap_.pop_back();
    if (item.node.lod < item.timeline->root_lod) {
      push_next_child(item, item.node.parent(), &item);
    }
    if (item.node.lod == 1) return ScoredBlock{item.timeline, item.node.index, item.score};
    push_next_child(item, item.node, nullptr);
  }
  return std::nullopt;
}

void BlockQueue::push_next_child(const Item& of, NodeId parent, const Item* previous) {
  const std::span<const float> scores = of.pyramid->child_scores(parent);
  const float below = previous == nullptr ? INFINITY : previous->score;
  const size_t place = previous == nullptr ? 0 : previous->node.place_in_parent();
  float best = threshold_;
  size_t best_at = scores.size();
  for (size_t at = 0; at < scores.size(); ++at) {
    // Among equals the last child comes first, so what is left of an equal score is before it.
    const bool is_left = scores[at] < below || (scores[at] == below && at < place);
    if (is_left && scores[at] >= best && scores[at] > threshold_) {
      best = scores[at];
      best_at = at;
    }
  }
  if (best_at == scores.size()) return;
  const NodeId child = parent.child(best_at);
  push({best, of.timeline->distance_to_end(child), of.timeline, of.pyramid, child});
}

}  // namespace mc
