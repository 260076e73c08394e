#include "focus/node_table.h"

#include <bit>
#include <utility>

#include "base/checks.h"

namespace mc {

namespace {
constexpr size_t kLeastSlots = 16;
}  // namespace

NodeId NodeTable::node_of(uint32_t path) {
  const int levels = (std::bit_width(path) - 1) / kFanOutLog2;
  return {static_cast<uint8_t>(kMaxLod - levels), path ^ (uint32_t{1} << (kFanOutLog2 * levels))};
}

uint32_t* NodeTable::find_key(uint64_t key) {
  if (slots_.empty()) return nullptr;
  const size_t mask = slots_.size() - 1;
  for (size_t at = home(key);; at = (at + 1) & mask) {
    if (slots_[at].key == key) return &slots_[at].expanded_children;
    if (slots_[at].key == 0) return nullptr;
  }
}

void NodeTable::insert(uint32_t partition, NodeId node, uint32_t expanded_children) {
  MC_ASSERT(node.lod >= 2 && node.lod <= kMaxLod);
  if (2 * (count_ + 1) > slots_.size()) resize(std::max(kLeastSlots, 2 * slots_.size()));
  const uint64_t key = key_of(partition, node);
  const size_t mask = slots_.size() - 1;
  size_t at = home(key);
  while (slots_[at].key != 0) {
    MC_ASSERT(slots_[at].key != key);
    at = (at + 1) & mask;
  }
  slots_[at] = {key, expanded_children};
  ++count_;
}

// Moves later slots of the same run forward, so that no tombstones are needed.
void NodeTable::erase(uint32_t partition, NodeId node) {
  const uint64_t key = key_of(partition, node);
  const size_t mask = slots_.size() - 1;
  size_t hole = home(key);
  while (slots_[hole].key != key) {
    MC_ASSERT(slots_[hole].key != 0);
    hole = (hole + 1) & mask;
  }
  for (size_t at = (hole + 1) & mask; slots_[at].key != 0; at = (at + 1) & mask) {
    const size_t wanted = home(slots_[at].key);
    if (((at - wanted) & mask) < ((at - hole) & mask)) continue;  // would move before its home
    slots_[hole] = slots_[at];
    hole = at;
  }
  slots_[hole] = {};
  --count_;
  if (slots_.size() > kLeastSlots && 8 * count_ < slots_.size()) resize(slots_.size() / 2);
}

void NodeTable::resize(size_t slot_count) {
  std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slot_count));
  shift_ = 64 - std::countr_zero(slot_count);
  for (const Slot& slot : old) {
    if (slot.key == 0) continue;
    size_t at = home(slot.key);
    while (slots_[at].key != 0) at = (at + 1) & (slot_count - 1);
    slots_[at] = slot;
  }
}

}  // namespace mc
