// CutList: what edits took away from sealed segments. Segments never change, so a cut remembers
// which ones were there (those with a lower id) and what of their rows is gone. A cut is forgotten
// when no segment holds a row that it names.
#pragma once

#include <limits>
#include <memory>
#include <unordered_map>
#include <vector>

#include "format/manifest.h"
#include "storage/segment.h"

namespace mc {

inline constexpr uint64_t kUncut = std::numeric_limits<uint64_t>::max();

// Nodes of `lod` with at least one of the first `token_count` tokens.
uint64_t started_node_count(uint64_t token_count, int lod);
// Rows that stay when a partition is cut to `token_count` tokens: those of nodes that are whole in
// them, and a block's character start with its first token. kUncut stays kUncut.
uint64_t kept_row_count(const DefineFamily& family, uint64_t token_count);

class CutList {
 public:
  void add(const Cut& cut);
  // Tokens of `partition` whose rows of `family` (0: whose index) in this segment count.
  uint64_t kept_tokens(uint64_t segment_id, uint32_t partition, uint32_t family) const;
  // Rows (blocks, for postings) of a run of this segment that count: the first ones.
  uint64_t kept_rows(const Segment& segment, const DefineFamily* family, const RunEntry& run) const;
  std::vector<Cut> cuts() const;
  // Without those that none of `segments` needs; `families` by id - 1.
  CutList pruned(const std::vector<std::shared_ptr<const Segment>>& segments,
                 const std::vector<std::shared_ptr<const DefineFamily>>& families) const;

 private:
  std::unordered_map<uint32_t, std::vector<Cut>> by_partition_;
};

}  // namespace mc
