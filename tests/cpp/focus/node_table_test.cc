#include "focus/node_table.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <tuple>

namespace mc {
namespace {

using Key = std::tuple<uint32_t, int, uint64_t>;

std::map<Key, uint32_t> contents(const NodeTable& table) {
  std::map<Key, uint32_t> found;
  table.for_each([&](uint32_t partition, NodeId node, uint32_t children) {
    found[{partition, node.lod, node.index}] = children;
  });
  return found;
}

TEST(NodeTable, agrees_with_a_map_under_random_changes) {
  std::mt19937 random(5);
  NodeTable table;
  std::map<Key, uint32_t> model;
  for (int step = 0; step < 20'000; ++step) {
    const auto partition = static_cast<uint32_t>(random() % 3);
    const auto lod = static_cast<uint8_t>(2 + random() % 3);
    const NodeId node{lod, random() % 40};
    const Key key{partition, lod, node.index};
    uint32_t* found = table.find(partition, node);
    ASSERT_EQ(found != nullptr, model.contains(key));
    if (found == nullptr) {
      table.insert(partition, node, static_cast<uint32_t>(step));
      model[key] = static_cast<uint32_t>(step);
    } else {
      ASSERT_EQ(*found, model[key]);
      // Long phases of shrinking, so that runs are broken up and the table gets smaller.
      if (step % 4000 < 2500 || random() % 8 == 0) {
        table.erase(partition, node);
        model.erase(key);
      } else {
        *found = model[key] = ~model[key];
      }
    }
    ASSERT_EQ(table.node_count(), model.size());
  }
  EXPECT_EQ(contents(table), model);
}

TEST(NodeTable, tells_all_nodes_of_all_lods_apart) {
  NodeTable table;
  std::map<Key, uint32_t> model;
  for (int lod = 2; lod <= kMaxLod; ++lod) {
    const uint64_t last = (uint64_t{1} << (kFanOutLog2 * (kMaxLod - lod))) - 1;
    for (const uint32_t partition : {0u, 1u, 0xFFFFFFFFu}) {
      for (const uint64_t index : {uint64_t{0}, last / 2, last}) {
        const NodeId node{static_cast<uint8_t>(lod), index};
        if (table.find(partition, node) != nullptr) continue;  // LOD 8 has one node
        table.insert(partition, node, static_cast<uint32_t>(lod));
        model[{partition, lod, index}] = static_cast<uint32_t>(lod);
      }
    }
  }
  EXPECT_EQ(contents(table), model);
}

TEST(NodeTable, of_nothing_finds_nothing) {
  const NodeTable table;
  EXPECT_EQ(table.find(0, {2, 0}), nullptr);
  EXPECT_EQ(table.node_count(), 0u);
}

}  // namespace
}  // namespace mc
