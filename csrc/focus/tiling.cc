#include "focus/tiling.h"

#include <algorithm>
#include <bit>

#include "base/checks.h"

namespace mc {

int64_t PlaceCosts::of_coarsest_tiling(uint64_t token_count) const {
  const int top = gist_lods();
  if (top == 0) return 0;
  int64_t places = static_cast<int64_t>(full_node_count(token_count, top)) * of_gist(top);
  for (int lod = 1; lod < top; ++lod) {
    places += static_cast<int64_t>(full_node_count(token_count, lod) % kFanOut) * of_gist(lod);
  }
  return places;
}

void Tiling::add_timeline(const Timeline& timeline) {
  places_ += costs_.of_node(timeline, timeline.root());
}

void Tiling::remove_timeline(const Timeline& timeline) {
  places_ -= places_of(timeline);
  erase_below(timeline, timeline.root());
}

void Tiling::erase_below(const Timeline& timeline, NodeId node) {
  const uint32_t* children = expanded_.find(timeline.partition, node);
  if (children == nullptr) return;
  uint32_t left = node.lod > 2 ? *children : 0;
  for (; left != 0; left &= left - 1) {
    erase_below(timeline, node.child(static_cast<uint64_t>(std::countr_zero(left))));
  }
  expanded_.erase(timeline.partition, node);
}

void Tiling::grow(Timeline& timeline, uint64_t token_count) {
  const uint64_t before = timeline.token_count;
  const NodeId last{1, (before - 1) / kFanOut};
  if (token_count <= last.span().end && is_expanded(timeline, last)) {
    timeline.token_count = token_count;  // the common step: a raw block fills up
    places_ += static_cast<int64_t>(token_count - before);
    return;
  }
  places_ -= places_of(timeline);
  const bool is_hidden = expanded_.find(timeline.partition, timeline.root()) == nullptr &&
                         costs_.of_node(timeline, timeline.root()) == 0;
  while (tokens_per_node(timeline.root_lod) < token_count) {
    const NodeId old_root = timeline.root();
    const bool is_old_root_expanded = expanded_.find(timeline.partition, old_root) != nullptr;
    ++timeline.root_lod;
    if (!is_hidden) {
      expanded_.insert(timeline.partition, timeline.root(), is_old_root_expanded ? 1 : 0);
    }
  }
  timeline.token_count = token_count;
  places_ += places_of(timeline);
}

bool Tiling::is_expanded(const Timeline& timeline, NodeId node) const {
  if (node.lod >= 2) return expanded_.find(timeline.partition, node) != nullptr;
  const uint32_t* siblings = expanded_.find(timeline.partition, node.parent());
  return siblings != nullptr && ((*siblings >> node.place_in_parent()) & 1);
}

bool Tiling::is_entry(const Timeline& timeline, NodeId node) const {
  if (node.lod < 1 || node.lod > timeline.root_lod) return false;
  if (node.span().start >= timeline.token_count) return false;
  if (node.lod == timeline.root_lod) {
    return expanded_.find(timeline.partition, node) == nullptr;
  }
  const uint32_t* siblings = expanded_.find(timeline.partition, node.parent());
  return siblings != nullptr && !((*siblings >> node.place_in_parent()) & 1);
}

bool Tiling::is_collapsible(const Timeline& timeline, NodeId node) const {
  if (node.lod < 1 || node.lod > timeline.root_lod) return false;
  if (node.span().start >= timeline.token_count) return false;
  if (node.lod == 1) return is_expanded(timeline, node) && !timeline.must_be_raw(node.index);
  const uint32_t* children = expanded_.find(timeline.partition, node);
  return children != nullptr && *children == 0;
}

void Tiling::expand(const Timeline& timeline, NodeId node) {
  places_ += costs_.of_expanding(timeline, node);
  if (node.lod >= 2) expanded_.insert(timeline.partition, node);
  if (node.lod == timeline.root_lod) return;
  uint32_t* siblings = expanded_.find(timeline.partition, node.parent());
  MC_ASSERT(siblings != nullptr && !((*siblings >> node.place_in_parent()) & 1));
  *siblings |= uint32_t{1} << node.place_in_parent();
}

void Tiling::collapse(const Timeline& timeline, NodeId node) {
  places_ -= costs_.of_expanding(timeline, node);
  if (node.lod >= 2) expanded_.erase(timeline.partition, node);
  if (node.lod == timeline.root_lod) return;
  uint32_t* siblings = expanded_.find(timeline.partition, node.parent());
  MC_ASSERT(siblings != nullptr && ((*siblings >> node.place_in_parent()) & 1));
  *siblings &= ~(uint32_t{1} << node.place_in_parent());
}

NodeId Tiling::last_unexpanded(const Timeline& timeline) const {
  NodeId node = timeline.root();
  while (node.lod > 1 && expanded_.find(timeline.partition, node) != nullptr) {
    node = node.child(timeline.child_count(node) - 1);
  }
  return node;
}

Descent Tiling::descent_to(const Timeline& timeline, uint64_t block) const {
  Descent descent;
  NodeId node{1, block};
  if (is_expanded(timeline, node)) return descent;
  descent.path[0] = node;
  descent.length = 1;
  while (node.lod < timeline.root_lod) {
    node = node.parent();
    if (expanded_.find(timeline.partition, node) != nullptr) break;
    descent.path[static_cast<size_t>(descent.length++)] = node;
  }
  std::reverse(descent.path.begin(), descent.path.begin() + descent.length);
  for (const NodeId step : descent.nodes()) {
    descent.cost += costs_.of_expanding(timeline, step);
    descent.peak = std::max(descent.peak, descent.cost);
  }
  return descent;
}

void Tiling::make_raw(const Timeline& timeline, uint64_t block) {
  const Descent descent = descent_to(timeline, block);
  for (const NodeId node : descent.nodes()) expand(timeline, node);
}

void Tiling::open_gists(const Timeline& timeline, NodeId node) {
  const bool has_gist = timeline.is_full(node) && node.lod <= costs_.gist_lods();
  if (has_gist || node.lod == 1) return;
  expand(timeline, node);
  // Of the children only those beyond the LODs with gists, or the last, can be without one.
  const uint64_t child_count = timeline.child_count(node);
  const uint64_t first = node.lod - 1 > costs_.gist_lods() ? 0 : child_count - 1;
  for (uint64_t which = first; which < child_count; ++which) {
    open_gists(timeline, node.child(which));
  }
}

Entry Tiling::entry_of(const Timeline& timeline, NodeId node, bool is_raw) const {
  const Span span = timeline.span_of(node);
  const int64_t places =
      is_raw ? static_cast<int64_t>(span.token_count()) : costs_.of_node(timeline, node);
  return {timeline.partition, is_raw ? uint8_t{0} : node.lod, node.index, span.start,
          span.end,           static_cast<uint32_t>(places)};
}

int64_t Tiling::places_of(const Timeline& timeline) const {
  int64_t places = 0;
  for_each_entry(timeline, [&](const Entry& entry) { places += entry.places; });
  return places;
}

}  // namespace mc
