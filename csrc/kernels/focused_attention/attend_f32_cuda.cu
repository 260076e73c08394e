// Forward for float32 on CUDA: one warp a query and head, one lane a place. Matrix instructions
// would round float32 to 11 bits; this path is for checking and for small models, not for speed.
#include "kernels/focused_attention/attend_args.cuh"

namespace mc::focused {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    attend_f32_kernel(const __grid_constant__ AttendArgs args, int slices) {
  constexpr int kColumns = kWidth / kWarp;
  __shared__ float weights[kWarps][kWarp];
  __shared__ int64_t value_rows[kWarps][kWarp];
  const int query_block = static_cast<int>(blockIdx.x) / slices;
  const int query =
      args.starts[query_block] + static_cast<int>(blockIdx.x) % slices * kWarps + warp_index();
  if (query >= args.starts[query_block + 1]) return;  // whole warps; no block barrier follows
  const int head = static_cast<int>(blockIdx.y), kv_head = head / args.group;
  const int lane = lane_index(), warp = warp_index();
  const int64_t at = int64_t{query} * args.query_heads + head;
  const float* q = static_cast<const float*>(args.q) + at * kWidth;
  const int which = args.list_of(kv_head, query_block), count = args.counts[which];
  const bool cut = count > args.capacity;
  const int now = args.positions == nullptr ? 0 : args.query_positions[query];
  float top = -INFINITY, sum = 0.f, out[kColumns] = {};
  for (int i = 0; i < (cut ? 0 : count); ++i) {
    const int block = args.blocks[int64_t{which} * args.capacity + i] & (kFullBlock - 1);
    const int place = block * 32 + lane;
    const int row = args.rows[place];
    const bool seen = row >= 0 && (args.positions == nullptr ||
                                   is_visible(args.positions[place], now, args.oldest(now)));
    float score = -INFINITY;
    if (seen) {
      const float* key =
          static_cast<const float*>(args.keys) + args.key_row(row, place, kv_head) * kWidth;
      float dot = 0.f;
      for (int e = 0; e < kWidth; ++e) dot += q[e] * key[e];
      score = dot * args.scale;
      if (args.softcap > 0.f) score = args.softcap * tanhf(score / args.softcap);
      if (args.bias != nullptr) score += args.bias_of(head)[place];
    }
    const float after = fmaxf(top, warp_max(score));
    const float anchor = after == -INFINITY ? 0.f : after;
    const float kept = expf(top - anchor), weight = expf(score - anchor);
    sum = sum * kept + warp_sum(weight);
    top = after;
    weights[warp][lane] = weight;
    value_rows[warp][lane] = row >= 0 ? args.value_row(row, kv_head) * kWidth : -1;
    __syncwarp();
#pragma unroll
    for (int c = 0; c < kColumns; ++c) out[c] *= kept;
    for (int j = 0; j < kWarp; ++j) {
      if (value_rows[warp][j] < 0) continue;
      const float* value = static_cast<const float*>(args.values) + value_rows[warp][j];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) out[c] += weights[warp][j] * value[c * kWarp + lane];
    }
    __syncwarp();
  }
  if (args.sink != nullptr) {
    const float after = fmaxf(top, args.sink[head]);
    const float kept = after == -INFINITY ? 1.f : expf(top - after);
    sum = sum * kept + (after == -INFINITY ? 0.f : expf(args.sink[head] - after));
#pragma unroll
    for (int c = 0; c < kColumns; ++c) out[c] *= kept;
    top = after;
  }
  const float nan = __int_as_float(0x7fc00000);
  const float factor = cut ? nan : sum == 0.f ? 0.f : 1.f / sum;
  float* to = static_cast<float*>(args.out) + at * kWidth;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) to[c * kWarp + lane] = out[c] * factor;
  if (lane == 0) args.lse[at] = cut ? nan : sum == 0.f ? -INFINITY : top + logf(sum);
}

}  // namespace

Status attend_f32(const AttendArgs& args, int width, const Exec& exec) {
  const int slices = (args.query_tile + kWarps - 1) / kWarps;
  const dim3 grid(static_cast<unsigned>(args.query_blocks) * slices, args.query_heads);
  const dim3 block(kThreads);
  switch (width) {
    case 64: return MC_LAUNCH(attend_f32_kernel<64>, grid, block, 0, exec.stream, args, slices);
    case 128: return MC_LAUNCH(attend_f32_kernel<128>, grid, block, 0, exec.stream, args, slices);
    default: return MC_LAUNCH(attend_f32_kernel<256>, grid, block, 0, exec.stream, args, slices);
  }
}

}  // namespace mc::focused
