// Memory-bound: a thread owns kVec neighbouring pairs of one row and touches each byte once.
#include "kernels/common/device.cuh"
#include "kernels/gaussian_rope/gaussian_rope.h"
#include "kernels/gaussian_rope/rope_shape.h"

namespace mc {
namespace {

constexpr int kThreads = 256;

unsigned grid_for(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}
MC_DEVICE int64_t thread_number() {
  return int64_t{blockIdx.x} * kThreads + threadIdx.x;
}

struct TablePointers {
  const float* positions;
  const float* sigmas;  // may be nullptr
  const float* inv_freq;
  float scale;
  float* cos;
  float* sin;
};

// sinf and cosf reduce large angles exactly (slowly, but a table is small).
__global__ void __launch_bounds__(kThreads)
    rope_tables_kernel(TablePointers tables, int64_t count, int64_t pairs) {
  const int64_t index = thread_number();
  if (index >= count * pairs) return;
  const int64_t row = index / pairs, j = index % pairs;
  const float angle = tables.positions[row] * tables.inv_freq[j];
  float factor = tables.scale;
  if (tables.sigmas != nullptr) {
    const float spread = tables.sigmas[row] * tables.inv_freq[j];
    factor *= expf(-0.5f * spread * spread);
  }
  tables.cos[index] = factor * cosf(angle);
  tables.sin[index] = factor * sinf(angle);
}

// Units of a row: first the pieces of kVec pairs, then those of kVec columns that are only copied
// (none in place, where they are there already).
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(RopeShape shape, int64_t units, const T* x, const float* __restrict__ cos,
                const float* __restrict__ sin, float sign, T* out) {
  const int64_t pair_units = shape.pairs / kVec;
  const int64_t index = thread_number();
  if (index >= shape.batch * shape.heads * shape.tokens * units) return;
  const int64_t row = index / units, unit = index % units;
  x += row * shape.width;
  out += row * shape.width;
  if (unit >= pair_units) {
    const int64_t at = 2 * shape.pairs + (unit - pair_units) * kVec;
    store_pack(out + at, load_pack<kVec>(x + at));
    return;
  }
  const int64_t at = unit * kVec, table = shape.table_row(row) * shape.pairs + at;
  const Pack<T, kVec> low = load_pack<kVec>(x + at), high = load_pack<kVec>(x + shape.pairs + at);
  const Pack<float, kVec> c = load_pack<kVec>(cos + table), s = load_pack<kVec>(sin + table);
  Pack<T, kVec> left, right;
#pragma unroll
  for (int v = 0; v < kVec; ++v) {
    const float first = to_float(low.value[v]), second = to_float(high.value[v]);
    const float turn = sign * s.value[v];
    left.value[v] = from_float<T>(first * c.value[v] - second * turn);
    right.value[v] = from_float<T>(second * c.value[v] + first * turn);
  }
  store_pack(out + at, left);
  store_pack(out + shape.pairs + at, right);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    rope_tables_backward_kernel(RopeShape shape, const T* __restrict__ grad,
                                const T* __restrict__ x, float* __restrict__ grad_cos,
                                float* __restrict__ grad_sin) {
  const int64_t index = thread_number();
  if (index >= shape.copies * shape.tokens * shape.pairs) return;
  const int64_t table = index / shape.pairs, j = index % shape.pairs;
  const int64_t batches = shape.copies == 1 ? shape.batch : 1;
  float sum_cos = 0.f, sum_sin = 0.f;
  for (int64_t extra = 0; extra < batches; ++extra) {
    for (int64_t head = 0; head < shape.heads; ++head) {
      const int64_t row = shape.x_row(table, extra, head) * shape.width;
      const float g1 = to_float(grad[row + j]), g2 = to_float(grad[row + shape.pairs + j]);
      const float x1 = to_float(x[row + j]), x2 = to_float(x[row + shape.pairs + j]);
      sum_cos += g1 * x1 + g2 * x2;
      sum_sin += g2 * x1 - g1 * x2;
    }
  }
  grad_cos[index] = sum_cos;
  grad_sin[index] = sum_sin;
}

template <class T, int kVec>
Status launch_rope(const Exec& exec, const RopeShape& shape, const GaussianRopeArgs& args) {
  const bool in_place = args.x.data == args.out.data;
  const int64_t copied = in_place ? 0 : (shape.width - 2 * shape.pairs) / kVec;
  const int64_t units = shape.pairs / kVec + copied;
  return MC_LAUNCH((rope_kernel<T, kVec>), dim3(grid_for(shape.x_rows() * units)), dim3(kThreads),
                   0, exec.stream, shape, units, args.x.as<T>(), args.cos.as<float>(),
                   args.sin.as<float>(), args.inverse ? -1.f : 1.f, args.out.as<T>());
}

bool is_aligned(const TensorView& view) {
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

}  // namespace

Status gaussian_rope_tables_cuda(const Exec& exec, const GaussianRopeTablesArgs& args) {
  const int64_t count = args.positions.shape[0], pairs = args.inv_freq.shape[0];
  const TablePointers tables{args.positions.as<float>(), args.sigmas.as<float>(),
                             args.inv_freq.as<float>(),  args.scale,
                             args.cos.as<float>(),       args.sin.as<float>()};
  return MC_LAUNCH(rope_tables_kernel, dim3(grid_for(count * pairs)), dim3(kThreads), 0,
                   exec.stream, tables, count, pairs);
}

Status gaussian_rope_cuda(const Exec& exec, const GaussianRopeArgs& args) {
  const RopeShape shape = rope_shape(args.x, args.cos);
  return with_float_type(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = shape.pairs % 4 == 0 && shape.width % 4 == 0 && is_aligned(args.x) &&
                      is_aligned(args.out) && is_aligned(args.cos) && is_aligned(args.sin);
    return wide ? launch_rope<T, 4>(exec, shape, args) : launch_rope<T, 1>(exec, shape, args);
  });
}

Status gaussian_rope_tables_backward_cuda(const Exec& exec, const GaussianRopeBackwardArgs& args) {
  const RopeShape shape = rope_shape(args.x, args.grad_cos);
  return with_float_type(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    return MC_LAUNCH((rope_tables_backward_kernel<T>),
                     dim3(grid_for(shape.table_rows() * shape.pairs)), dim3(kThreads), 0,
                     exec.stream, shape, args.grad.as<T>(), args.x.as<T>(),
                     args.grad_cos.as<float>(), args.grad_sin.as<float>());
  });
}

}  // namespace mc
