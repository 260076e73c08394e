// One partition as the working context knows it, and what its nodes cost.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "focus/block_set.h"
#include "tree/span.h"

namespace mc {

// The root of a timeline is the lowest node of LOD >= 2 that covers all of it. A node whose span
// reaches past the end of the timeline is unfinished: it has no gist, so it takes no place and
// stands for tokens that are left out of the model's view.
struct Timeline {
  uint32_t partition = 0;
  uint64_t token_count = 0;  // >= 1
  uint64_t protected_tail_tokens = 0;
  int root_lod = 2;
  BlockSet pinned;    // always raw
  BlockSet excluded;  // never raw

  NodeId root() const { return {static_cast<uint8_t>(root_lod), 0}; }
  uint64_t block_count() const { return (token_count + kFanOut - 1) / kFanOut; }
  // The tail absorbs the block that its start cuts.
  uint64_t first_protected_block() const {
    if (protected_tail_tokens == 0) return block_count();
    return (token_count - std::min(token_count, protected_tail_tokens)) / kFanOut;
  }
  bool may_be_raw(uint64_t block) const { return excluded.empty() || !excluded.contains(block); }
  bool must_be_raw(uint64_t block) const {
    if (!may_be_raw(block)) return false;
    return block >= first_protected_block() || (!pinned.empty() && pinned.contains(block));
  }

  Span span_of(NodeId node) const {
    const Span span = node.span();
    return {span.start, std::min(span.end, token_count)};
  }
  bool is_full(NodeId node) const { return node.span().end <= token_count; }
  // Children that begin before the end of the timeline; LOD >= 2.
  uint64_t child_count(NodeId node) const {
    const uint64_t tokens = span_of(node).token_count();
    const uint64_t each = tokens_per_node(node.lod - 1);
    return (tokens + each - 1) / each;
  }
  // From the end of the node to the end of the timeline, in tokens.
  uint64_t distance_to_end(NodeId node) const {
    return token_count - std::min(node.span().end, token_count);
  }
};

// Places that nodes and raw blocks take in the working context.
class PlaceCosts {
 public:
  // LODs at the top whose gists take no place are as good as LODs without gists.
  explicit PlaceCosts(std::vector<uint32_t> gist_places) : gist_places_(std::move(gist_places)) {
    while (!gist_places_.empty() && gist_places_.back() == 0) gist_places_.pop_back();
  }

  int gist_lods() const { return static_cast<int>(gist_places_.size()); }
  int64_t of_gist(int lod) const { return lod <= gist_lods() ? gist_places_[lod - 1u] : 0; }
  int64_t of_node(const Timeline& timeline, NodeId node) const {
    return timeline.is_full(node) ? of_gist(node.lod) : 0;
  }
  static int64_t of_raw_block(const Timeline& timeline, uint64_t block) {
    return static_cast<int64_t>(timeline.span_of({1, block}).token_count());
  }
  // What expanding the node adds; collapsing it gives the same back.
  int64_t of_expanding(const Timeline& timeline, NodeId node) const {
    const uint64_t tokens = timeline.span_of(node).token_count();
    const int64_t below =
        node.lod == 1
            ? static_cast<int64_t>(tokens)
            : static_cast<int64_t>(full_node_count(tokens, node.lod - 1)) * of_gist(node.lod - 1);
    return below - of_node(timeline, node);
  }
  // All gists of the coarsest full nodes of a timeline of this length.
  int64_t of_coarsest_tiling(uint64_t token_count) const;

 private:
  std::vector<uint32_t> gist_places_;  // [lod - 1]
};

}  // namespace mc
