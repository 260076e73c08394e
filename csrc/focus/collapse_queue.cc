#include "focus/collapse_queue.h"

#include <bit>

namespace mc {
namespace {

bool heap_order(const CollapseCandidate& left, const CollapseCandidate& right) {
  return collapses_before(right, left);  // the standard heaps keep their largest on top
}

}  // namespace

CollapseQueue::CollapseQueue(const Tiling& tiling, const Timelines& timelines, Score score)
    : tiling_(tiling), timelines_(timelines), score_(std::move(score)) {
  tiling.expanded().for_each([&](uint32_t partition, NodeId node, uint32_t expanded_children) {
    const Timeline& timeline = *timelines.find(partition);
    if (expanded_children == 0) {
      heap_.push_back(candidate_of(timeline, node));
    } else if (node.lod == 2) {
      for (uint32_t left = expanded_children; left != 0; left &= left - 1) {
        const NodeId block = node.child(static_cast<uint64_t>(std::countr_zero(left)));
        if (!timeline.must_be_raw(block.index)) heap_.push_back(candidate_of(timeline, block));
      }
    }
  });
  std::make_heap(heap_.begin(), heap_.end(), heap_order);
}

std::optional<CollapseCandidate> CollapseQueue::pop() {
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), heap_order);
    const CollapseCandidate candidate = heap_.back();
    heap_.pop_back();
    // A candidate pushed twice, or whose child was expanded again, is out of date.
    if (tiling_.is_collapsible(*timelines_.find(candidate.partition), candidate.node)) {
      return candidate;
    }
  }
  return std::nullopt;
}

void CollapseQueue::push(const CollapseCandidate& candidate) {
  heap_.push_back(candidate);
  std::push_heap(heap_.begin(), heap_.end(), heap_order);
}

void CollapseQueue::on_collapsed(const Timeline& timeline, NodeId node) {
  if (node.lod == timeline.root_lod) return;
  if (tiling_.is_collapsible(timeline, node.parent())) {
    push(candidate_of(timeline, node.parent()));
  }
}

CollapseCandidate CollapseQueue::candidate_of(const Timeline& timeline, NodeId node) const {
  return {score_(timeline, node), timeline.distance_to_end(node), timeline.partition, node};
}

}  // namespace mc
