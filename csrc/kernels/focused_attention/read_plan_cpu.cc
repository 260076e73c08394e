#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/focused_attention/cpu_tile.h"
#include "kernels/focused_attention/focused_attention.h"
#include "kernels/focused_attention/read_plan.h"

namespace mc::focused {
namespace {

// What a query block needs to know of a block to list it without looking at its places.
struct Extent {
  int32_t first = std::numeric_limits<int32_t>::max();  // least position, sinks not counted
  int32_t last = -1;                                    // greatest
  bool sinks = false;                                   // some place is always visible
  bool filled = true;                                   // no place is empty
  bool any = false;                                     // some place is filled
};

Extent extent_of(const ReadPlanRequest& in, int64_t block) {
  Extent extent;
  for (int64_t j = block * kBlockPlaces; j < (block + 1) * kBlockPlaces; ++j) {
    if (in.rows.as<int32_t>()[j] < 0) {
      extent.filled = false;
      continue;
    }
    extent.any = true;
    const int32_t position = in.query_positions.defined() ? in.positions.as<int32_t>()[j] : -1;
    if (position < 0) {
      extent.sinks = true;
    } else {
      extent.first = std::min(extent.first, position);
      extent.last = std::max(extent.last, position);
    }
  }
  return extent;
}

// Least and greatest position of a run of queries.
struct Reach {
  int64_t first = std::numeric_limits<int64_t>::max(), last = -1;
};

// True when some query of the block may see some place. Exact for one query and for positions
// without gaps; otherwise it may list a block that the attention then masks completely.
bool seen(const Extent& block, const Reach& reach, int64_t window) {
  if (!block.any) return false;
  if (block.sinks) return true;
  return block.first <= reach.last && (window == 0 || block.last > reach.first - window);
}

bool seen_fully(const Extent& block, const Reach& reach, int64_t window) {
  if (!block.filled) return false;
  if (block.last < 0) return true;  // sinks only, or no positions
  return block.last <= reach.first && (window == 0 || block.first > reach.last - window);
}

}  // namespace

Status make_read_plan_cpu(const ReadPlanRequest& in, const TensorView& counts,
                          const TensorView& blocks, const Exec& exec) {
  const int64_t block_count = in.rows.shape[0], query_blocks = counts.shape[1];
  const int64_t capacity = blocks.shape[2];
  std::vector<Extent> extents(static_cast<size_t>(block_count));
  for (int64_t block = 0; block < block_count; ++block) {
    extents[static_cast<size_t>(block)] = extent_of(in, block);
  }
  exec.for_range(0, counts.numel(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t list = begin; list < end; ++list) {
      const int64_t i = list % query_blocks;
      const int32_t* starts = in.query_starts.as<int32_t>() + i;
      Reach reach;
      for (int64_t t = starts[0]; t < starts[1] && in.query_positions.defined(); ++t) {
        const int64_t position = in.query_positions.as<int32_t>()[t];
        reach.first = std::min(reach.first, position);
        reach.last = std::max(reach.last, position);
      }
      const int32_t* range = in.block_ranges.as<int32_t>() + 2 * i;
      const int64_t first = in.block_ranges.defined() ? std::max(range[0], 0) : 0;
      const int64_t last =
          in.block_ranges.defined() ? std::min<int64_t>(range[1], block_count) : block_count;
      const bool* mask = in.block_mask.as<bool>() + list * block_count;
      int32_t* to = blocks.as<int32_t>() + list * capacity;
      int64_t count = 0;
      for (int64_t block = first; block < last && starts[0] < starts[1]; ++block) {
        const Extent& extent = extents[static_cast<size_t>(block)];
        if (in.block_mask.defined() && !mask[block]) continue;
        if (!seen(extent, reach, in.window)) continue;
        const int32_t flag = seen_fully(extent, reach, in.window) ? kFullBlock : 0;
        if (count < capacity) to[count] = static_cast<int32_t>(block) + flag;
        ++count;
      }
      std::fill(to + std::min(count, capacity), to + capacity, 0);
      counts.as<int32_t>()[list] = static_cast<int32_t>(count);
    }
  });
  return {};
}

Status merge_attention_cpu(const TensorView& outs, const TensorView& lses, const TensorView& out,
                           const TensorView& lse, const Exec& exec) {
  const TileOps& ops = tile_ops();
  const int64_t parts = outs.shape[0], rows = lse.numel(), width = outs.shape[3];
  const int64_t bytes = dtype_bytes(outs.dtype);
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  exec.for_range(0, rows, 64, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(static_cast<size_t>(width)), part(static_cast<size_t>(width));
    for (int64_t row = begin; row < end; ++row) {
      float top = kMinusInfinity, total = 0.0f;
      for (int64_t s = 0; s < parts; ++s) top = std::max(top, lses.as<float>()[s * rows + row]);
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t s = 0; s < parts && top != kMinusInfinity; ++s) {
        const float weight = std::exp(lses.as<float>()[s * rows + row] - top);
        total += weight;
        ops.to_f32(outs.as<char>() + (s * rows + row) * width * bytes, outs.dtype, width,
                   part.data());
        ops.scale_row(part.data(), width, weight);
        ops.add_row(sum.data(), part.data(), width);
      }
      ops.from_f32(sum.data(), out.dtype, width, out.as<char>() + row * width * bytes,
                   total == 0.0f ? 0.0f : 1.0f / total);
      lse.as<float>()[row] = total == 0.0f ? kMinusInfinity : top + std::log(total);
    }
  });
  return {};
}

}  // namespace mc::focused
