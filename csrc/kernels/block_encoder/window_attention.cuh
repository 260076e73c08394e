// Attention inside windows of 32 rows on the device. Included by block_encoder_cuda.cu only.
//
// 16-bit types: one warp a (window, head). Its rows come to shared memory once, rotated on the way;
// scores, probabilities and outputs stay in the registers of mma.sync. The backward pass computes
// the probabilities again, and stages them and their gradient in shared memory to turn them.
// float32: one thread block a (window, head), plain sums.
#pragma once

#include "kernels/common/device.cuh"

namespace mc {
namespace {

constexpr int kWindow = 32;
constexpr int kScorePitch = kWindow + 8;  // 16-bit scores in shared memory, free of bank conflicts

template <class T>
struct AttentionInputs {
  const T* qkv;        // [R, 3*D]
  const float* table;  // [32, E]
  const T* grad_out;   // [R, D], backward only
  T* out;              // [R, D], or grad_qkv [R, 3*D]
  int64_t width;
  int64_t pairs;  // windows * heads
  float scale;
};

template <int kHead>
constexpr int head_pitch() {
  return kHead + 8;
}

// One head's rows to shared memory by a warp, 16 bytes at a time; rotated where `table` is given.
template <class T, int kHead>
MC_DEVICE void stage_head(const T* from, int64_t stride, const float* table, T* to) {
  constexpr int kHalf = kHead / 2, kPacks = kHalf / 8;
  for (int i = lane_index(); i < kWindow * kPacks; i += 32) {
    const int row = i / kPacks, at = i % kPacks * 8;
    auto low = load_pack<8>(from + row * stride + at);
    auto high = load_pack<8>(from + row * stride + kHalf + at);
    if (table != nullptr) {
      const auto cosines = load_pack<8>(table + row * kHead + at);
      const auto sines = load_pack<8>(table + row * kHead + kHalf + at);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float cosine = cosines.value[j], sine = sines.value[j];
        const float a = to_float(low.value[j]), b = to_float(high.value[j]);
        low.value[j] = from_float<T>(a * cosine - b * sine);
        high.value[j] = from_float<T>(b * cosine + a * sine);
      }
    }
    store_pack(to + row * head_pitch<kHead>() + at, low);
    store_pack(to + row * head_pitch<kHead>() + kHalf + at, high);
  }
}

template <class T, int kHead>
MC_DEVICE void unstage_head(const T* from, T* to, int64_t stride) {
  constexpr int kPacks = kHead / 8;
  for (int i = lane_index(); i < kWindow * kPacks; i += 32) {
    const int row = i / kPacks, at = i % kPacks * 8;
    store_pack(to + row * stride + at, load_pack<8>(from + row * head_pitch<kHead>() + at));
  }
}

// The 16x16 piece of `matrix` at (row, column) as operand a; transposed: of the matrix's transpose.
template <class T, bool kTransposed>
MC_DEVICE void load_left(uint32_t (&a)[4], const T* matrix, int pitch, int row, int column) {
  const int lane = lane_index();
  if constexpr (kTransposed) {
    const int r = column + lane % 8 + (lane / 16) * 8, c = row + lane / 8 % 2 * 8;
    ldmatrix<4, true>(a, matrix + r * pitch + c);
  } else {
    const int r = row + lane % 16, c = column + lane / 16 * 8;
    ldmatrix<4>(a, matrix + r * pitch + c);
  }
}

// Operand b for k in [k0, k0+16), n in [n0, n0+8). The matrix is stored [n][k], or [k][n] with
// kByRows.
template <class T, bool kByRows>
MC_DEVICE void load_right(uint32_t (&b)[2], const T* matrix, int pitch, int k0, int n0) {
  const int lane = lane_index() % 16;
  if constexpr (kByRows) {
    ldmatrix<2, true>(b, matrix + (k0 + lane) * pitch + n0);
  } else {
    ldmatrix<2>(b, matrix + (n0 + lane % 8) * pitch + k0 + lane / 8 * 8);
  }
}

// sums[tile] += left[16 rows from `row`, kInner] * right, 8 columns a tile.
template <class T, int kInner, int kTiles, bool kLeftTransposed, bool kRightByRows>
MC_DEVICE void multiply(float (&sums)[kTiles][4], const T* left, int left_pitch, int row,
                        const T* right, int right_pitch) {
#pragma unroll
  for (int k = 0; k < kInner; k += 16) {
    uint32_t a[4];
    load_left<T, kLeftTransposed>(a, left, left_pitch, row, k);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      uint32_t b[2];
      load_right<T, kRightByRows>(b, right, right_pitch, k, tile * 8);
      mma_16x8x16<T>(sums[tile], a, b);
    }
  }
}

// Sum or maximum over the four lanes that hold one row of a tile.
MC_DEVICE float row_sum(float value) {
  value += __shfl_xor_sync(kFullMask, value, 1);
  return value + __shfl_xor_sync(kFullMask, value, 2);
}
MC_DEVICE float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kFullMask, value, 1));
  return fmaxf(value, __shfl_xor_sync(kFullMask, value, 2));
}

// Probabilities of 16 queries over the 32 keys, from raw scores.
MC_DEVICE void softmax_tiles(float (&scores)[4][4], float scale) {
  const float factor = scale * kLog2E;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float highest = -INFINITY;
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      highest = fmaxf(highest, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
    }
    const float shift = row_max(highest) * factor;
    float total = 0.f;
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int j = 2 * half; j < 2 * half + 2; ++j) {
        scores[tile][j] = exp2_fast(scores[tile][j] * factor - shift);
        total += scores[tile][j];
      }
    }
    const float inverse = 1.f / row_sum(total);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      scores[tile][2 * half] *= inverse;
      scores[tile][2 * half + 1] *= inverse;
    }
  }
}

// Tiles of 16 rows from `row` to shared memory.
template <class T, int kTiles>
MC_DEVICE void put_tiles(const float (&tiles)[kTiles][4], T* to, int pitch, int row) {
  const int at = row + lane_index() / 4, column = lane_index() % 4 * 2;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    *reinterpret_cast<uint32_t*>(to + at * pitch + tile * 8 + column) =
        pack2<T>(tiles[tile][0], tiles[tile][1]);
    *reinterpret_cast<uint32_t*>(to + (at + 8) * pitch + tile * 8 + column) =
        pack2<T>(tiles[tile][2], tiles[tile][3]);
  }
}

template <class T, int kHead>
__global__ void __launch_bounds__(128) attention_kernel(AttentionInputs<T> in) {
  constexpr int kPitch = head_pitch<kHead>();
  MC_DYNAMIC_SMEM(smem);
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + warp_index();
  if (pair >= in.pairs) return;  // whole warps; no barrier of the block follows
  T* q = reinterpret_cast<T*>(smem) + warp_index() * 3 * kWindow * kPitch;
  T *k = q + kWindow * kPitch, *v = k + kWindow * kPitch;
  const int64_t heads = in.width / kHead, stride = 3 * in.width;
  const int64_t row0 = pair / heads * kWindow, head = pair % heads;
  const T* from = in.qkv + row0 * stride + head * kHead;
  stage_head<T, kHead>(from, stride, in.table, q);
  stage_head<T, kHead>(from + in.width, stride, in.table, k);
  stage_head<T, kHead>(from + 2 * in.width, stride, nullptr, v);
  __syncwarp();
#pragma unroll 1
  for (int row = 0; row < kWindow; row += 16) {
    float scores[4][4] = {};
    multiply<T, kHead, 4, false, false>(scores, q, kPitch, row, k, kPitch);
    softmax_tiles(scores, in.scale);
    float sums[kHead / 8][4] = {};
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const auto& low = scores[2 * step];
      const auto& high = scores[2 * step + 1];
      const uint32_t a[4] = {pack2<T>(low[0], low[1]), pack2<T>(low[2], low[3]),
                             pack2<T>(high[0], high[1]), pack2<T>(high[2], high[3])};
#pragma unroll
      for (int tile = 0; tile < kHead / 8; ++tile) {
        uint32_t b[2];
        load_right<T, true>(b, v, kPitch, step * 16, tile * 8);
        mma_16x8x16<T>(sums[tile], a, b);
      }
    }
    __syncwarp();
    put_tiles<T>(sums, q, kPitch, row);  // these rows of q are done with
  }
  __syncwarp();
  unstage_head<T, kHead>(q, in.out + row0 * in.width + head * kHead, in.width);
}

// Rotates gradient tiles back; the pair of column e is in the same lane, half the tiles further.
template <int kHead>
MC_DEVICE void rotate_back(float (&tiles)[kHead / 8][4], const float* table, int row) {
  const int column = lane_index() % 4 * 2;
#pragma unroll
  for (int tile = 0; tile < kHead / 16; ++tile) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at = (row + lane_index() / 4 + j / 2 * 8) * kHead + tile * 8 + column + j % 2;
      const float cosine = table[at], sine = table[at + kHead / 2];
      const float a = tiles[tile][j], b = tiles[tile + kHead / 16][j];
      tiles[tile][j] = a * cosine + b * sine;
      tiles[tile + kHead / 16][j] = b * cosine - a * sine;
    }
  }
}

// dq = ds k, dk = ds^T q, dv = p^T do; each written over what nobody reads any more.
template <class T, int kHead>
__global__ void __launch_bounds__(64) attention_backward_kernel(AttentionInputs<T> in) {
  constexpr int kPitch = head_pitch<kHead>(), kTiles = kHead / 8;
  constexpr int kRoom = kWindow * kPitch;
  MC_DYNAMIC_SMEM(smem);
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + warp_index();
  if (pair >= in.pairs) return;  // whole warps; no barrier of the block follows
  T* q = reinterpret_cast<T*>(smem) + warp_index() * (4 * kRoom + 2 * kWindow * kScorePitch);
  T *k = q + kRoom, *v = k + kRoom, *grad = v + kRoom;
  T *p = grad + kRoom, *ds = p + kWindow * kScorePitch;
  const int64_t heads = in.width / kHead, stride = 3 * in.width;
  const int64_t row0 = pair / heads * kWindow, column0 = pair % heads * kHead;
  const T* from = in.qkv + row0 * stride + column0;
  stage_head<T, kHead>(from, stride, in.table, q);
  stage_head<T, kHead>(from + in.width, stride, in.table, k);
  stage_head<T, kHead>(from + 2 * in.width, stride, nullptr, v);
  stage_head<T, kHead>(in.grad_out + row0 * in.width + column0, in.width, nullptr, grad);
  __syncwarp();
#pragma unroll 1
  for (int row = 0; row < kWindow; row += 16) {
    float scores[4][4] = {}, dp[4][4] = {};
    multiply<T, kHead, 4, false, false>(scores, q, kPitch, row, k, kPitch);
    softmax_tiles(scores, in.scale);
    multiply<T, kHead, 4, false, false>(dp, grad, kPitch, row, v, kPitch);
    put_tiles<T>(scores, p, kScorePitch, row);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = 0.f;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int j = 2 * half + i % 2;
        total += scores[i / 2][j] * dp[i / 2][j];
      }
      total = row_sum(total);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int j = 2 * half + i % 2;
        dp[i / 2][j] = scores[i / 2][j] * (dp[i / 2][j] - total) * in.scale;
      }
    }
    put_tiles<T>(dp, ds, kScorePitch, row);
  }
  __syncwarp();
  T* to = in.out + row0 * stride + column0;
#pragma unroll 1
  for (int row = 0; row < kWindow; row += 16) {
    float sums[kTiles][4] = {};
    multiply<T, kWindow, kTiles, true, true>(sums, p, kScorePitch, row, grad, kPitch);
    put_tiles<T>(sums, v, kPitch, row);
  }
  __syncwarp();
  unstage_head<T, kHead>(v, to + 2 * in.width, stride);
#pragma unroll 1
  for (int row = 0; row < kWindow; row += 16) {
    float sums[kTiles][4] = {};
    multiply<T, kWindow, kTiles, false, true>(sums, ds, kScorePitch, row, k, kPitch);
    rotate_back<kHead>(sums, in.table, row);
    put_tiles<T>(sums, grad, kPitch, row);
  }
  __syncwarp();
  unstage_head<T, kHead>(grad, to, stride);
#pragma unroll 1
  for (int row = 0; row < kWindow; row += 16) {
    float sums[kTiles][4] = {};
    multiply<T, kWindow, kTiles, true, true>(sums, ds, kScorePitch, row, q, kPitch);
    rotate_back<kHead>(sums, in.table, row);
    put_tiles<T>(sums, k, kPitch, row);
  }
  __syncwarp();
  unstage_head<T, kHead>(k, to + in.width, stride);
}

// ---- float32

constexpr int kPlainThreads = 128;

// Rows of one head to shared memory, by a thread block.
MC_DEVICE void stage_plain(const float* from, int64_t stride, int head_width, const float* table,
                           float* to) {
  const int half = head_width / 2, pitch = head_width + 1;
  for (int i = threadIdx.x; i < kWindow * half; i += kPlainThreads) {
    const int row = i / half, at = i % half;
    float a = from[row * stride + at], b = from[row * stride + half + at];
    if (table != nullptr) {
      const float cosine = table[row * head_width + at];
      const float sine = table[row * head_width + half + at];
      const float turned = a * cosine - b * sine;
      b = b * cosine + a * sine;
      a = turned;
    }
    to[row * pitch + at] = a;
    to[row * pitch + half + at] = b;
  }
}

// scores[i][j] = left[i] . right[j].
MC_DEVICE void plain_scores(const float* left, const float* right, int head_width, float* scores) {
  const int pitch = head_width + 1;
  for (int i = threadIdx.x; i < kWindow * kWindow; i += kPlainThreads) {
    float sum = 0.f;
    for (int e = 0; e < head_width; ++e) {
      sum += left[i / kWindow * pitch + e] * right[i % kWindow * pitch + e];
    }
    scores[i] = sum;
  }
}

// to[i] = sum over j of scores[i][j] * rows[j], or of scores[j][i] when transposed; rotated back by
// the table where it is given.
MC_DEVICE void plain_mix(const float* scores, bool transposed, const float* rows, int head_width,
                         const float* table, float* to, int64_t stride) {
  const int half = head_width / 2, pitch = head_width + 1;
  for (int i = threadIdx.x; i < kWindow * half; i += kPlainThreads) {
    const int row = i / half, at = i % half;
    float a = 0.f, b = 0.f;
    for (int j = 0; j < kWindow; ++j) {
      const float share = scores[transposed ? j * kWindow + row : row * kWindow + j];
      a += share * rows[j * pitch + at];
      b += share * rows[j * pitch + half + at];
    }
    if (table != nullptr) {
      const float cosine = table[row * head_width + at];
      const float sine = table[row * head_width + half + at];
      const float turned = a * cosine + b * sine;
      b = b * cosine - a * sine;
      a = turned;
    }
    to[row * stride + at] = a;
    to[row * stride + half + at] = b;
  }
}

MC_DEVICE void plain_softmax(float* scores, float scale) {
  for (int row = warp_index(); row < kWindow; row += kPlainThreads / 32) {
    const float score = scores[row * kWindow + lane_index()] * scale;
    const float e = expf(score - warp_max(score));
    scores[row * kWindow + lane_index()] = e / warp_sum(e);
  }
}

__global__ void __launch_bounds__(kPlainThreads)
    attention_plain_kernel(AttentionInputs<float> in, int head_width) {
  MC_DYNAMIC_SMEM(smem);
  const int room = kWindow * (head_width + 1);
  auto* q = reinterpret_cast<float*>(smem);
  float *k = q + room, *v = k + room, *grad = v + room;
  float* scores = in.grad_out == nullptr ? grad : grad + room;
  float* dp = scores + kWindow * kWindow;
  const int64_t heads = in.width / head_width, stride = 3 * in.width;
  const int64_t row0 = blockIdx.x / heads * kWindow, column0 = blockIdx.x % heads * head_width;
  const float* from = in.qkv + row0 * stride + column0;
  stage_plain(from, stride, head_width, in.table, q);
  stage_plain(from + in.width, stride, head_width, in.table, k);
  stage_plain(from + 2 * in.width, stride, head_width, nullptr, v);
  if (in.grad_out != nullptr) {
    stage_plain(in.grad_out + row0 * in.width + column0, in.width, head_width, nullptr, grad);
  }
  __syncthreads();
  plain_scores(q, k, head_width, scores);
  __syncthreads();
  plain_softmax(scores, in.scale);
  __syncthreads();
  if (in.grad_out == nullptr) {
    plain_mix(scores, false, v, head_width, nullptr, in.out + row0 * in.width + column0, in.width);
    return;
  }
  float* to = in.out + row0 * stride + column0;
  plain_mix(scores, true, grad, head_width, nullptr, to + 2 * in.width, stride);
  plain_scores(grad, v, head_width, dp);
  __syncthreads();
  for (int row = warp_index(); row < kWindow; row += kPlainThreads / 32) {
    const int at = row * kWindow + lane_index();
    const float total = warp_sum(scores[at] * dp[at]);
    dp[at] = scores[at] * (dp[at] - total) * in.scale;
  }
  __syncthreads();
  plain_mix(dp, false, k, head_width, in.table, to, stride);
  plain_mix(dp, true, q, head_width, in.table, to + in.width, stride);
}

}  // namespace
}  // namespace mc
