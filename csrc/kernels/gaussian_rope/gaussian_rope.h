// gaussian_rope: rotary embedding for a place that is known as a mean and a width.
//
// A gist stands for a span. With positions spread around a mean p as a Gaussian of width sigma, the
// expected rotation of frequency omega_j is the plain one, damped by a_j =
// exp(-(sigma*omega_j)^2/2). Sigma 0 gives a_j = 1 exactly, the bits of plain RoPE.
//
// gaussian_rope_tables
//   positions [N]      float32, the mean place, may be fractional
//   sigmas    [N]      float32, >= 0, optional: width in tokens (absent: all 0)
//   inv_freq  [P]      float32, omega_j, radians a token
//   scale              multiplies both tables (attention scaling of YaRN; usually 1)
//   cos, sin  [N, P]   float32: scale * a_j * cos(p*omega_j); the angle is rounded to float32 as
//                      transformers does, so that a frozen model sees the angles it knows
//
// gaussian_rope (Llama's half-rotation layout): with R = 2*P <= E,
//   x    [B, H, T, E]  float32, bfloat16 or float16, contiguous
//   cos  [C, T, P], sin the same: float32, C is 1 or B
//   out  [B, H, T, E]  dtype of x:  out[j] = x[j]*cos[j] - x[j+P]*sin[j]
//                                   out[j+P] = x[j+P]*cos[j] + x[j]*sin[j]      for j < P
//                      columns from R on are copied. May be x itself: then these are not touched.
//   inverse            rotates the other way (the transposed matrix): with the gradient of out as x
//                      this is the gradient of x
// gaussian_rope_tables_backward: from grad (of out) and x, the gradients of cos and sin, summed
// over
//   the heads, and over the batch when C is 1.  grad_cos, grad_sin [C, T, P] float32
//
// Arithmetic is float32, rounded once. Cost: reads and writes x once.
#pragma once

#include "base/status.h"
#include "kernels/common/exec.h"
#include "kernels/common/tensor_view.h"

namespace mc {

struct GaussianRopeTablesArgs {
  TensorView positions;
  TensorView sigmas;
  TensorView inv_freq;
  float scale = 1.f;
  TensorView cos;
  TensorView sin;
};

struct GaussianRopeArgs {
  TensorView x;
  TensorView cos;
  TensorView sin;
  bool inverse = false;
  TensorView out;
};

struct GaussianRopeBackwardArgs {
  TensorView grad;
  TensorView x;
  TensorView grad_cos;
  TensorView grad_sin;
};

Status gaussian_rope_tables(const Exec& exec, const GaussianRopeTablesArgs& args);
Status gaussian_rope(const Exec& exec, const GaussianRopeArgs& args);
Status gaussian_rope_tables_backward(const Exec& exec, const GaussianRopeBackwardArgs& args);

// Variants: assume checked arguments.
void gaussian_rope_tables_cpu(const Exec& exec, const GaussianRopeTablesArgs& args);
void gaussian_rope_cpu(const Exec& exec, const GaussianRopeArgs& args);
void gaussian_rope_tables_backward_cpu(const Exec& exec, const GaussianRopeBackwardArgs& args);
Status gaussian_rope_tables_cuda(const Exec& exec, const GaussianRopeTablesArgs& args);
Status gaussian_rope_cuda(const Exec& exec, const GaussianRopeArgs& args);
Status gaussian_rope_tables_backward_cuda(const Exec& exec, const GaussianRopeBackwardArgs& args);

}  // namespace mc
