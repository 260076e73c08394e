#include <algorithm>

#include "kernels/common/scalar.h"
#include "kernels/common/vec.h"
#include "kernels/gaussian_rope/gaussian_rope.h"
#include "kernels/gaussian_rope/rope_shape.h"

namespace mc {
namespace {

struct TableInputs {
  const float* positions;
  const float* sigmas;  // may be nullptr
  const float* inv_freq;
  int64_t pairs;
  float scale;
};
struct RopeTables {
  const float* cos;
  const float* sin;
  float sign;
};

}  // namespace

namespace portable {
namespace {
using Vec = VecPortable;
#include "kernels/gaussian_rope/gaussian_rope_body.h"
}  // namespace
}  // namespace portable

MC_BEGIN_AVX2
namespace avx2 {
namespace {
using Vec = VecAvx2;
#include "kernels/gaussian_rope/gaussian_rope_body.h"
}  // namespace
}  // namespace avx2
MC_END_LEVEL

MC_BEGIN_AVX512
namespace avx512 {
namespace {
using Vec = VecAvx512;
#include "kernels/gaussian_rope/gaussian_rope_body.h"
}  // namespace
}  // namespace avx512
MC_END_LEVEL

namespace {

// Rows for one thread: about 64 KiB of float32.
int64_t row_grain(int64_t width) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
}

}  // namespace

void gaussian_rope_tables_cpu(const Exec& exec, const GaussianRopeTablesArgs& args) {
  const TableInputs in{args.positions.as<float>(), args.sigmas.as<float>(),
                       args.inv_freq.as<float>(), args.inv_freq.shape[0], args.scale};
  float *cos = args.cos.as<float>(), *sin = args.sin.as<float>();
  const int64_t grain = row_grain(2 * in.pairs);
  exec.for_range(0, args.positions.shape[0], grain, [&](int64_t begin, int64_t end) {
    MC_FOR_CPU_LEVEL(table_rows(in, cos, sin, begin, end))
  });
}

void gaussian_rope_cpu(const Exec& exec, const GaussianRopeArgs& args) {
  const RopeShape shape = rope_shape(args.x, args.cos);
  const RopeTables tables{args.cos.as<float>(), args.sin.as<float>(), args.inverse ? -1.f : 1.f};
  exec.for_range(0, shape.x_rows(), row_grain(shape.width), [&](int64_t begin, int64_t end) {
    with_float_type(args.x.dtype, [&](auto zero) {
      using T = decltype(zero);
      MC_FOR_CPU_LEVEL(rotate_rows<T>(shape, tables, args.x.data, args.out.data, begin, end))
    });
  });
}

void gaussian_rope_tables_backward_cpu(const Exec& exec, const GaussianRopeBackwardArgs& args) {
  const RopeShape shape = rope_shape(args.x, args.grad_cos);
  const int64_t grain = row_grain(shape.width * shape.heads);
  exec.for_range(0, shape.table_rows(), grain, [&](int64_t begin, int64_t end) {
    with_float_type(args.x.dtype, [&](auto zero) {
      using T = decltype(zero);
      MC_FOR_CPU_LEVEL(sum_table_gradients<T>(shape, args.grad.data, args.x.data,
                                              args.grad_cos.as<float>(), args.grad_sin.as<float>(),
                                              begin, end))
    });
  });
}

}  // namespace mc
