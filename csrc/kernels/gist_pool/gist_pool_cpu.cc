#include <algorithm>

#include "kernels/common/scalar.h"
#include "kernels/common/vec.h"
#include "kernels/gist_pool/gist_pool.h"

namespace mc {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr int64_t kPoolColumns = 2048;  // whose sums stay in the L1 cache
constexpr int64_t kPageBytes = 4096;

struct PoolShape {
  int64_t block_count, block_size, width;
  float scale;
};
struct PoolInputs {
  const void* rows;
  const float* weights;
  const void* query;
};
struct PoolGradients {
  const void* grad_gists;
  void* grad_rows;
  float* grad_weights;
};

}  // namespace

namespace portable {
namespace {
using Vec = VecPortable;
#include "kernels/gist_pool/gist_pool_body.h"
}  // namespace
}  // namespace portable

MC_BEGIN_AVX2
namespace avx2 {
namespace {
using Vec = VecAvx2;
#include "kernels/gist_pool/gist_pool_body.h"
}  // namespace
}  // namespace avx2
MC_END_LEVEL

MC_BEGIN_AVX512
namespace avx512 {
namespace {
using Vec = VecAvx512;
#include "kernels/gist_pool/gist_pool_body.h"
}  // namespace
}  // namespace avx512
MC_END_LEVEL

namespace {

// A piece of work for one thread reads about this much: long against the cost of waking a thread.
constexpr int64_t kGrainBytes = 256 * 1024;

int64_t block_grain(const PoolShape& shape, DType dtype) {
  const int64_t block_bytes = shape.block_size * shape.width * dtype_bytes(dtype);
  return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, block_bytes));
}

// Sum over the groups, always in the same order.
template <class T>
void sum_partials(const float* partials, int64_t groups, int64_t width, T* out) {
  for (int64_t column = 0; column < width; ++column) {
    float sum = 0.f;
    for (int64_t group = 0; group < groups; ++group) sum += partials[group * width + column];
    out[column] = from_float<T>(sum);
  }
}

}  // namespace

void gist_pool_cpu(const Exec& exec, const GistPoolArgs& args) {
  const PoolShape shape{args.gists.shape[0], args.block_size, args.rows.shape[1], args.scale};
  const PoolInputs in{args.rows.data, args.weights.as<float>(), args.query.data};
  const DType dtype = args.rows.dtype;
  exec.for_range(0, shape.block_count, block_grain(shape, dtype), [&](int64_t begin, int64_t end) {
    with_float_type(dtype, [&](auto zero) {
      using T = decltype(zero);
      MC_FOR_CPU_LEVEL(pool_blocks<T>(shape, in, args.gists.data, begin, end))
    });
  });
}

void gist_pool_backward_cpu(const Exec& exec, const GistPoolBackwardArgs& args) {
  const int64_t width = args.rows.shape[1];
  const PoolShape shape{args.grad_gists.shape[0], args.block_size, width, args.scale};
  const PoolInputs in{args.rows.data, args.weights.as<float>(), args.query.data};
  const PoolGradients out{args.grad_gists.data, args.grad_rows.data, args.grad_weights.as<float>()};
  const bool sums_query = args.grad_query.defined();
  float* partials = args.query_partials.as<float>();
  const int64_t groups =
      sums_query ? gist_pool_query_groups(Device::kCpu, shape.block_count) : shape.block_count;
  const int64_t grain = sums_query ? 1 : block_grain(shape, args.rows.dtype);
  with_float_type(args.rows.dtype, [&](auto zero) {
    using T = decltype(zero);
    exec.for_range(0, groups, grain, [&](int64_t first, int64_t last) {
      for (int64_t group = first; group < last; ++group) {
        const int64_t begin = group * shape.block_count / groups;
        const int64_t end = (group + 1) * shape.block_count / groups;
        float* sum = sums_query ? partials + group * width : nullptr;
        MC_FOR_CPU_LEVEL(pool_backward_blocks<T>(shape, in, out, begin, end, sum))
      }
    });
    if (sums_query) sum_partials<T>(partials, groups, width, args.grad_query.as<T>());
  });
}

}  // namespace mc
