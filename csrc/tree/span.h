// Arithmetic of the gist tree: which positions a node covers, who its parent and children are.
// Nothing of this is ever stored. K = 32; a node of LOD n covers K^n tokens; LOD 0 is one token.
#pragma once

#include <cstdint>

namespace mc {

inline constexpr uint64_t kFanOut = 32;  // K
inline constexpr int kFanOutLog2 = 5;
inline constexpr int kMaxLod = 8;  // K^8 = 2^40 tokens in one node

// Half-open range of positions on the timeline of one partition, in tokens.
struct Span {
  uint64_t start = 0;
  uint64_t end = 0;

  constexpr uint64_t token_count() const { return end - start; }
  constexpr bool contains(const Span& other) const {
    return start <= other.start && other.end <= end;
  }
  constexpr bool overlaps(const Span& other) const {
    return start < other.end && other.start < end;
  }
  constexpr bool operator==(const Span&) const = default;
};

constexpr uint64_t tokens_per_node(int lod) {
  return uint64_t{1} << (kFanOutLog2 * lod);
}

// Nodes of `lod` that lie wholly within the first `token_count` tokens: only those have a gist.
constexpr uint64_t full_node_count(uint64_t token_count, int lod) {
  return token_count >> (kFanOutLog2 * lod);
}

// A place in the tree of one partition.
struct NodeId {
  uint8_t lod = 0;
  uint64_t index = 0;

  constexpr Span span() const {
    return {index << (kFanOutLog2 * lod), (index + 1) << (kFanOutLog2 * lod)};
  }
  constexpr NodeId parent() const { return {static_cast<uint8_t>(lod + 1), index >> kFanOutLog2}; }
  // lod >= 1; `which` in [0, K).
  constexpr NodeId child(uint64_t which) const {
    return {static_cast<uint8_t>(lod - 1), (index << kFanOutLog2) + which};
  }
  constexpr uint64_t place_in_parent() const { return index & (kFanOut - 1); }
  // The ancestor of `ancestor_lod` >= lod (itself when equal).
  constexpr NodeId ancestor(int ancestor_lod) const {
    return {static_cast<uint8_t>(ancestor_lod), index >> (kFanOutLog2 * (ancestor_lod - lod))};
  }
  constexpr bool operator==(const NodeId&) const = default;
};

// The node of `lod` that covers `position`.
constexpr NodeId node_at(uint64_t position, int lod) {
  return {static_cast<uint8_t>(lod), position >> (kFanOutLog2 * lod)};
}

}  // namespace mc
