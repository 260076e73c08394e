#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/block_encoder/block_encoder.h"
#include "kernels/block_encoder/window_attention.cuh"
#include "kernels/common/device.cuh"

namespace mc {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMostBlocks = 132 * 16;

// Elements in one 16-byte access.
template <class T>
constexpr int kPackOf = 16 / static_cast<int>(sizeof(T));

template <class T>
struct NormPointers {
  const T *x, *delta, *gain;
  T *sum, *y;
  float* inverse;
};

// A warp a row. The second pass finds the row in L1.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_norm_kernel(NormPointers<T> at, int64_t rows, int64_t width, float epsilon) {
  constexpr int kPack = kPackOf<T>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index(); r < rows; r += step) {
    const T* x = at.x + r * width;
    float squares = 0.f;
    for (int64_t c = lane_index() * kPack; c < width; c += 32 * kPack) {
      auto values = load_pack<kPack>(x + c);
      if (at.delta != nullptr) {
        const auto delta = load_pack<kPack>(at.delta + r * width + c);
#pragma unroll
        for (int j = 0; j < kPack; ++j) {
          values.value[j] = from_float<T>(to_float(values.value[j]) + to_float(delta.value[j]));
        }
        store_pack(at.sum + r * width + c, values);
      }
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const float value = to_float(values.value[j]);
        squares += value * value;
      }
    }
    const float inverse = rsqrtf(warp_sum(squares) / static_cast<float>(width) + epsilon);
    if (lane_index() == 0) at.inverse[r] = inverse;
    const T* s = at.delta != nullptr ? at.sum + r * width : x;
    for (int64_t c = lane_index() * kPack; c < width; c += 32 * kPack) {
      auto values = load_pack<kPack>(s + c);
      const auto gain = load_pack<kPack>(at.gain + c);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        values.value[j] =
            from_float<T>(to_float(values.value[j]) * inverse * to_float(gain.value[j]));
      }
      store_pack(at.y + r * width + c, values);
    }
  }
}

template <class T>
struct NormGradPointers {
  const T *grad_y, *grad_sum, *s, *gain;
  const float* inverse;
  T* grad_s;
  float* partials;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_norm_backward_kernel(NormGradPointers<T> at, int64_t rows, int64_t width) {
  constexpr int kPack = kPackOf<T>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index(); r < rows; r += step) {
    float dot = 0.f;
    for (int64_t c = lane_index() * kPack; c < width; c += 32 * kPack) {
      const auto dy = load_pack<kPack>(at.grad_y + r * width + c);
      const auto s = load_pack<kPack>(at.s + r * width + c);
      const auto gain = load_pack<kPack>(at.gain + c);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        dot += to_float(dy.value[j]) * to_float(s.value[j]) * to_float(gain.value[j]);
      }
    }
    const float inverse = at.inverse[r];
    const float pull = -warp_sum(dot) * inverse * inverse * inverse / static_cast<float>(width);
    for (int64_t c = lane_index() * kPack; c < width; c += 32 * kPack) {
      auto dy = load_pack<kPack>(at.grad_y + r * width + c);
      const auto s = load_pack<kPack>(at.s + r * width + c);
      const auto gain = load_pack<kPack>(at.gain + c);
      float out[kPack];
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        out[j] =
            to_float(dy.value[j]) * to_float(gain.value[j]) * inverse + to_float(s.value[j]) * pull;
      }
      if (at.grad_sum != nullptr) {
        const auto more = load_pack<kPack>(at.grad_sum + r * width + c);
#pragma unroll
        for (int j = 0; j < kPack; ++j) out[j] += to_float(more.value[j]);
      }
#pragma unroll
      for (int j = 0; j < kPack; ++j) dy.value[j] = from_float<T>(out[j]);
      store_pack(at.grad_s + r * width + c, dy);
    }
  }
}

// partials[group][column] = sum over the group's rows of grad_y * s * inverse.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gain_partials_kernel(NormGradPointers<T> at, int64_t rows, int64_t width) {
  constexpr int kPack = kPackOf<T>;
  const int64_t groups = gridDim.y, group = blockIdx.y;
  const int64_t begin = group * rows / groups, end = (group + 1) * rows / groups;
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack;
  if (c >= width) return;
  float sums[kPack] = {};
#pragma unroll 4
  for (int64_t r = begin; r < end; ++r) {
    const auto dy = load_pack<kPack>(at.grad_y + r * width + c);
    const auto s = load_pack<kPack>(at.s + r * width + c);
    const float inverse = at.inverse[r];
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      sums[j] += to_float(dy.value[j]) * to_float(s.value[j]) * inverse;
    }
  }
#pragma unroll
  for (int j = 0; j < kPack; ++j) at.partials[group * width + c + j] = sums[j];
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gain_sum_kernel(const float* partials, int64_t groups, int64_t width, T* grad_gain) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= width) return;
  float sum = 0.f;
  for (int64_t group = 0; group < groups; ++group) sum += partials[group * width + c];
  grad_gain[c] = from_float<T>(sum);
}

MC_DEVICE float sigmoid(float x) {
  return 1.f / (1.f + exp2_fast(-x * kLog2E));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gated_act_kernel(const T* gate_up, T* out, int64_t packs, int64_t row_packs) {
  constexpr int kPack = kPackOf<T>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (; i < packs; i += step) {
    const int64_t from = (i / row_packs * 2 * row_packs + i % row_packs) * kPack;
    auto gate = load_pack<kPack>(gate_up + from);
    const auto up = load_pack<kPack>(gate_up + from + row_packs * kPack);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float g = to_float(gate.value[j]);
      gate.value[j] = from_float<T>(g * sigmoid(g) * to_float(up.value[j]));
    }
    store_pack(out + i * kPack, gate);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gated_act_backward_kernel(const T* grad_out, const T* gate_up, T* grad_gate_up, int64_t packs,
                              int64_t row_packs) {
  constexpr int kPack = kPackOf<T>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (; i < packs; i += step) {
    const int64_t at = (i / row_packs * 2 * row_packs + i % row_packs) * kPack;
    auto gate = load_pack<kPack>(gate_up + at);
    auto up = load_pack<kPack>(gate_up + at + row_packs * kPack);
    const auto grad = load_pack<kPack>(grad_out + i * kPack);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float g = to_float(gate.value[j]), d = to_float(grad.value[j]), share = sigmoid(g);
      gate.value[j] = from_float<T>(d * to_float(up.value[j]) * share * (1.f + g * (1.f - share)));
      up.value[j] = from_float<T>(d * g * share);
    }
    store_pack(grad_gate_up + at, gate);
    store_pack(grad_gate_up + at + row_packs * kPack, up);
  }
}

dim3 blocks_for(int64_t items, int64_t items_a_block) {
  return dim3(static_cast<unsigned>(
      std::clamp<int64_t>((items + items_a_block - 1) / items_a_block, 1, kMostBlocks)));
}

template <class T, int kHead>
Status launch_attention(const Exec& exec, const AttentionInputs<T>& in) {
  const bool backward = in.grad_out != nullptr;
  const int warps = backward ? 2 : 4;
  const int64_t room = kWindow * head_pitch<kHead>();
  const int64_t elements = backward ? 4 * room + 2 * kWindow * kScorePitch : 3 * room;
  const dim3 grid(static_cast<unsigned>((in.pairs + warps - 1) / warps));
  const dim3 block(static_cast<unsigned>(32 * warps));
  const auto smem = static_cast<size_t>(warps * elements * int64_t{sizeof(T)});
  if (backward) {
    return MC_LAUNCH((attention_backward_kernel<T, kHead>), grid, block, smem, exec.stream, in);
  }
  return MC_LAUNCH((attention_kernel<T, kHead>), grid, block, smem, exec.stream, in);
}

template <class T>
Status attention(const Exec& exec, const TensorView& qkv, const TensorView& table,
                 const T* grad_out, T* out) {
  const int64_t width = qkv.shape[1] / 3, head_width = table.shape[1];
  const AttentionInputs<T> in{qkv.as<T>(),
                              table.as<float>(),
                              grad_out,
                              out,
                              width,
                              qkv.shape[0] / kWindow * (width / head_width),
                              1.f / std::sqrt(static_cast<float>(head_width))};
  if constexpr (std::is_same_v<T, float>) {
    const int64_t rooms = grad_out == nullptr ? 3 : 4;
    const int64_t floats = rooms * kWindow * (head_width + 1) + 2 * kWindow * kWindow;
    return MC_LAUNCH(attention_plain_kernel, dim3(static_cast<unsigned>(in.pairs)),
                     dim3(kPlainThreads), static_cast<size_t>(4 * floats), exec.stream, in,
                     static_cast<int>(head_width));
  } else {
    if (head_width == 32) return launch_attention<T, 32>(exec, in);
    if (head_width == 64) return launch_attention<T, 64>(exec, in);
    return launch_attention<T, 128>(exec, in);
  }
}

}  // namespace

Status add_norm_cuda(const Exec& exec, const AddNormArgs& args) {
  const int64_t rows = args.x.shape[0], width = args.x.shape[1];
  return with_float_type(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const NormPointers<T> at{args.x.as<T>(),   args.delta.as<T>(), args.gain.as<T>(),
                             args.sum.as<T>(), args.y.as<T>(),     args.inverse.as<float>()};
    return MC_LAUNCH(add_norm_kernel<T>, blocks_for(rows, kWarps), dim3(kThreads), 0, exec.stream,
                     at, rows, width, args.epsilon);
  });
}

Status add_norm_backward_cuda(const Exec& exec, const AddNormBackwardArgs& args) {
  const int64_t rows = args.s.shape[0], width = args.s.shape[1];
  const int64_t groups = add_norm_groups(rows);
  return with_float_type(args.s.dtype, [&](auto zero) -> Status {
    using T = decltype(zero);
    const NormGradPointers<T> at{args.grad_y.as<T>(),      args.grad_sum.as<T>(),
                                 args.s.as<T>(),           args.gain.as<T>(),
                                 args.inverse.as<float>(), args.grad_s.as<T>(),
                                 args.partials.as<float>()};
    MC_RETURN_IF_ERROR(MC_LAUNCH(add_norm_backward_kernel<T>, blocks_for(rows, kWarps),
                                 dim3(kThreads), 0, exec.stream, at, rows, width));
    const int64_t columns = kThreads * kPackOf<T>;
    const dim3 grid(static_cast<unsigned>((width + columns - 1) / columns),
                    static_cast<unsigned>(groups));
    MC_RETURN_IF_ERROR(
        MC_LAUNCH(gain_partials_kernel<T>, grid, dim3(kThreads), 0, exec.stream, at, rows, width));
    return MC_LAUNCH(gain_sum_kernel<T>,
                     dim3(static_cast<unsigned>((width + kThreads - 1) / kThreads)), dim3(kThreads),
                     0, exec.stream, at.partials, groups, width, args.grad_gain.as<T>());
  });
}

Status window_attention_cuda(const Exec& exec, const WindowAttentionArgs& args) {
  return with_float_type(args.qkv.dtype, [&](auto zero) {
    using T = decltype(zero);
    return attention<T>(exec, args.qkv, args.table, nullptr, args.out.as<T>());
  });
}

Status window_attention_backward_cuda(const Exec& exec, const WindowAttentionBackwardArgs& args) {
  return with_float_type(args.qkv.dtype, [&](auto zero) {
    using T = decltype(zero);
    return attention<T>(exec, args.qkv, args.table, args.grad_out.as<T>(), args.grad_qkv.as<T>());
  });
}

Status gated_act_cuda(const Exec& exec, const GatedActArgs& args) {
  return with_float_type(args.out.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t packs = args.out.numel() / kPackOf<T>;
    return MC_LAUNCH(gated_act_kernel<T>, blocks_for(packs, kThreads), dim3(kThreads), 0,
                     exec.stream, args.gate_up.as<T>(), args.out.as<T>(), packs,
                     args.out.shape[1] / kPackOf<T>);
  });
}

Status gated_act_backward_cuda(const Exec& exec, const GatedActBackwardArgs& args) {
  return with_float_type(args.grad_out.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t packs = args.grad_out.numel() / kPackOf<T>;
    return MC_LAUNCH(gated_act_backward_kernel<T>, blocks_for(packs, kThreads), dim3(kThreads), 0,
                     exec.stream, args.grad_out.as<T>(), args.gate_up.as<T>(),
                     args.grad_gate_up.as<T>(), packs, args.grad_out.shape[1] / kPackOf<T>);
  });
}

}  // namespace mc
