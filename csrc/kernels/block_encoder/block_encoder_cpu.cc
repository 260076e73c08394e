#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/block_encoder/block_encoder.h"
#include "kernels/common/scalar.h"
#include "kernels/common/vec.h"

namespace mc {
namespace {

constexpr int kWindow = static_cast<int>(kWindowRows);

template <class T>
struct AddNormRow {
  const T *x, *delta, *gain;
  T *sum, *y;
  float* inverse;
};
template <class T>
struct AddNormGrad {
  const T *grad_y, *grad_sum, *s, *gain;
  const float* inverse;
  T* grad_s;
};
template <class T>
struct AttentionShape {
  const T* qkv;
  const float* table;
  int64_t width;
  float scale;
};
// Windows [begin, end) of heads that are kHead wide.
template <int kHead>
struct Windows {
  int64_t begin, end;
};
template <class T>
struct GatedActGrad {
  const T *grad_out, *gate_up;
  T* grad_gate_up;
};

// Results of this type carry 8 bits: exponentials may be rough.
template <class T>
constexpr bool kIsRough = std::is_same_v<T, bf16>;

void transpose16_portable(const float* from, int64_t stride, float* to, int64_t to_stride) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) to[j * to_stride + i] = from[i * stride + j];
  }
}

}  // namespace

namespace portable {
namespace {
using Vec = VecPortable;
MC_INLINE Vec reciprocal(Vec x) {
  for (float& lane : x.lane) lane = 1.f / lane;
  return x;
}
MC_INLINE Vec exp_rough(Vec x) {
  return x.exp();
}
MC_INLINE Vec reciprocal_rough(Vec x) {
  return reciprocal(x);
}
MC_INLINE void transpose16(const float* from, int64_t stride, float* to, int64_t to_stride) {
  transpose16_portable(from, stride, to, to_stride);
}
#include "kernels/block_encoder/block_encoder_body.h"
}  // namespace
}  // namespace portable

MC_BEGIN_AVX2
namespace avx2 {
namespace {
using Vec = VecAvx2;
MC_INLINE Vec reciprocal(Vec x) {
  return {_mm256_div_ps(_mm256_set1_ps(1.f), x.v)};
}
MC_INLINE Vec exp_rough(Vec x) {
  return x.exp();
}
MC_INLINE Vec reciprocal_rough(Vec x) {
  return reciprocal(x);
}
MC_INLINE void transpose16(const float* from, int64_t stride, float* to, int64_t to_stride) {
  transpose16_portable(from, stride, to, to_stride);
}
#include "kernels/block_encoder/block_encoder_body.h"
}  // namespace
}  // namespace avx2
MC_END_LEVEL

MC_BEGIN_AVX512
namespace avx512 {
namespace {
using Vec = VecAvx512;
// A minimax fit of 2^x on [0, 1): relative error 2.7e-6. 0 and infinity far out, NaN stays.
MC_INLINE Vec exp_rough(Vec x) {
  const __m512 power = _mm512_mul_ps(x.v, _mm512_set1_ps(1.44269504088896341f));
  const __m512 rest = _mm512_reduce_ps(power, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(0.013534167781f);
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.052011460066f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.24144275486f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.69300383329f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(1.0000026226f));
  return {_mm512_scalef_ps(p, power)};
}
// To 14 bits; 0 of infinity.
MC_INLINE Vec reciprocal_rough(Vec x) {
  return {_mm512_rcp14_ps(x.v)};
}
// One Newton step on a 14-bit estimate: a relative error below 2^-27 for normal x.
MC_INLINE Vec reciprocal(Vec x) {
  const __m512 estimate = _mm512_rcp14_ps(x.v);
  const __m512 rest = _mm512_fnmadd_ps(x.v, estimate, _mm512_set1_ps(2.f));
  return {_mm512_mul_ps(estimate, rest)};
}
// Pairs of floats, pairs of pairs, then quarters of the registers change places.
MC_INLINE void transpose16(const float* from, int64_t stride, float* to, int64_t to_stride) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 low0 = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
    const __m512 low1 = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
    const __m512 high0 = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
    const __m512 high1 = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
    _mm512_storeu_ps(to + i * to_stride, _mm512_shuffle_f32x4(low0, low1, 0x88));
    _mm512_storeu_ps(to + (i + 8) * to_stride, _mm512_shuffle_f32x4(low0, low1, 0xdd));
    _mm512_storeu_ps(to + (i + 4) * to_stride, _mm512_shuffle_f32x4(high0, high1, 0x88));
    _mm512_storeu_ps(to + (i + 12) * to_stride, _mm512_shuffle_f32x4(high0, high1, 0xdd));
  }
}
#include "kernels/block_encoder/block_encoder_body.h"
}  // namespace
}  // namespace avx512
MC_END_LEVEL

namespace {

// A piece of work for one thread reads about this much: long against the cost of waking a thread.
constexpr int64_t kGrainBytes = 256 * 1024;

int64_t row_grain(int64_t row_bytes) {
  return std::max<int64_t>(1, kGrainBytes / row_bytes);
}

template <class Body>
void with_head_width(int64_t head_width, Body body) {
  switch (head_width) {
    case 32: return body(std::integral_constant<int, 32>{});
    case 64: return body(std::integral_constant<int, 64>{});
    default: return body(std::integral_constant<int, 128>{});
  }
}

template <class T>
AttentionShape<T> attention_shape(const TensorView& qkv, const TensorView& table) {
  return {qkv.as<T>(), table.as<float>(), qkv.shape[1] / 3,
          1.f / std::sqrt(static_cast<float>(table.shape[1]))};
}

}  // namespace

void add_norm_cpu(const Exec& exec, const AddNormArgs& args) {
  const int64_t width = args.x.shape[1];
  with_float_type(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const AddNormRow<T> first{args.x.as<T>(),   args.delta.as<T>(), args.gain.as<T>(),
                              args.sum.as<T>(), args.y.as<T>(),     args.inverse.as<float>()};
    exec.for_range(0, args.x.shape[0], row_grain(4 * width * int64_t{sizeof(T)}),
                   [&](int64_t begin, int64_t end) {
                     MC_FOR_CPU_LEVEL(add_norm_rows<T>(first, width, args.epsilon, begin, end))
                   });
  });
}

void add_norm_backward_cpu(const Exec& exec, const AddNormBackwardArgs& args) {
  const int64_t rows = args.s.shape[0], width = args.s.shape[1];
  const int64_t groups = add_norm_groups(rows);
  float* partials = args.partials.as<float>();
  with_float_type(args.s.dtype, [&](auto zero) {
    using T = decltype(zero);
    const AddNormGrad<T> grad{args.grad_y.as<T>(), args.grad_sum.as<T>(),    args.s.as<T>(),
                              args.gain.as<T>(),   args.inverse.as<float>(), args.grad_s.as<T>()};
    exec.for_range(0, groups, 1, [&](int64_t first, int64_t last) {
      for (int64_t group = first; group < last; ++group) {
        const int64_t begin = group * rows / groups, end = (group + 1) * rows / groups;
        MC_FOR_CPU_LEVEL(
            add_norm_backward_rows<T>(grad, width, begin, end, partials + group * width))
      }
    });
    for (int64_t group = 1; group < groups; ++group) {
      for (int64_t at = 0; at < width; ++at) partials[at] += partials[group * width + at];
    }
    T* out = args.grad_gain.as<T>();
    for (int64_t at = 0; at < width; ++at) out[at] = from_float<T>(partials[at]);
  });
}

void window_attention_cpu(const Exec& exec, const WindowAttentionArgs& args) {
  const int64_t windows = args.qkv.shape[0] / kWindowRows;
  with_float_type(args.qkv.dtype, [&](auto zero) {
    using T = decltype(zero);
    const AttentionShape<T> shape = attention_shape<T>(args.qkv, args.table);
    with_head_width(args.table.shape[1], [&](auto head_width) {
      constexpr int kHead = decltype(head_width)::value;
      exec.for_range(0, windows, 4, [&](int64_t begin, int64_t end) {
        const Windows<kHead> windows_of{begin, end};
        MC_FOR_CPU_LEVEL(attention_windows(shape, args.out.as<T>(), windows_of))
      });
    });
  });
}

void window_attention_backward_cpu(const Exec& exec, const WindowAttentionBackwardArgs& args) {
  const int64_t windows = args.qkv.shape[0] / kWindowRows;
  with_float_type(args.qkv.dtype, [&](auto zero) {
    using T = decltype(zero);
    const AttentionShape<T> shape = attention_shape<T>(args.qkv, args.table);
    with_head_width(args.table.shape[1], [&](auto head_width) {
      constexpr int kHead = decltype(head_width)::value;
      exec.for_range(0, windows, 4, [&](int64_t begin, int64_t end) {
        const T* grad_out = args.grad_out.as<T>();
        T* grad_qkv = args.grad_qkv.as<T>();
        const Windows<kHead> windows_of{begin, end};
        MC_FOR_CPU_LEVEL(attention_backward_windows(shape, grad_out, grad_qkv, windows_of))
      });
    });
  });
}

void gated_act_cpu(const Exec& exec, const GatedActArgs& args) {
  const int64_t width = args.out.shape[1];
  with_float_type(args.out.dtype, [&](auto zero) {
    using T = decltype(zero);
    exec.for_range(
        0, args.out.shape[0], row_grain(3 * width * int64_t{sizeof(T)}),
        [&](int64_t begin, int64_t end) {
          const T* gate_up = args.gate_up.as<T>();
          MC_FOR_CPU_LEVEL(gated_act_rows<T>(gate_up, args.out.as<T>(), width, begin, end))
        });
  });
}

void gated_act_backward_cpu(const Exec& exec, const GatedActBackwardArgs& args) {
  const int64_t width = args.grad_out.shape[1];
  with_float_type(args.grad_out.dtype, [&](auto zero) {
    using T = decltype(zero);
    const GatedActGrad<T> grad{args.grad_out.as<T>(), args.gate_up.as<T>(),
                               args.grad_gate_up.as<T>()};
    exec.for_range(0, args.grad_out.shape[0], row_grain(5 * width * int64_t{sizeof(T)}),
                   [&](int64_t begin, int64_t end) {
                     MC_FOR_CPU_LEVEL(gated_act_backward_rows<T>(grad, width, begin, end))
                   });
  });
}

}  // namespace mc
