#include "focus/block_set.h"

#include <algorithm>

namespace mc {

void BlockSet::add(Span blocks) {
  if (blocks.start >= blocks.end) return;
  std::vector<Span> merged;
  for (const Span& range : ranges_) {
    if (range.end < blocks.start || blocks.end < range.start) {
      merged.push_back(range);
    } else {  // touches or overlaps
      blocks = {std::min(range.start, blocks.start), std::max(range.end, blocks.end)};
    }
  }
  const auto after = [](const Span& left, const Span& right) { return left.start < right.start; };
  merged.insert(std::upper_bound(merged.begin(), merged.end(), blocks, after), blocks);
  ranges_ = std::move(merged);
}

void BlockSet::remove(Span blocks) {
  if (blocks.start >= blocks.end) return;
  std::vector<Span> left;
  for (const Span& range : ranges_) {
    const Span before{range.start, std::min(range.end, blocks.start)};
    const Span behind{std::max(range.start, blocks.end), range.end};
    if (before.start < before.end) left.push_back(before);
    if (behind.start < behind.end) left.push_back(behind);
  }
  ranges_ = std::move(left);
}

bool BlockSet::contains(uint64_t block) const {
  return overlaps({block, block + 1});
}

bool BlockSet::overlaps(Span blocks) const {
  const auto found = std::partition_point(
      ranges_.begin(), ranges_.end(), [&](const Span& range) { return range.end <= blocks.start; });
  return found != ranges_.end() && found->overlaps(blocks);
}

}  // namespace mc
