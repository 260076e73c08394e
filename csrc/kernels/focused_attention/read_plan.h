// make_read_plan: which blocks each query block reads, made on the device: no host sync, safe in a
// CUDA graph. A block is listed when some query of the query block may see some place of it.
//
//   rows         [N, 32]      i32, and positions, query_starts, query_positions, window as in
//                             focused_attention.h
//   block_ranges [M, 2]       i32, optional: the blocks [first, last) of each query block's
//   sequence block_mask   [Hp, M, N]   bool, optional: the selection; absent: all, with Hp = 1
//   counts       [Hp, M]      i32, written completely; may exceed C, see focused_attention.h
//   blocks       [Hp, M, C]   i32, ascending; written up to min(count, C), the rest is zero
//
// merge_attention: attention over the union of S disjoint sets of places.
//   outs [S, T, H, E] f32, bf16 or f16; lses [S, T, H] f32; out [T, H, E] as outs; lse [T, H] f32.
#pragma once

#include "base/status.h"
#include "kernels/common/exec.h"
#include "kernels/common/tensor_view.h"

namespace mc {

inline constexpr int64_t kExtentBytes = 16;  // what the device keeps of a block between launches

struct ReadPlanRequest {
  TensorView rows, positions, query_starts, query_positions, block_ranges, block_mask;
  int64_t window = 0;
};

// Bytes of device memory that the call below needs; 0 on CPU. The contents need not be cleared.
int64_t make_read_plan_workspace_bytes(const ReadPlanRequest& in);
Status make_read_plan(const ReadPlanRequest& in, const TensorView& counts, const TensorView& blocks,
                      const TensorView& workspace, const Exec& exec);
Status merge_attention(const TensorView& outs, const TensorView& lses, const TensorView& out,
                       const TensorView& lse, const Exec& exec);

namespace focused {

Status make_read_plan_cpu(const ReadPlanRequest& in, const TensorView& counts,
                          const TensorView& blocks, const Exec& exec);
Status make_read_plan_cuda(const ReadPlanRequest& in, const TensorView& counts,
                           const TensorView& blocks, const TensorView& workspace, const Exec& exec);
Status merge_attention_cpu(const TensorView& outs, const TensorView& lses, const TensorView& out,
                           const TensorView& lse, const Exec& exec);
Status merge_attention_cuda(const TensorView& outs, const TensorView& lses, const TensorView& out,
                            const TensorView& lse, const Exec& exec);

}  // namespace focused
}  // namespace mc
