// How the CUDA workspace of score_topk is laid out; known to the checks and to the launches.
//
//   scores  [lists, count] f32            score_topk and score_topk_at only
//   valid   [lists, count] u8             score_topk_at only
//   states  lists x kListStateBytes       histograms and counters of the selection
//   order   [lists, sorted_count(k)] u64  what was selected, being sorted
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace mc {

inline constexpr int64_t kListStateBytes = 27 << 10;
inline constexpr int64_t kListsAtOnce = 1024;               // selected by one set of launches
inline constexpr int64_t kScoresAtOnce = int64_t{1} << 24;  // 64 MiB, where 8 queries allow it

inline int64_t padded(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

// The power of two that the bitonic sort of k keys works on.
inline int64_t sorted_count(int64_t k) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(k, 2))));
}

inline int64_t selection_bytes(int64_t lists, int64_t k) {
  return lists * kListStateBytes + lists * sorted_count(k) * 8;
}

// Queries whose scores exist at one time: 8, more where the lists are short.
inline int64_t queries_at_once(int64_t queries, int64_t count) {
  const int64_t fit =
      std::clamp<int64_t>(kScoresAtOnce / std::max<int64_t>(count, 1), 8, kListsAtOnce);
  return std::min(queries, fit);
}

}  // namespace mc
