// focused_attention: attention of queries over the places of working contexts.
//
//   score[t, h, p] = cap(scale * rot(q[t, h]) . rot(key[row(p), h / group])) + bias[h, p]
//   out[t, h]      = sum over read and visible p of softmax(score[t, h])[p] * value[row(p), h /
//   group] lse[t, h]      = log of the sum of exp(score) (and exp(sink[h]), when there is a sink)
//
// A working context is a row of blocks of 32 places; each place names a row of the pools, so
// nothing is copied when focus changes. A read plan lists, for each block of queries, the blocks it
// reads.
//
//   q         [T, Hq, E]          f32, bf16 or f16; E is 64, 128 or 256
//   keys      [P, Hkv, R, E]      as q; R a power of two; Hkv divides Hq; group = Hq / Hkv
//   values    [P, Hkv, R, E]      as q
//   rows      [N, 32]             i32: row of the pools (page row / R, slot row % R), or -1: empty.
//                                 Undefined on CUDA if >= P * R; refused on CPU
//   positions [N, 32]             i32, optional: position on the timeline, or -1: always visible
//   bias      [Hb, N, 32]         f32, optional; Hb divides Hq; head h reads bias[h * Hb / Hq]
//   query_starts [M + 1]          i32, ascending from 0 to T; at most query_tile queries a block
//   query_positions [T]           i32, optional: with positions, a place is visible when its
//   position
//                                 <= the query's, and > the query's - window if window > 0
//   counts    [Hp, M]             i32; Hp divides Hkv
//   blocks    [Hp, M, C]          i32: block numbers, no block twice in a list; + kFullBlock where
//                                 all 32 places are filled and visible to the whole query block
//   sink      [Hq]                f32, optional
//   key_rope  [N, 32, R2]         f32, optional: cosines, then sines; R2 <= E, a multiple of 32
//   query_rope [T, R2]            f32, given when key_rope is
//   out       [T, Hq, E]          as q; zeros where nothing is visible
//   lse       [T, Hq]             f32; -inf where nothing is visible
// All contiguous. A list with count > C gives NaN for its queries. Accumulates in f32;
// deterministic.
#pragma once

#include "base/status.h"
#include "kernels/common/exec.h"
#include "kernels/common/tensor_view.h"

namespace mc {

inline constexpr int64_t kBlockPlaces = 32;
inline constexpr int32_t kFullBlock = 1 << 30;
inline constexpr int64_t kQueryTileMax = 128;

struct FocusedAttention {
  TensorView q, keys, values;
  TensorView rows, positions, bias;
  TensorView query_starts, query_positions, counts, blocks;
  TensorView sink, key_rope, query_rope;
  float scale = 1.0f;
  float softcap = 0.0f;
  int64_t window = 0;
  int64_t query_tile = kQueryTileMax;

  int64_t query_count() const { return q.shape[0]; }
  int64_t query_heads() const { return q.shape[1]; }
  int64_t width() const { return q.shape[2]; }
  int64_t kv_heads() const { return keys.shape[1]; }
  int64_t page_rows() const { return keys.shape[2]; }
  int64_t group() const { return query_heads() / kv_heads(); }
  int64_t block_count() const { return rows.shape[0]; }
  int64_t query_block_count() const { return counts.shape[1]; }
  int64_t plan_heads() const { return counts.shape[0]; }
  int64_t list_capacity() const { return blocks.shape[2]; }
  int64_t bias_heads() const { return bias.shape[0]; }
  int64_t rope_width() const { return key_rope.defined() ? key_rope.shape[2] : 0; }
  bool causal() const { return positions.defined() && query_positions.defined(); }
};

// Bytes of device memory that the call below needs; 0 on CPU. The contents need not be cleared.
int64_t focused_attention_workspace_bytes(const FocusedAttention& in);

Status focused_attention(const FocusedAttention& in, const TensorView& out, const TensorView& lse,
                         const TensorView& workspace, const Exec& exec);

// Gradients of sum(grad_out * out) + sum(grad_lse * lse).
//   grad_q [T, Hq, E] as q; grad_keys, grad_values [P, Hkv, R, E] as keys, zero in unread rows;
//   grad_bias [Hb, N, 32] f32 and grad_lse [T, Hq] f32 are optional.
// A row at several places gets the sum, always in the same order.
struct FocusedAttentionGrads {
  TensorView out, lse, grad_out, grad_lse;               // read
  TensorView grad_q, grad_keys, grad_values, grad_bias;  // written completely
};
int64_t focused_attention_backward_workspace_bytes(const FocusedAttention& in);
Status focused_attention_backward(const FocusedAttention& in, const FocusedAttentionGrads& grads,
                                  const TensorView& workspace, const Exec& exec);

namespace focused {  // variants: they assume checked arguments

Status attend_cpu(const FocusedAttention& in, const TensorView& out, const TensorView& lse,
                  const Exec& exec);
Status attend_backward_cpu(const FocusedAttention& in, const FocusedAttentionGrads& grads,
                           const Exec& exec);
int64_t attend_cuda_workspace_bytes(const FocusedAttention& in);
Status attend_cuda(const FocusedAttention& in, const TensorView& out, const TensorView& lse,
                   const TensorView& workspace, const Exec& exec);
int64_t attend_backward_cuda_workspace_bytes(const FocusedAttention& in);
Status attend_backward_cuda(const FocusedAttention& in, const FocusedAttentionGrads& grads,
                            const TensorView& workspace, const Exec& exec);

}  // namespace focused
}  // namespace mc
