// Three launches: what each query's weights are divided by, then the use that each query head makes
// of each key, then the sum over the heads of a group. A thread block of 16 x 16 threads owns a
// tile of 64 queries and 64 keys at a time, a thread 4 x 4 scores of it. Every sum has one owner
// and one order.
#include "kernels/attention_use/attention_use.h"
#include "kernels/attention_use/use_shape.h"
#include "kernels/common/device.cuh"

namespace mc {
namespace {

constexpr int kSide = 16;  // threads along a side of a tile
constexpr int kThreads = kSide * kSide;
constexpr int kEach = 4;              // scores of a thread along each side
constexpr int kTile = kSide * kEach;  // queries, and keys
constexpr int kStep = 16;             // of the width, staged at once: the width is a multiple of it

// Columns of a step lie next to each other, padded against bank conflicts.
struct Staged {
  float queries[kStep][kTile + kEach];
  float keys[kStep][kTile + kEach];
};

MC_DEVICE int thread_row() {
  return static_cast<int>(threadIdx.x) / kSide * kEach;
}
MC_DEVICE int thread_column() {
  return static_cast<int>(threadIdx.x) % kSide * kEach;
}

// Up to kTile rows from `rows` on, zeros where there are fewer.
template <class T>
MC_DEVICE void stage(const T* __restrict__ rows, int64_t there, int64_t width, int64_t step,
                     float (&to)[kStep][kTile + kEach]) {
  const int row = static_cast<int>(threadIdx.x) / kEach;
  const int first = static_cast<int>(threadIdx.x) % kEach * kEach;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int column = first + i;
    to[column][row] = row < there ? to_float(rows[row * width + step + column]) : 0.f;
  }
}

// Rows of one head: of queries and of keys, from the first one of a tile on.
template <class T>
struct TileRows {
  const T* queries;
  const T* keys;
  int64_t asks, places;  // that are left
};

// score [4][4]: products of the thread's queries and keys. Every thread must come here.
template <class T>
MC_DEVICE void score_tile(const TileRows<T>& rows, int64_t width, Staged& staged,
                          float (&score)[kEach][kEach]) {
#pragma unroll
  for (int i = 0; i < kEach * kEach; ++i) score[i / kEach][i % kEach] = 0.f;
  const int row = thread_row(), column = thread_column();
  for (int64_t step = 0; step < width; step += kStep) {
    __syncthreads();  // what is staged may still be read
    stage(rows.queries, rows.asks, width, step, staged.queries);
    stage(rows.keys, rows.places, width, step, staged.keys);
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kStep; ++e) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const float query = staged.queries[e][row + i];
#pragma unroll
        for (int j = 0; j < kEach; ++j) score[i][j] += query * staged.keys[e][column + j];
      }
    }
  }
}

// Of one query's softmax, in units of log2: the largest score, and the sum of exp2(score -
// largest).
struct SoftmaxSum {
  float largest, sum;
};

MC_DEVICE void add_score(SoftmaxSum& to, float score) {
  const float largest = fmaxf(to.largest, score);
  const float anchor = largest == -INFINITY ? 0.f : largest;
  to.sum = to.sum * exp2_fast(to.largest - anchor) + exp2_fast(score - anchor);
  to.largest = largest;
}
// Over the 16 threads that share a row.
MC_DEVICE SoftmaxSum join(SoftmaxSum part) {
  float largest = part.largest;
#pragma unroll
  for (int step = kSide / 2; step > 0; step >>= 1) {
    largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, step));
  }
  float sum = part.sum * exp2_fast(part.largest - largest);
#pragma unroll
  for (int step = kSide / 2; step > 0; step >>= 1) {
    sum += __shfl_xor_sync(kFullMask, sum, step);
  }
  return {largest, sum};
}

// largest, factor [B * Hq, Q]: weight ^ 1.5 = exp2(1.5 * (scale * product - largest)) * factor.
template <class T>
__global__ void __launch_bounds__(kThreads)
    use_sums_kernel(UseShape shape, const T* __restrict__ queries, const T* __restrict__ keys,
                    float scale, float* __restrict__ largest, float* __restrict__ factor) {
  __shared__ Staged staged;
  const int64_t tiles = (shape.asks + kTile - 1) / kTile;
  const int64_t head = blockIdx.x / tiles, ask = blockIdx.x % tiles * kTile;
  queries += (head * shape.asks + ask) * shape.width;
  keys += head / shape.group() * shape.places * shape.width;
  const int64_t asks = shape.asks - ask < kTile ? shape.asks - ask : kTile;
  const int64_t seen_most = shape.seen(ask + asks - 1);
  SoftmaxSum part[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) part[i] = {-INFINITY, 0.f};
  for (int64_t place = 0; place < seen_most; place += kTile) {
    float score[kEach][kEach];
    score_tile<T>({queries, keys + place * shape.width, asks, shape.places - place}, shape.width,
                  staged, score);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t seen = shape.seen(ask + thread_row() + i) - place;
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        if (thread_column() + j < seen) add_score(part[i], scale * score[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const SoftmaxSum whole = join(part[i]);
    if (thread_column() == 0 && thread_row() + i < asks) {
      const int64_t at = head * shape.asks + ask + thread_row() + i;
      largest[at] = whole.largest;
      factor[at] = 1.f / (whole.sum * sqrtf(whole.sum));
    }
  }
}

// use [B * Hq, T] that one query head makes.
template <class T>
__global__ void __launch_bounds__(kThreads)
    use_keys_kernel(UseShape shape, const T* __restrict__ queries, const T* __restrict__ keys,
                    float scale, const float* __restrict__ largest,
                    const float* __restrict__ factor, float* __restrict__ use) {
  __shared__ Staged staged;
  __shared__ float parts[kSide][kTile];
  const int64_t tiles = (shape.count + kTile - 1) / kTile;
  const int64_t head = blockIdx.x / tiles, place = blockIdx.x % tiles * kTile;
  const int64_t first = head * shape.asks;
  keys += (head / shape.group() * shape.places + place) * shape.width;
  float sum[kEach] = {};
  for (int64_t ask = 0; ask < shape.asks; ask += kTile) {
    float score[kEach][kEach];
    score_tile<T>(
        {queries + (first + ask) * shape.width, keys, shape.asks - ask, shape.count - place},
        shape.width, staged, score);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t row = ask + thread_row() + i;
      if (row >= shape.asks) continue;
      const float anchor = largest[first + row], by = factor[first + row];
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        sum[j] += exp2_fast(1.5f * (scale * score[i][j] - anchor)) * by;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) parts[thread_row() / kEach][thread_column() + j] = sum[j];
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  if (column >= kTile || place + column >= shape.count) return;
  float whole = 0.f;
  for (int i = 0; i < kSide; ++i) whole += parts[i][column];
  use[head * shape.count + place + column] = whole;
}

// [B * Hq, T] to [B * Hkv, T].
__global__ void __launch_bounds__(kThreads)
    use_groups_kernel(UseShape shape, const float* __restrict__ of_heads, float* __restrict__ use) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= shape.batch * shape.kv_heads * shape.count) return;
  const int64_t head = index / shape.count * shape.group(), at = index % shape.count;
  float sum = 0.f;
  for (int64_t i = 0; i < shape.group(); ++i) sum += of_heads[(head + i) * shape.count + at];
  use[index] = sum;
}

dim3 grid_for(int64_t items, int64_t each, int64_t heads = 1) {
  return dim3(static_cast<unsigned>((items + each - 1) / each * heads));
}

template <class T>
Status launch(const Exec& exec, const AttentionUseArgs& args) {
  const UseShape shape = use_shape(args.queries, args.keys, args.count);
  const int64_t heads = shape.batch * shape.query_heads;
  float* largest = args.workspace.as<float>();
  float* factor = largest + heads * shape.asks;
  float* of_heads = factor + heads * shape.asks;
  const float scale = args.scale * kLog2E;
  const auto *queries = args.queries.as<T>(), *keys = args.keys.as<T>();
  MC_RETURN_IF_ERROR(MC_LAUNCH((use_sums_kernel<T>), grid_for(shape.asks, kTile, heads),
                               dim3(kThreads), 0, exec.stream, shape, queries, keys, scale, largest,
                               factor));
  MC_RETURN_IF_ERROR(MC_LAUNCH((use_keys_kernel<T>), grid_for(shape.count, kTile, heads),
                               dim3(kThreads), 0, exec.stream, shape, queries, keys, scale, largest,
                               factor, of_heads));
  return MC_LAUNCH(use_groups_kernel, grid_for(args.use.numel(), kThreads), dim3(kThreads), 0,
                   exec.stream, shape, of_heads, args.use.as<float>());
}

}  // namespace

Status attention_use_cuda(const Exec& exec, const AttentionUseArgs& args) {
  return with_float_type(args.queries.dtype,
                         [&](auto zero) { return launch<decltype(zero)>(exec, args); });
}

}  // namespace mc
