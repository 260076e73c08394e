// The pieces of the 32-token window transformer between its matrix products, each one pass over
// memory. The products are the platform's; megacontext_ext/ops/block_encoder.py puts them together.
//
// R rows are R / 32 windows of 32 neighbours. All tensors contiguous, of one dtype T (float32,
// bfloat16, float16) but for what is said to be f32; sums are kept in f32. Outputs are written
// completely and may not overlap inputs. The same bits on every run and number of threads.
//
// add_norm: the residual sum and its RMS norm.
//   x [R, D], delta [R, D] optional, gain [D]
//   sum     [R, D]  x + delta, rounded to T; only with delta
//   y       [R, D]  s * inverse * gain, where s is sum (x without delta)
//   inverse [R] f32 1 / sqrt(mean(s^2) + epsilon)
// add_norm_backward: from grad_y [R, D] and grad_sum [R, D] (optional)
//   grad_s    [R, D]  the gradient of x, and of delta
//   grad_gain [D]     needs partials [add_norm_groups(R), D] f32
//
// window_attention: every row attends to the 32 rows of its window, not causal, with RoPE.
//   qkv   [R, 3*D]      queries, keys, values; a head is `E` neighbouring columns, E 32, 64 or 128
//   table [32, E] f32   of each place: E/2 cosines, then E/2 sines; the pair of column e is e + E/2
//   out   [R, D]        softmax(q k^T / sqrt(E)) v
// window_attention_backward: grad_qkv [R, 3*D] from grad_out; recomputes the probabilities.
//
// gated_act: out [R, F] = silu(gate) * up of gate_up [R, 2*F] (gate first); and its backward.
//
// D and F are multiples of 64.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/common/exec.h"
#include "kernels/common/tensor_view.h"

namespace mc {

inline constexpr int64_t kWindowRows = 32;

struct AddNormArgs {
  TensorView x, delta, gain;
  float epsilon = 1e-6f;
  TensorView sum, y, inverse;
};
struct AddNormBackwardArgs {
  TensorView grad_y, grad_sum, s, gain, inverse;
  TensorView grad_s, grad_gain, partials;
};
struct WindowAttentionArgs {
  TensorView qkv, table, out;
};
struct WindowAttentionBackwardArgs {
  TensorView grad_out, qkv, table, grad_qkv;
};
struct GatedActArgs {
  TensorView gate_up, out;
};
struct GatedActBackwardArgs {
  TensorView grad_out, gate_up, grad_gate_up;
};

Status add_norm(const Exec& exec, const AddNormArgs& args);
Status add_norm_backward(const Exec& exec, const AddNormBackwardArgs& args);
Status window_attention(const Exec& exec, const WindowAttentionArgs& args);
Status window_attention_backward(const Exec& exec, const WindowAttentionBackwardArgs& args);
Status gated_act(const Exec& exec, const GatedActArgs& args);
Status gated_act_backward(const Exec& exec, const GatedActBackwardArgs& args);

// Rows are dealt to this many groups for the sum over rows in grad_gain; depends on R alone.
int64_t add_norm_groups(int64_t row_count);

// Variants: assume checked arguments and at least one row.
void add_norm_cpu(const Exec& exec, const AddNormArgs& args);
void add_norm_backward_cpu(const Exec& exec, const AddNormBackwardArgs& args);
void window_attention_cpu(const Exec& exec, const WindowAttentionArgs& args);
void window_attention_backward_cpu(const Exec& exec, const WindowAttentionBackwardArgs& args);
void gated_act_cpu(const Exec& exec, const GatedActArgs& args);
void gated_act_backward_cpu(const Exec& exec, const GatedActBackwardArgs& args);
Status add_norm_cuda(const Exec& exec, const AddNormArgs& args);
Status add_norm_backward_cuda(const Exec& exec, const AddNormBackwardArgs& args);
Status window_attention_cuda(const Exec& exec, const WindowAttentionArgs& args);
Status window_attention_backward_cuda(const Exec& exec, const WindowAttentionBackwardArgs& args);
Status gated_act_cuda(const Exec& exec, const GatedActArgs& args);
Status gated_act_backward_cuda(const Exec& exec, const GatedActBackwardArgs& args);

}  // namespace mc
