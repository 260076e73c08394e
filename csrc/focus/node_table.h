// Hash table of expanded nodes: the whole state of a tiling in 16 bytes a node.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tree/span.h"

namespace mc {

// Keys are nodes of LOD >= 2; the value is which of the K children are expanded too, bit i for
// child i. (That a LOD-1 block is raw is a bit of its LOD-2 parent.) Copying is one memcpy.
class NodeTable {
 public:
  // nullptr when the node is not expanded. The pointer holds until the next insert or erase.
  uint32_t* find(uint32_t partition, NodeId node) { return find_key(key_of(partition, node)); }
  const uint32_t* find(uint32_t partition, NodeId node) const {
    return const_cast<NodeTable*>(this)->find_key(key_of(partition, node));
  }
  void insert(uint32_t partition, NodeId node, uint32_t expanded_children = 0);
  void erase(uint32_t partition, NodeId node);
  size_t node_count() const { return count_; }

  // visit(partition, node, expanded_children), in no particular order.
  template <class Visit>
  void for_each(Visit&& visit) const {
    for (const Slot& slot : slots_) {
      if (slot.key == 0) continue;
      visit(static_cast<uint32_t>(slot.key >> 32), node_of(static_cast<uint32_t>(slot.key)),
            slot.expanded_children);
    }
  }

 private:
  struct Slot {
    uint64_t key = 0;  // 0: empty
    uint32_t expanded_children = 0;
  };

  // The low half is the path from the top: a leading one, then 5 bits a LOD. So nodes of different
  // LODs differ, a LOD-2 path has 31 bits, and no key is 0.
  static constexpr uint64_t key_of(uint32_t partition, NodeId node) {
    const uint64_t leading_one = uint64_t{1} << (kFanOutLog2 * (kMaxLod - node.lod));
    return uint64_t{partition} << 32 | leading_one | node.index;
  }
  static NodeId node_of(uint32_t path);

  size_t home(uint64_t key) const { return (key * 0x9E3779B97F4A7C15ull) >> shift_; }
  uint32_t* find_key(uint64_t key);
  void resize(size_t slot_count);

  std::vector<Slot> slots_;
  size_t count_ = 0;
  int shift_ = 64;
};

}  // namespace mc
