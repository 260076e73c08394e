// What the backward kernels on CUDA are told besides AttendArgs, and the arithmetic they share.
#pragma once

#include "kernels/focused_attention/attend_args.cuh"

namespace mc::focused {

struct BackwardArgs {
  const void* grad_out;
  const float* lse2;        // [T, Hq] lse * log2(e); +inf where nothing was visible
  const float* delta;       // [T, Hq] sum(grad_out * out) - grad_lse
  void* grad_q;             // as q, rotated back
  const float* query_rope;  // [T, rope_width], or null
  int rope_width;
  // The plan the other way round: the query blocks that read each block.
  const int* readers_count;  // [Hp, N]
  const int* readers;        // [Hp, N, M], + kFullBlock like the plan's blocks
  float* grad_keys;          // [N, Hkv, 32, E], still rotated
  float* grad_values;        // [N, Hkv, 32, E]
  float* grad_bias;          // [Hq, N, 32], or null
};

// One score on its way back.
struct ScoreGrad {
  float weight;    // softmax weight
  float grad;      // d loss / d score, after cap and bias: what the bias gets
  float grad_dot;  // d loss / d (q . k)
};

MC_DEVICE ScoreGrad score_grad(const AttendArgs& args, float dot, float grad_weight, float bias,
                               float lse2, float delta, bool seen) {
  float score = dot * args.scale, slope = args.scale;
  if (args.softcap > 0.f) {
    score = capped(score, args.softcap);
    const float t = score / args.softcap;
    slope *= 1.f - t * t;
  }
  ScoreGrad out;
  out.weight = seen ? exp2_fast((score + bias) * kLog2E - lse2) : 0.f;
  out.grad = out.weight * (grad_weight - delta);
  out.grad_dot = out.grad * slope;
  return out;
}

Status backward_mma_64(DType dtype, const AttendArgs& args, const BackwardArgs& back,
                       const Exec& exec);
Status backward_mma_128(DType dtype, const AttendArgs& args, const BackwardArgs& back,
                        const Exec& exec);
Status backward_mma_256(DType dtype, const AttendArgs& args, const BackwardArgs& back,
                        const Exec& exec);
Status backward_f32(const AttendArgs& args, const BackwardArgs& back, int width, const Exec& exec);

}  // namespace mc::focused
