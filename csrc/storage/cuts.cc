#include "storage/cuts.h"

#include <algorithm>
#include <tuple>

#include "storage/row_reader.h"

namespace mc {

uint64_t started_node_count(uint64_t token_count, int lod) {
  return full_node_count(token_count + tokens_per_node(lod) - 1, lod);
}

uint64_t kept_row_count(const DefineFamily& family, uint64_t token_count) {
  if (token_count == kUncut) return kUncut;
  return family.id == kCharStartsFamily ? started_node_count(token_count, 1)
                                        : full_node_count(token_count, family.lod);
}

void CutList::add(const Cut& cut) {
  std::vector<Cut>& cuts = by_partition_[cut.partition];
  std::erase_if(cuts, [&](const Cut& old) {
    const bool covered = cut.family == 0 || cut.family == old.family;
    return covered && old.segment_id <= cut.segment_id && old.token_count >= cut.token_count;
  });
  cuts.push_back(cut);
}

uint64_t CutList::kept_tokens(uint64_t segment_id, uint32_t partition, uint32_t family) const {
  uint64_t kept = kUncut;
  const auto found = by_partition_.find(partition);
  if (found == by_partition_.end()) return kept;
  for (const Cut& cut : found->second) {
    if (cut.segment_id <= segment_id || (cut.family != 0 && cut.family != family)) continue;
    kept = std::min(kept, cut.token_count);
  }
  return kept;
}

uint64_t CutList::kept_rows(const Segment& segment, const DefineFamily* family,
                            const RunEntry& run) const {
  const uint64_t tokens =
      kept_tokens(segment.header().segment_id, run.partition, segment.header().family);
  if (tokens == kUncut) return run.count;
  const uint64_t kept =
      family == nullptr ? full_node_count(tokens, 1) : kept_row_count(*family, tokens);
  return kept <= run.first ? 0 : std::min(run.count, kept - run.first);
}

std::vector<Cut> CutList::cuts() const {
  std::vector<Cut> all;
  for (const auto& [partition, cuts] : by_partition_) {
    all.insert(all.end(), cuts.begin(), cuts.end());
  }
  std::sort(all.begin(), all.end(), [](const Cut& left, const Cut& right) {
    return std::tie(left.segment_id, left.partition, left.family) <
           std::tie(right.segment_id, right.partition, right.family);
  });
  return all;
}

CutList CutList::pruned(const std::vector<std::shared_ptr<const Segment>>& segments,
                        const std::vector<std::shared_ptr<const DefineFamily>>& families) const {
  CutList left;
  if (by_partition_.empty()) return left;
  // Only cuts of partitions that some segment shows less of than it holds.
  for (const auto& segment : segments) {
    const uint32_t family_id = segment->header().family;
    const DefineFamily* family = family_id == 0 ? nullptr : families[family_id - 1].get();
    for (const RunEntry& run : segment->runs()) {
      const auto found = by_partition_.find(run.partition);
      if (found == by_partition_.end() || kept_rows(*segment, family, run) == run.count) continue;
      left.by_partition_.insert(*found);
    }
  }
  return left;
}

}  // namespace mc
