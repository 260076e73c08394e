// A set of blocks as sorted, disjoint, half-open ranges: what is pinned, what is excluded.
#pragma once

#include <cstdint>
#include <vector>

#include "tree/span.h"

namespace mc {

class BlockSet {
 public:
  void add(Span blocks);
  void remove(Span blocks);
  bool contains(uint64_t block) const;
  bool overlaps(Span blocks) const;
  bool empty() const { return ranges_.empty(); }
  const std::vector<Span>& ranges() const { return ranges_; }

 private:
  std::vector<Span> ranges_;
};

}  // namespace mc
