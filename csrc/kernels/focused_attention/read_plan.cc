// All checks of make_read_plan and merge_attention, then one switch on the device.
#include "kernels/focused_attention/read_plan.h"

#include "kernels/focused_attention/checks.h"
#include "kernels/focused_attention/focused_attention.h"

namespace mc {

using focused::check_optional;
using focused::check_tensor;

int64_t make_read_plan_workspace_bytes(const ReadPlanRequest& in) {
  if (in.rows.device == Device::kCpu || in.rows.rank < 1) return 0;
  return in.rows.shape[0] * kExtentBytes;
}

Status make_read_plan(const ReadPlanRequest& in, const TensorView& counts, const TensorView& blocks,
                      const TensorView& workspace, const Exec& exec) {
  const TensorView& like = in.rows;
  MC_RETURN_IF_ERROR(check_tensor(in.rows, "rows", DType::kI32, {-1, kBlockPlaces}, like));
  MC_RETURN_IF_ERROR(check_tensor(in.query_starts, "query_starts", DType::kI32, {-1}, like));
  if (in.query_starts.shape[0] < 1) {
    return focused::bad("query_starts must have M + 1 elements, got none");
  }
  const int64_t block_count = in.rows.shape[0], query_blocks = in.query_starts.shape[0] - 1;
  MC_RETURN_IF_ERROR(
      check_optional(in.positions, "positions", DType::kI32, {block_count, kBlockPlaces}, like));
  MC_RETURN_IF_ERROR(
      check_optional(in.query_positions, "query_positions", DType::kI32, {-1}, like));
  MC_RETURN_IF_ERROR(
      check_optional(in.block_ranges, "block_ranges", DType::kI32, {query_blocks, 2}, like));
  MC_RETURN_IF_ERROR(check_optional(in.block_mask, "block_mask", DType::kBool,
                                    {-1, query_blocks, block_count}, like));
  if (in.query_positions.defined() && !in.positions.defined()) {
    return focused::bad("positions must be given when query_positions are");
  }
  if (in.window < 0 || (in.window > 0 && !in.query_positions.defined())) {
    return focused::bad("window must be 0, or positive with positions, got ", in.window);
  }
  const int64_t heads = in.block_mask.defined() ? in.block_mask.shape[0] : 1;
  MC_RETURN_IF_ERROR(check_tensor(counts, "counts", DType::kI32, {heads, query_blocks}, like));
  MC_RETURN_IF_ERROR(check_tensor(blocks, "blocks", DType::kI32, {heads, query_blocks, -1}, like));
  if (like.device == Device::kCpu) return focused::make_read_plan_cpu(in, counts, blocks, exec);
  const int64_t bytes = make_read_plan_workspace_bytes(in);
  if (workspace.numel() < bytes || workspace.device != like.device) {
    return focused::bad("workspace must have at least ", bytes, " bytes on the device, got ",
                        workspace.numel());
  }
  return focused::make_read_plan_cuda(in, counts, blocks, workspace, exec);
}

Status merge_attention(const TensorView& outs, const TensorView& lses, const TensorView& out,
                       const TensorView& lse, const Exec& exec) {
  if (outs.dtype != DType::kF32 && outs.dtype != DType::kBF16 && outs.dtype != DType::kF16) {
    return focused::bad("outs must be float32, bfloat16 or float16, got ", dtype_name(outs.dtype));
  }
  MC_RETURN_IF_ERROR(check_tensor(outs, "outs", outs.dtype, {-1, -1, -1, -1}, outs));
  const auto& s = outs.shape;
  if (s[3] % 16 != 0) return focused::bad("outs must have E a multiple of 16, got ", s[3]);
  MC_RETURN_IF_ERROR(check_tensor(lses, "lses", DType::kF32, {s[0], s[1], s[2]}, outs));
  MC_RETURN_IF_ERROR(check_tensor(out, "out", outs.dtype, {s[1], s[2], s[3]}, outs));
  MC_RETURN_IF_ERROR(check_tensor(lse, "lse", DType::kF32, {s[1], s[2]}, outs));
  if (outs.device == Device::kCpu) return focused::merge_attention_cpu(outs, lses, out, lse, exec);
  return focused::merge_attention_cuda(outs, lses, out, lse, exec);
}

}  // namespace mc
