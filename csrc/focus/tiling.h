// Tiling: how every timeline is cut into entries, as a set of expanded nodes.
//
// A node is an entry when its parent is expanded (or it is the root) and it is not. So every state
// of the set tiles its timelines completely, on the grid, in order; what can still be wrong is the
// budget and what must or must not be raw.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "focus/entry.h"
#include "focus/node_table.h"
#include "focus/timeline.h"

namespace mc {

// The expansions that make a block raw, top down.
struct Descent {
  std::array<NodeId, kMaxLod> path;
  int length = 0;    // 0: the block is raw already
  int64_t cost = 0;  // places after all of them
  int64_t peak = 0;  // the most places on the way, >= cost

  std::span<const NodeId> nodes() const& { return {path.data(), static_cast<size_t>(length)}; }
  std::span<const NodeId> nodes() const&& = delete;  // would point into a temporary
};

class Tiling {
 public:
  explicit Tiling(PlaceCosts costs) : costs_(std::move(costs)) {}

  int64_t places() const { return places_; }
  const PlaceCosts& costs() const { return costs_; }
  const NodeTable& expanded() const { return expanded_; }

  void add_timeline(const Timeline& timeline);     // as its root alone
  void remove_timeline(const Timeline& timeline);  // all of it
  // The timeline becomes longer: entries stay what they are, tokens behind the last one join the
  // unfinished nodes that cover them.
  void grow(Timeline& timeline, uint64_t token_count);

  bool is_expanded(const Timeline& timeline, NodeId node) const;
  bool is_entry(const Timeline& timeline, NodeId node) const;
  // Expanded, with no child expanded, and no block that must be raw.
  bool is_collapsible(const Timeline& timeline, NodeId node) const;

  void expand(const Timeline& timeline, NodeId node);    // is_entry(node)
  void collapse(const Timeline& timeline, NodeId node);  // expanded, no child expanded

  // The node of the last entry; of LOD 1 when that is a raw block.
  NodeId last_unexpanded(const Timeline& timeline) const;
  Descent descent_to(const Timeline& timeline, uint64_t block) const;
  void make_raw(const Timeline& timeline, uint64_t block);
  // Expands unfinished and gistless nodes under `node` until what is below has gists.
  void open_gists(const Timeline& timeline, NodeId node);

  // visit(Entry), in timeline order.
  template <class Visit>
  void for_each_entry(const Timeline& timeline, Visit&& visit) const {
    visit_below(timeline, timeline.root(), visit);
  }
  // Recomputed from the entries, for grow() and check().
  int64_t places_of(const Timeline& timeline) const;

 private:
  template <class Visit>
  void visit_below(const Timeline& timeline, NodeId node, Visit&& visit) const;
  Entry entry_of(const Timeline& timeline, NodeId node, bool is_raw) const;
  void erase_below(const Timeline& timeline, NodeId node);

  PlaceCosts costs_;
  NodeTable expanded_;
  int64_t places_ = 0;
};

template <class Visit>
void Tiling::visit_below(const Timeline& timeline, NodeId node, Visit&& visit) const {
  const uint32_t* children = expanded_.find(timeline.partition, node);
  if (children == nullptr) return visit(entry_of(timeline, node, false));
  const uint32_t expanded_children = *children;
  const uint64_t child_count = timeline.child_count(node);
  for (uint64_t which = 0; which < child_count; ++which) {
    const bool is_expanded_child = (expanded_children >> which) & 1;
    if (is_expanded_child && node.lod > 2) {
      visit_below(timeline, node.child(which), visit);
    } else {
      visit(entry_of(timeline, node.child(which), is_expanded_child));
    }
  }
}

}  // namespace mc
