// make_read_plan and merge_attention on CUDA. Two launches make a plan. The first reads the table
// once: a warp sums up each block. In the second a warp makes one list: its lanes look at 32 blocks
// at a time, a ballot gives each listed block its slot, so lists are ascending and never need a
// sync.
#include <algorithm>

#include "kernels/common/device.cuh"
#include "kernels/focused_attention/focused_attention.h"
#include "kernels/focused_attention/read_plan.h"

namespace mc::focused {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kNever = 0x7fffffff;
constexpr int kAhead = 4;  // groups of 32 blocks whose loads a warp starts together

struct PlanArgs {
  const int* rows;
  const int* positions;
  const int* starts;
  const int* query_positions;
  const int* ranges;
  const unsigned char* mask;
  int* counts;
  int* blocks;
  struct Extent* extents;  // [N]
  int lists, query_blocks, block_count, capacity;
  int64_t window;
};

struct alignas(kExtentBytes) Extent {  // of one block, see read_plan_cpu.cc
  int first, last;
  int sinks;   // a filled place is a sink
  int filled;  // number of filled places
};
static_assert(sizeof(Extent) == kExtentBytes);

MC_DEVICE int reduce_min(int value) {
  for (int step = 16; step > 0; step >>= 1) {
    value = min(value, __shfl_xor_sync(kFullMask, value, step));
  }
  return value;
}

__global__ void __launch_bounds__(kThreads) block_extent_kernel(PlanArgs args) {
  const int block = static_cast<int>(blockIdx.x) * kWarps + warp_index();
  if (block >= args.block_count) return;  // whole warps; no barrier follows
  const int64_t at = int64_t{block} * kBlockPlaces + lane_index();
  const bool filled = args.rows[at] >= 0;
  const int position = args.query_positions == nullptr ? -1 : args.positions[at];
  const bool counts = filled && position >= 0;
  Extent extent;
  extent.first = reduce_min(counts ? position : kNever);
  extent.last = -reduce_min(counts ? -position : 1);
  extent.sinks = __ballot_sync(kFullMask, filled && position < 0) != 0;
  extent.filled = __popc(__ballot_sync(kFullMask, filled));
  if (lane_index() == 0) args.extents[block] = extent;
}

// 0: not listed; 1: listed; 2: listed and fully visible.
MC_DEVICE int listing(const Extent& block, int64_t reach_first, int64_t reach_last,
                      int64_t window) {
  if (block.filled == 0) return 0;
  const bool near = block.first <= reach_last && (window == 0 || block.last > reach_first - window);
  if (!block.sinks && !near) return 0;
  const bool in_reach =
      block.last <= reach_first && (window == 0 || block.first > reach_last - window);
  return block.filled == kBlockPlaces && (block.last < 0 || in_reach) ? 2 : 1;
}

__global__ void __launch_bounds__(kThreads) make_read_plan_kernel(PlanArgs args) {
  const int list = static_cast<int>(blockIdx.x) * kWarps + warp_index(), lane = lane_index();
  const bool works = list < args.lists;
  const int query_block = works ? list % args.query_blocks : 0;
  const int start = works ? args.starts[query_block] : 0;
  const int end = works ? args.starts[query_block + 1] : 0;
  int reach_first = kNever, reach_last = -1;
  if (args.query_positions != nullptr) {
    for (int t = start + lane; t < end; t += kWarp) {
      reach_first = min(reach_first, args.query_positions[t]);
      reach_last = max(reach_last, args.query_positions[t]);
    }
  }
  reach_first = reduce_min(reach_first);
  reach_last = -reduce_min(-reach_last);
  int first = 0, last = start < end ? args.block_count : 0;
  if (args.ranges != nullptr && start < end) {
    first = max(args.ranges[2 * query_block], 0);
    last = min(args.ranges[2 * query_block + 1], args.block_count);
  }
  int* to = args.blocks + int64_t{list} * args.capacity;
  int count = 0;
  const unsigned char* mask =
      args.mask == nullptr ? nullptr : args.mask + int64_t{list} * args.block_count;
  for (int base = first; base < last; base += kAhead * kWarp) {
    int kinds[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int block = base + i * kWarp + lane;
      const bool looks = works && block < last;
      const Extent extent = looks ? args.extents[block] : Extent{kNever, -1, 0, 0};
      const bool asked = looks && (mask == nullptr || mask[block] != 0);
      kinds[i] = asked ? listing(extent, reach_first, reach_last, args.window) : 0;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const uint32_t listed = __ballot_sync(kFullMask, kinds[i] != 0);
      const int slot = count + __popc(listed & ((1u << lane) - 1));
      if (kinds[i] != 0 && slot < args.capacity) {
        to[slot] = base + i * kWarp + lane + (kinds[i] == 2 ? kFullBlock : 0);
      }
      count += __popc(listed);
    }
  }
  if (!works) return;
  for (int slot = min(count, args.capacity) + lane; slot < args.capacity; slot += kWarp) {
    to[slot] = 0;
  }
  if (lane == 0) args.counts[list] = count;
}

struct MergeArgs {
  const void* outs;
  const float* lses;
  void* out;
  float* lse;
  int64_t rows;
  int parts, width;
};

// One warp a row of the output.
template <class T>
__global__ void __launch_bounds__(kThreads) merge_attention_kernel(MergeArgs args) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_index();
  if (row >= args.rows) return;
  float top = -INFINITY, total = 0.f;
  for (int s = 0; s < args.parts; ++s) top = fmaxf(top, args.lses[s * args.rows + row]);
  const float anchor = top == -INFINITY ? 0.f : top;
  for (int s = 0; s < args.parts; ++s) total += expf(args.lses[s * args.rows + row] - anchor);
  const float factor = total == 0.f ? 0.f : 1.f / total;
  for (int e = lane_index(); e < args.width; e += kWarp) {
    float sum = 0.f;
    for (int s = 0; s < args.parts; ++s) {
      const float lse = args.lses[s * args.rows + row];
      if (lse == -INFINITY) continue;
      const T* part = static_cast<const T*>(args.outs) + (s * args.rows + row) * args.width;
      sum += expf(lse - anchor) * to_float(part[e]);
    }
    static_cast<T*>(args.out)[row * args.width + e] = from_float<T>(sum * factor);
  }
  if (lane_index() == 0) args.lse[row] = total == 0.f ? -INFINITY : anchor + logf(total);
}

}  // namespace

Status make_read_plan_cuda(const ReadPlanRequest& in, const TensorView& counts,
                           const TensorView& blocks, const TensorView& workspace,
                           const Exec& exec) {
  PlanArgs args{};
  args.rows = in.rows.as<int>();
  args.positions = in.positions.as<int>();
  args.starts = in.query_starts.as<int>();
  args.query_positions = in.query_positions.as<int>();
  args.ranges = in.block_ranges.as<int>();
  args.mask = in.block_mask.as<unsigned char>();
  args.counts = counts.as<int>();
  args.blocks = blocks.as<int>();
  args.lists = static_cast<int>(counts.numel());
  args.query_blocks = static_cast<int>(counts.shape[1]);
  args.block_count = static_cast<int>(in.rows.shape[0]);
  args.capacity = static_cast<int>(blocks.shape[2]);
  args.window = in.window;
  args.extents = static_cast<Extent*>(workspace.data);
  const dim3 extent_grid(static_cast<unsigned>((args.block_count + kWarps - 1) / kWarps));
  MC_RETURN_IF_ERROR(
      MC_LAUNCH(block_extent_kernel, extent_grid, dim3(kThreads), 0, exec.stream, args));
  const dim3 grid(static_cast<unsigned>((args.lists + kWarps - 1) / kWarps));
  return MC_LAUNCH(make_read_plan_kernel, grid, dim3(kThreads), 0, exec.stream, args);
}

Status merge_attention_cuda(const TensorView& outs, const TensorView& lses, const TensorView& out,
                            const TensorView& lse, const Exec& exec) {
  const MergeArgs args{outs.data,
                       lses.as<float>(),
                       out.data,
                       lse.as<float>(),
                       lse.numel(),
                       static_cast<int>(outs.shape[0]),
                       static_cast<int>(outs.shape[3])};
  const dim3 grid(static_cast<unsigned>((args.rows + kWarps - 1) / kWarps)), block(kThreads);
  switch (outs.dtype) {
    case DType::kF32:
      return MC_LAUNCH(merge_attention_kernel<float>, grid, block, 0, exec.stream, args);
    case DType::kBF16:
      return MC_LAUNCH(merge_attention_kernel<bf16>, grid, block, 0, exec.stream, args);
    default: return MC_LAUNCH(merge_attention_kernel<f16>, grid, block, 0, exec.stream, args);
  }
}

}  // namespace mc::focused
