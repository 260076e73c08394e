// CollapseQueue: what can be collapsed, lowest score first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "focus/tiling.h"

namespace mc {

// Timelines in order of their partition, found in constant time.
class Timelines {
 public:
  Timelines() = default;
  Timelines(Timelines&&) = default;
  Timelines& operator=(Timelines&&) = default;

  Timeline& insert(Timeline timeline) {
    Timeline& kept = ordered_[timeline.partition] = std::move(timeline);
    by_partition_[kept.partition] = &kept;
    return kept;
  }
  void erase(uint32_t partition) {
    ordered_.erase(partition);
    by_partition_.erase(partition);
  }
  Timeline* find(uint32_t partition) {
    const auto found = by_partition_.find(partition);
    return found == by_partition_.end() ? nullptr : found->second;
  }
  const Timeline* find(uint32_t partition) const {
    return const_cast<Timelines*>(this)->find(partition);
  }
  size_t size() const { return ordered_.size(); }
  auto begin() const { return ordered_.begin(); }
  auto end() const { return ordered_.end(); }

 private:
  std::map<uint32_t, Timeline> ordered_;
  std::unordered_map<uint32_t, Timeline*> by_partition_;  // nodes of a map do not move
};

struct CollapseCandidate {
  float score;
  uint64_t distance_to_end;
  uint32_t partition;
  NodeId node;
};

// The exact reverse of the order in which the allocator expands: lowest score, then farthest from
// the end of its timeline, then higher partition, then higher index.
inline bool collapses_before(const CollapseCandidate& left, const CollapseCandidate& right) {
  if (left.score != right.score) return left.score < right.score;
  if (left.distance_to_end != right.distance_to_end) {
    return left.distance_to_end > right.distance_to_end;
  }
  if (left.partition != right.partition) return left.partition > right.partition;
  if (left.node.lod != right.node.lod) return left.node.lod < right.node.lod;
  return left.node.index > right.node.index;
}

// Works on a tiling that its user changes: tell it of every collapse.
class CollapseQueue {
 public:
  using Score = std::function<float(const Timeline&, NodeId)>;

  CollapseQueue(const Tiling& tiling, const Timelines& timelines, Score score);

  // The lowest candidate that is still collapsible, taken out.
  std::optional<CollapseCandidate> pop();
  void push(const CollapseCandidate& candidate);
  // After `node` was collapsed its parent may be collapsible.
  void on_collapsed(const Timeline& timeline, NodeId node);

 private:
  CollapseCandidate candidate_of(const Timeline& timeline, NodeId node) const;

  const Tiling& tiling_;
  const Timelines& timelines_;
  Score score_;
  std::vector<CollapseCandidate> heap_;
};

}  // namespace mc
