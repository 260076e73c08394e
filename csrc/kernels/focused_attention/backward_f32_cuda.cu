// Backward for float32 on CUDA: correct and deterministic, without matrix instructions; see
// attend_f32_cuda.cu.
#include "kernels/focused_attention/backward_args.cuh"

namespace mc::focused {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

// d (q . k) and the weight of one query, head and place.
template <int kWidth>
MC_DEVICE ScoreGrad grad_of(const AttendArgs& args, const BackwardArgs& back, int64_t at, int head,
                            int kv_head, int place, int row, bool seen) {
  if (!seen) return {0.f, 0.f, 0.f};
  const float* q = static_cast<const float*>(args.q) + at * kWidth;
  const float* grad_out = static_cast<const float*>(back.grad_out) + at * kWidth;
  const float* key =
      static_cast<const float*>(args.keys) + args.key_row(row, place, kv_head) * kWidth;
  const float* value =
      static_cast<const float*>(args.values) + args.value_row(row, kv_head) * kWidth;
  float dot = 0.f, grad_weight = 0.f;
  for (int e = 0; e < kWidth; ++e) {
    dot += q[e] * key[e];
    grad_weight += grad_out[e] * value[e];
  }
  const float bias = args.bias == nullptr ? 0.f : args.bias_of(head)[place];
  return score_grad(args, dot, grad_weight, bias, back.lse2[at], back.delta[at], true);
}

MC_DEVICE bool sees(const AttendArgs& args, int query, int place, int row) {
  if (row < 0) return false;
  if (args.positions == nullptr) return true;
  const int now = args.query_positions[query];
  return is_visible(args.positions[place], now, args.oldest(now));
}

// One warp a query and head, one lane a place.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    query_gradient_f32_kernel(const __grid_constant__ AttendArgs args,
                              const __grid_constant__ BackwardArgs back, int slices) {
  constexpr int kColumns = kWidth / kWarp;
  __shared__ float factors[kWarps][kWarp];
  __shared__ int64_t key_rows[kWarps][kWarp];
  const int query_block = static_cast<int>(blockIdx.x) / slices;
  const int query =
      args.starts[query_block] + static_cast<int>(blockIdx.x) % slices * kWarps + warp_index();
  if (query >= args.starts[query_block + 1]) return;  // whole warps; no block barrier follows
  const int head = static_cast<int>(blockIdx.y), kv_head = head / args.group;
  const int lane = lane_index(), warp = warp_index();
  const int64_t at = int64_t{query} * args.query_heads + head;
  const int which = args.list_of(kv_head, query_block), count = args.counts[which];
  const bool cut = count > args.capacity;
  float sums[kColumns] = {};
  for (int i = 0; i < (cut ? 0 : count); ++i) {
    const int block = args.blocks[int64_t{which} * args.capacity + i] & (kFullBlock - 1);
    const int place = block * 32 + lane, row = args.rows[place];
    const ScoreGrad grad =
        grad_of<kWidth>(args, back, at, head, kv_head, place, row, sees(args, query, place, row));
    factors[warp][lane] = grad.grad_dot;
    key_rows[warp][lane] = row < 0 ? -1 : args.key_row(row, place, kv_head) * kWidth;
    __syncwarp();
    for (int j = 0; j < kWarp; ++j) {
      if (key_rows[warp][j] < 0) continue;
      const float* key = static_cast<const float*>(args.keys) + key_rows[warp][j];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sums[c] += factors[warp][j] * key[c * kWarp + lane];
    }
    __syncwarp();
  }
  float* to = static_cast<float*>(back.grad_q) + at * kWidth;
  const float factor = cut ? __int_as_float(0x7fc00000) : 1.f;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) to[c * kWarp + lane] = sums[c] * factor;
  if (back.query_rope == nullptr) return;
  __syncwarp();
  const int half = back.rope_width / 2;
  const float* table = back.query_rope + int64_t{query} * back.rope_width;
  for (int j = lane; j < half; j += kWarp) {
    const float first = to[j], second = to[half + j];
    to[j] = first * table[j] + second * table[half + j];
    to[half + j] = second * table[j] - first * table[half + j];
  }
}

// One warp a block and KV head, one lane a place when weights are made, one lane a column when they
// are used. The sums live in global memory.
template <int kWidth>
__global__ void __launch_bounds__(kWarp)
    block_gradient_f32_kernel(const __grid_constant__ AttendArgs args,
                              const __grid_constant__ BackwardArgs back) {
  __shared__ float weights[kWarp], factors[kWarp];
  const int block = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int lane = lane_index(), place = block * 32 + lane, row = args.rows[place];
  float* grad_keys = back.grad_keys + args.pool_row(block * 32, kv_head, 5) * kWidth;
  float* grad_values = back.grad_values + args.pool_row(block * 32, kv_head, 5) * kWidth;
  for (int e = lane; e < 32 * kWidth; e += kWarp) grad_keys[e] = grad_values[e] = 0.f;
  const int64_t list =
      int64_t{kv_head * args.plan_heads / args.kv_heads} * args.block_count + block;
  const int* readers = back.readers + list * args.query_blocks;
  for (int head = kv_head * args.group; head < (kv_head + 1) * args.group; ++head) {
    float grad_bias = 0.f;
    for (int i = 0; i < back.readers_count[list]; ++i) {
      const int query_block = readers[i] & (static_cast<int>(kFullBlock) - 1);
      for (int t = args.starts[query_block]; t < args.starts[query_block + 1]; ++t) {
        const int64_t at = int64_t{t} * args.query_heads + head;
        const ScoreGrad grad =
            grad_of<kWidth>(args, back, at, head, kv_head, place, row, sees(args, t, place, row));
        grad_bias += grad.grad;
        weights[lane] = grad.weight;
        factors[lane] = grad.grad_dot;
        __syncwarp();
        for (int e = lane; e < kWidth; e += kWarp) {
          const float q = static_cast<const float*>(args.q)[at * kWidth + e];
          const float grad_out = static_cast<const float*>(back.grad_out)[at * kWidth + e];
          for (int j = 0; j < kWarp; ++j) {
            grad_keys[j * kWidth + e] += factors[j] * q;
            grad_values[j * kWidth + e] += weights[j] * grad_out;
          }
        }
        __syncwarp();
      }
    }
    if (back.grad_bias != nullptr) {
      back.grad_bias[(int64_t{head} * args.block_count + block) * 32 + lane] = grad_bias;
    }
  }
}

template <int kWidth>
Status launch(const AttendArgs& args, const BackwardArgs& back, const Exec& exec) {
  const int slices = (args.query_tile + kWarps - 1) / kWarps;
  const dim3 queries(static_cast<unsigned>(args.query_blocks) * slices, args.query_heads);
  MC_RETURN_IF_ERROR(MC_LAUNCH(query_gradient_f32_kernel<kWidth>, queries, dim3(kThreads), 0,
                               exec.stream, args, back, slices));
  const dim3 blocks(static_cast<unsigned>(args.block_count), args.kv_heads);
  return MC_LAUNCH(block_gradient_f32_kernel<kWidth>, blocks, dim3(kWarp), 0, exec.stream, args,
                   back);
}

}  // namespace

Status backward_f32(const AttendArgs& args, const BackwardArgs& back, int width, const Exec& exec) {
  switch (width) {
    case 64: return launch<64>(args, back, exec);
    case 128: return launch<128>(args, back, exec);
    default: return launch<256>(args, back, exec);
  }
}

}  // namespace mc::focused
