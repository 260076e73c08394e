// The words of the working context: entries, actions, plans.
#pragma once

#include <cstdint>
#include <vector>

namespace mc {

// One piece of the tiling of a partition's timeline, as the model sees it (or does not: 0 places).
// A LOD-0 entry is a block of up to K tokens, its index that of the block; an entry of LOD >= 1 is
// one node. `end` is cut at the end of the timeline.
struct Entry {
  uint32_t partition;
  uint8_t lod;
  uint64_t index;
  uint64_t start, end;  // tokens, half-open
  uint32_t places;

  bool operator==(const Entry&) const = default;
};

enum class FocusActionKind : uint8_t {
  kExpand = 0,    // the node gives way to all its children (LOD 1: to the raw block)
  kCollapse = 1,  // all children give way to the node
};

struct FocusAction {
  FocusActionKind action;
  uint32_t partition;
  uint8_t lod;  // of the node, >= 1
  uint64_t index;
  float score;

  bool operator==(const FocusAction&) const = default;
};

// Actions in the order in which they are to be applied. At no step do they exceed the budget.
struct FocusPlan {
  std::vector<FocusAction> actions;
};

}  // namespace mc
