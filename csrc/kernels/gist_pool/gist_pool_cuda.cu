// Memory-bound kernels. Without a query a thread owns kVec neighbouring columns of one gist, and a
// warp reads 512 consecutive bytes of a row. With a query a thread block owns a block of rows: dots
// first, then the weighted sum, whose second reading comes from L1 or L2.
#include "kernels/common/device.cuh"
#include "kernels/gist_pool/gist_pool.h"

namespace mc {
namespace {

constexpr int kThreads = 256;
constexpr int kAllBlocks = kResidentThreads / kThreads;  // as many threads as the device holds
constexpr int kBackwardBlocks = 5;                       // 48 registers

struct Pool {
  int64_t block_count, block_size, width;
  float scale;
  const float* weights;  // nullptr: all 1
};

template <class T>
constexpr int kWideVec = 16 / static_cast<int>(sizeof(T));
// Rows whose loads are on their way at once. Two of 16 bytes for each of 2,048 threads are 64 KiB;
// 8 TB/s at a latency of 800 ns need 43 KiB in each of 148 multiprocessors.
template <int kVec, bool kWeighted>
constexpr int kRowsInFlight = kVec == 1   ? 8
                              : kWeighted ? 1
                                          : 2;

// Weights of a block, and one over their sum (0 when the sum is 0).
MC_DEVICE float inverse_mass(const Pool& pool, int64_t block) {
  if (pool.weights == nullptr) return 1.f / static_cast<float>(pool.block_size);
  float mass = 0.f;
  for (int64_t i = 0; i < pool.block_size; ++i) {
    mass += __ldg(pool.weights + block * pool.block_size + i);
  }
  return mass == 0.f ? 0.f : 1.f / mass;
}

template <class T, int kVec, bool kWeighted>
__global__ void __launch_bounds__(kThreads, kAllBlocks)
    pool_mean_kernel(Pool pool, const T* __restrict__ rows, T* __restrict__ gists) {
  const int64_t columns = pool.width / kVec;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= pool.block_count * columns) return;
  const int64_t block = index / columns, column = index % columns * kVec;
  const T* row = rows + block * pool.block_size * pool.width + column;
  const float* weight_at = kWeighted ? pool.weights + block * pool.block_size : nullptr;
  float sums[kVec] = {}, mass = 0.f;
#pragma unroll kRowsInFlight < kVec, kWeighted>
  for (int64_t i = 0; i < pool.block_size; ++i, row += pool.width) {
    float weight = 1.f;
    if constexpr (kWeighted) mass += weight = __ldg(weight_at++);
    Pack<T, kVec> pack = {};
    if (!kWeighted || weight != 0.f) pack = load_pack<kVec>(row);  // weight 0: it may be NaN
#pragma unroll
    for (int v = 0; v < kVec; ++v) sums[v] += weight * to_float(pack.value[v]);
  }
  if constexpr (!kWeighted) mass = static_cast<float>(pool.block_size);
  const float inverse = mass == 0.f ? 0.f : 1.f / mass;
  Pack<T, kVec> out;
#pragma unroll
  for (int v = 0; v < kVec; ++v) out.value[v] = from_float<T>(sums[v] * inverse);
  store_pack(gists + (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVec, out);
}

// Sum over a row of a[i] * b[i], in every lane of a warp.
template <class T, int kVec>
MC_DEVICE float warp_dot(const T* a, const T* b, int64_t width) {
  float sum = 0.f;
#pragma unroll 1
  for (int64_t at = int64_t{lane_index()} * kVec; at < width; at += kWarp * kVec) {
    const Pack<T, kVec> left = load_pack<kVec>(a + at), right = load_pack<kVec>(b + at);
#pragma unroll
    for (int v = 0; v < kVec; ++v) sum += to_float(left.value[v]) * to_float(right.value[v]);
  }
  return warp_sum(sum);
}

// Shared memory of the kernels with one thread block for a block of rows.
struct BlockScratch {
  float* shares;  // [block_size]
  float* dots;    // [block_size]
  float* reduce;  // [32]
};
MC_DEVICE BlockScratch block_scratch(unsigned char* smem, int64_t block_size) {
  auto* floats = reinterpret_cast<float*>(smem);
  return {floats, floats + block_size, floats + 2 * block_size};
}
size_t block_scratch_bytes(int64_t block_size) {
  return (2 * static_cast<size_t>(block_size) + 32) * sizeof(float);
}

// Fills scratch.shares for one block. All threads of the thread block take part.
template <class T, int kVec>
MC_DEVICE void block_shares(const Pool& pool, const T* rows, const T* query, int64_t block,
                            const BlockScratch& scratch) {
  const float* weights = pool.weights == nullptr ? nullptr : pool.weights + block * pool.block_size;
  const int block_size = static_cast<int>(pool.block_size);
  __syncthreads();  // shares may still be read from the block before
  for (int i = warp_index(); i < block_size; i += kThreads / kWarp) {
    const float weight = weights == nullptr ? 1.f : weights[i];
    float score = query == nullptr ? 0.f : -INFINITY;
    if (weight != 0.f && query != nullptr) {
      score = pool.scale * warp_dot<T, kVec>(rows + i * pool.width, query, pool.width);
    }
    if (lane_index() == 0) scratch.shares[i] = score;
  }
  __syncthreads();
  float highest = -INFINITY;
  for (int i = threadIdx.x; i < block_size; i += kThreads) {
    highest = fmaxf(highest, scratch.shares[i]);
  }
  highest = block_max(highest, scratch.reduce);
  const float shift = highest == -INFINITY ? 0.f : highest;
  float total = 0.f;
  for (int i = threadIdx.x; i < block_size; i += kThreads) {
    const float weight = weights == nullptr ? 1.f : weights[i];
    const float mass =
        weight == 0.f ? 0.f : weight * exp2_fast((scratch.shares[i] - shift) * kLog2E);
    scratch.shares[i] = mass;
    total += mass;
  }
  total = block_sum(total, scratch.reduce);
  const float inverse = total == 0.f ? 0.f : 1.f / total;
  for (int i = threadIdx.x; i < block_size; i += kThreads) scratch.shares[i] *= inverse;
  __syncthreads();
}

template <class T, int kVec>
__global__ void __launch_bounds__(kThreads, kAllBlocks)
    pool_attend_kernel(Pool pool, const T* __restrict__ rows, const T* __restrict__ query,
                       T* __restrict__ gists) {
  MC_DYNAMIC_SMEM(smem);
  const BlockScratch scratch = block_scratch(smem, pool.block_size);
  const int64_t block = blockIdx.x;
  const T* first = rows + block * pool.block_size * pool.width;
  block_shares<T, kVec>(pool, first, query, block, scratch);
  const int block_size = static_cast<int>(pool.block_size);  // its shares fit shared memory
  for (int64_t at = int64_t{threadIdx.x} * kVec; at < pool.width; at += kThreads * kVec) {
    float sums[kVec] = {};
    const T* from = first + at;
#pragma unroll kRowsInFlight < kVec, true>
    for (int i = 0; i < block_size; ++i, from += pool.width) {
      const float share = scratch.shares[i];
      if (share == 0.f) continue;
      const Pack<T, kVec> pack = load_pack<kVec>(from);
#pragma unroll
      for (int v = 0; v < kVec; ++v) sums[v] += share * to_float(pack.value[v]);
    }
    Pack<T, kVec> out;
#pragma unroll
    for (int v = 0; v < kVec; ++v) out.value[v] = from_float<T>(sums[v]);
    store_pack(gists + block * pool.width + at, out);
  }
}

// grad_rows of a mean: the shares do not depend on the rows.
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads)
    pool_spread_kernel(Pool pool, const T* __restrict__ grad_gists, T* __restrict__ grad_rows) {
  const int64_t columns = pool.width / kVec;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= pool.block_count * columns) return;
  const int64_t block = index / columns, column = index % columns * kVec;
  const Pack<T, kVec> grad = load_pack<kVec>(grad_gists + block * pool.width + column);
  const float inverse = inverse_mass(pool, block);
  for (int64_t i = 0; i < pool.block_size; ++i) {
    const int64_t row = block * pool.block_size + i;
    const float share = pool.weights == nullptr ? inverse : inverse * __ldg(pool.weights + row);
    Pack<T, kVec> out;
#pragma unroll
    for (int v = 0; v < kVec; ++v) {
      out.value[v] = from_float<T>(share == 0.f ? 0.f : share * to_float(grad.value[v]));
    }
    store_pack(grad_rows + row * pool.width + column, out);
  }
}

template <class T>
struct Gradients {
  const T* grad_gists;
  T* grad_rows;  // each of these may be nullptr
  float* grad_weights;
  float* query_partials;  // [gridDim.x, width]
};

// The two halves of a block's column work walk the columns apart, so that what one keeps in
// registers makes no room beside the other's; each still touches its own bytes once.
template <class T, int kVec>
MC_DEVICE void write_grad_rows(const Pool& pool, const T* grad_gist, const T* query,
                               const BlockScratch& scratch, T* grad_rows) {
  for (int64_t at = int64_t{threadIdx.x} * kVec; at < pool.width; at += kThreads * kVec) {
    const Pack<T, kVec> grad = load_pack<kVec>(grad_gist + at);
    Pack<T, kVec> direction = {};
    if (query != nullptr) direction = load_pack<kVec>(query + at);
    T* to = grad_rows + at;
#pragma unroll 1
    for (int i = 0; i < static_cast<int>(pool.block_size); ++i, to += pool.width) {
      const float share = scratch.shares[i], move = pool.scale * scratch.dots[i];
      Pack<T, kVec> row;
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        const float along = query == nullptr ? 0.f : move * to_float(direction.value[v]);
        row.value[v] = from_float<T>(share * to_float(grad.value[v]) + along);
      }
      store_pack(to, row);
    }
  }
}
template <class T, int kVec>
MC_DEVICE void add_to_partials(const Pool& pool, const T* rows, const BlockScratch& scratch,
                               bool is_first, float* partials) {
  for (int64_t at = int64_t{threadIdx.x} * kVec; at < pool.width; at += kThreads * kVec) {
    float sums[kVec] = {};
    const T* from = rows + at;
#pragma unroll 2
    for (int i = 0; i < static_cast<int>(pool.block_size); ++i, from += pool.width) {
      const float move = pool.scale * scratch.dots[i];
      if (move == 0.f) continue;
      const Pack<T, kVec> row = load_pack<kVec>(from);
#pragma unroll
      for (int v = 0; v < kVec; ++v) sums[v] += move * to_float(row.value[v]);
    }
    float* partial = partials + at;
#pragma unroll
    for (int v = 0; v < kVec; ++v) partial[v] = is_first ? sums[v] : partial[v] + sums[v];
  }
}

// One thread block takes the blocks [begin, end) of its group one after another. In scratch.dots:
// the gradient of the logarithm of each row's mass (gist_pool_body.h says how it is used).
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    pool_backward_kernel(Pool pool, const T* __restrict__ rows, const T* __restrict__ query,
                         Gradients<T> out) {
  MC_DYNAMIC_SMEM(smem);
  const BlockScratch scratch = block_scratch(smem, pool.block_size);
  const int64_t group = blockIdx.x, groups = gridDim.x;
  const int64_t begin = group * pool.block_count / groups;
  const int64_t end = (group + 1) * pool.block_count / groups;
  const int block_size = static_cast<int>(pool.block_size);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * pool.block_size;
    const T* block_rows = rows + first * pool.width;
    const T* grad_gist = out.grad_gists + block * pool.width;
    block_shares<T, kVec>(pool, block_rows, query, block, scratch);
    for (int i = warp_index(); i < block_size; i += kThreads / kWarp) {
      float dot = 0.f;
      if (scratch.shares[i] != 0.f) {
        dot = warp_dot<T, kVec>(block_rows + i * pool.width, grad_gist, pool.width);
      }
      if (lane_index() == 0) scratch.dots[i] = dot;
    }
    __syncthreads();
    float expected = 0.f;
    for (int i = threadIdx.x; i < block_size; i += kThreads) {
      expected += scratch.shares[i] * scratch.dots[i];
    }
    expected = block_sum(expected, scratch.reduce);
    for (int i = threadIdx.x; i < block_size; i += kThreads) {
      const float move = scratch.shares[i] * (scratch.dots[i] - expected);
      scratch.dots[i] = move;
      if (out.grad_weights != nullptr) {
        const float weight = pool.weights[first + i];
        out.grad_weights[first + i] = weight == 0.f ? 0.f : move / weight;
      }
    }
    __syncthreads();
    if (out.grad_rows != nullptr) {
      write_grad_rows<T, kVec>(pool, grad_gist, query, scratch, out.grad_rows + first * pool.width);
    }
    if (out.query_partials != nullptr) {
      add_to_partials<T, kVec>(pool, block_rows, scratch, block == begin,
                               out.query_partials + group * pool.width);
    }
  }
}

// Columns of [groups, width] to their sums: 32 columns a thread block, 8 rows at once, fixed order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_partials_kernel(const float* __restrict__ partials, int64_t groups, int64_t width,
                        T* __restrict__ out) {
  MC_DYNAMIC_SMEM(smem);
  auto* sums = reinterpret_cast<float*>(smem);
  const int64_t column = int64_t{blockIdx.x} * kWarp + lane_index();
  float sum = 0.f;
  for (int64_t group = warp_index(); group < groups && column < width; group += kThreads / kWarp) {
    sum += partials[group * width + column];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp_index() != 0 || column >= width) return;
  for (int warp = 1; warp < kThreads / kWarp; ++warp) sum += sums[warp * kWarp + lane_index()];
  out[column] = from_float<T>(sum);
}

// Weight of each block: the sum of the weights of its rows.
__global__ void __launch_bounds__(kThreads)
    block_weights_kernel(const float* __restrict__ weights, int64_t block_size, int64_t block_count,
                         float* __restrict__ sums) {
  const int64_t block = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (block >= block_count) return;
  float sum = 0.f;
  for (int64_t i = 0; i < block_size; ++i) sum += weights[block * block_size + i];
  sums[block] = sum;
}

bool is_wide(const TensorView& view, int64_t width, int vec) {
  const auto address = reinterpret_cast<uintptr_t>(view.data);
  return width % vec == 0 && address % 16 == 0;
}

dim3 column_grid(const Pool& pool, int vec) {
  const int64_t threads = pool.block_count * (pool.width / vec);
  return dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
}

template <class T, int kVec>
Status launch_forward(const Exec& exec, const Pool& pool, const GistPoolArgs& args) {
  const T* rows = args.rows.as<T>();
  T* gists = args.gists.as<T>();
  if (!args.query.defined()) {
    auto* kernel = pool.weights == nullptr ? &pool_mean_kernel<T, kVec, false>
                                           : &pool_mean_kernel<T, kVec, true>;
    return MC_LAUNCH(kernel, column_grid(pool, kVec), dim3(kThreads), 0, exec.stream, pool, rows,
                     gists);
  }
  return MC_LAUNCH((pool_attend_kernel<T, kVec>), dim3(static_cast<unsigned>(pool.block_count)),
                   dim3(kThreads), block_scratch_bytes(pool.block_size), exec.stream, pool, rows,
                   args.query.as<T>(), gists);
}

template <class T, int kVec>
Status launch_backward(const Exec& exec, const Pool& pool, const GistPoolBackwardArgs& args) {
  if (!args.query.defined() && !args.grad_weights.defined()) {
    if (!args.grad_rows.defined()) return Status::ok();
    return MC_LAUNCH((pool_spread_kernel<T, kVec>), column_grid(pool, kVec), dim3(kThreads), 0,
                     exec.stream, pool, args.grad_gists.as<T>(), args.grad_rows.as<T>());
  }
  const bool sums_query = args.grad_query.defined();
  const int64_t groups =
      sums_query ? gist_pool_query_groups(Device::kCuda, pool.block_count) : pool.block_count;
  const Gradients<T> out{args.grad_gists.as<T>(), args.grad_rows.as<T>(),
                         args.grad_weights.as<float>(),
                         sums_query ? args.query_partials.as<float>() : nullptr};
  MC_RETURN_IF_ERROR(MC_LAUNCH((pool_backward_kernel<T, kVec>), dim3(static_cast<unsigned>(groups)),
                               dim3(kThreads), block_scratch_bytes(pool.block_size), exec.stream,
                               pool, args.rows.as<T>(), args.query.as<T>(), out));
  if (!sums_query) return Status::ok();
  const dim3 grid(static_cast<unsigned>((pool.width + kWarp - 1) / kWarp));
  return MC_LAUNCH((sum_partials_kernel<T>), grid, dim3(kThreads), kThreads * sizeof(float),
                   exec.stream, out.query_partials, groups, pool.width, args.grad_query.as<T>());
}

}  // namespace

Status gist_pool_cuda(const Exec& exec, const GistPoolArgs& args) {
  const Pool pool{args.gists.shape[0], args.block_size, args.rows.shape[1], args.scale,
                  args.weights.as<float>()};
  return with_float_type(args.rows.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = kWideVec<T>;
    const bool wide = is_wide(args.rows, pool.width, kVec) &&
                      is_wide(args.gists, pool.width, kVec) &&
                      is_wide(args.query, pool.width, kVec);
    return wide ? launch_forward<T, kVec>(exec, pool, args)
                : launch_forward<T, 1>(exec, pool, args);
  });
}

Status gist_pool_backward_cuda(const Exec& exec, const GistPoolBackwardArgs& args) {
  const Pool pool{args.grad_gists.shape[0], args.block_size, args.rows.shape[1], args.scale,
                  args.weights.as<float>()};
  return with_float_type(args.rows.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = kWideVec<T>;
    const bool wide =
        is_wide(args.rows, pool.width, kVec) && is_wide(args.grad_gists, pool.width, kVec) &&
        is_wide(args.grad_rows, pool.width, kVec) && is_wide(args.query, pool.width, kVec);
    return wide ? launch_backward<T, kVec>(exec, pool, args)
                : launch_backward<T, 1>(exec, pool, args);
  });
}

Status block_weights_cuda(const Exec& exec, const float* weights, int64_t block_size,
                          int64_t block_count, float* sums) {
  const dim3 grid(static_cast<unsigned>((block_count + kThreads - 1) / kThreads));
  return MC_LAUNCH(block_weights_kernel, grid, dim3(kThreads), 0, exec.stream, weights, block_size,
                   block_count, sums);
}

}  // namespace mc
