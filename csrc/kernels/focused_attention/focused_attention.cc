// All checks of focused_attention, then one switch on the device.
#include "kernels/focused_attention/focused_attention.h"

#include <utility>

#include "kernels/focused_attention/checks.h"

namespace mc {
namespace {

using focused::check_aligned;
using focused::check_optional;
using focused::check_tensor;

Status check_pools(const FocusedAttention& in) {
  if (in.q.rank != 3) return focused::bad("q must be [T, Hq, E], got ", shape_string(in.q));
  if (in.q.dtype != DType::kF32 && in.q.dtype != DType::kBF16 && in.q.dtype != DType::kF16) {
    return focused::bad("q must be float32, bfloat16 or float16, got ", dtype_name(in.q.dtype));
  }
  if (in.width() != 64 && in.width() != 128 && in.width() != 256) {
    return focused::bad("q must have head width 64, 128 or 256, got ", in.width());
  }
  if (in.keys.rank != 4) {
    return focused::bad("keys must be [P, Hkv, R, E], got ", shape_string(in.keys));
  }
  const int64_t rows = in.keys.shape[2], heads = in.keys.shape[1];
  if (rows < 1 || (rows & (rows - 1)) != 0) {
    return focused::bad("keys must have a power of two of rows a page, got ", rows);
  }
  if (heads < 1 || in.query_heads() % heads != 0) {
    return focused::bad("keys must have a number of heads that divides q's ", in.query_heads(),
                        ", got ", heads);
  }
  MC_RETURN_IF_ERROR(check_tensor(in.q, "q", in.q.dtype, {in.q.shape[0], -1, -1}, in.q));
  MC_RETURN_IF_ERROR(check_tensor(in.keys, "keys", in.q.dtype, {-1, -1, -1, in.width()}, in.q));
  return check_tensor(in.values, "values", in.q.dtype, {in.keys.shape[0], heads, rows, in.width()},
                      in.q);
}

Status check_table(const FocusedAttention& in) {
  const int64_t blocks = in.rows.shape[0];
  MC_RETURN_IF_ERROR(check_tensor(in.rows, "rows", DType::kI32, {-1, kBlockPlaces}, in.q));
  MC_RETURN_IF_ERROR(
      check_optional(in.positions, "positions", DType::kI32, {blocks, kBlockPlaces}, in.q));
  MC_RETURN_IF_ERROR(
      check_optional(in.bias, "bias", DType::kF32, {-1, blocks, kBlockPlaces}, in.q));
  if (in.bias.defined() && (in.bias_heads() < 1 || in.query_heads() % in.bias_heads() != 0)) {
    return focused::bad("bias must have a number of heads that divides q's ", in.query_heads(),
                        ", got ", in.bias_heads());
  }
  MC_RETURN_IF_ERROR(check_optional(in.sink, "sink", DType::kF32, {in.query_heads()}, in.q));
  if (in.key_rope.defined() != in.query_rope.defined()) {
    return focused::bad("key_rope and query_rope must be given together");
  }
  if (!in.key_rope.defined()) return {};
  MC_RETURN_IF_ERROR(
      check_tensor(in.key_rope, "key_rope", DType::kF32, {blocks, kBlockPlaces, -1}, in.q));
  const int64_t width = in.rope_width();
  if (width < 32 || width > in.width() || width % 32 != 0) {
    return focused::bad("key_rope must have a last size that is a multiple of 32 up to ",
                        in.width(), ", got ", width);
  }
  return check_tensor(in.query_rope, "query_rope", DType::kF32, {in.query_count(), width}, in.q);
}

Status check_plan(const FocusedAttention& in) {
  MC_RETURN_IF_ERROR(check_tensor(in.counts, "counts", DType::kI32, {-1, -1}, in.q));
  const int64_t heads = in.plan_heads(), query_blocks = in.query_block_count();
  if (heads < 1 || in.kv_heads() % heads != 0) {
    return focused::bad("counts must have a number of heads that divides keys' ", in.kv_heads(),
                        ", got ", heads);
  }
  MC_RETURN_IF_ERROR(
      check_tensor(in.blocks, "blocks", DType::kI32, {heads, query_blocks, -1}, in.q));
  MC_RETURN_IF_ERROR(
      check_tensor(in.query_starts, "query_starts", DType::kI32, {query_blocks + 1}, in.q));
  MC_RETURN_IF_ERROR(
      check_optional(in.query_positions, "query_positions", DType::kI32, {in.query_count()}, in.q));
  if (in.query_positions.defined() && !in.positions.defined()) {
    return focused::bad("positions must be given when query_positions are");
  }
  if (in.query_tile < 1 || in.query_tile > kQueryTileMax) {
    return focused::bad("query_tile must be 1 to ", kQueryTileMax, ", got ", in.query_tile);
  }
  if (in.window < 0 || (in.window > 0 && !in.causal())) {
    return focused::bad("window must be 0, or positive with positions, got ", in.window);
  }
  if (!(in.softcap >= 0.0f)) return focused::bad("softcap must be >= 0, got ", in.softcap);
  return {};
}

// What only the values can tell. On CUDA reading them would wait for the device.
Status check_values(const FocusedAttention& in) {
  const auto* starts = in.query_starts.as<int32_t>();
  const int64_t query_blocks = in.query_block_count();
  if (starts[0] != 0 || starts[query_blocks] != in.query_count()) {
    return focused::bad("query_starts must go from 0 to ", in.query_count(), ", got ", starts[0],
                        " to ", starts[query_blocks]);
  }
  for (int64_t i = 0; i < query_blocks; ++i) {
    const int64_t queries = int64_t{starts[i + 1]} - starts[i];
    if (queries < 0 || queries > in.query_tile) {
      return focused::bad("query_starts must ascend by at most query_tile=", in.query_tile,
                          ", got ", starts[i], " then ", starts[i + 1]);
    }
  }
  const int64_t pool_rows = in.keys.shape[0] * in.page_rows();
  const auto* rows = in.rows.as<int32_t>();
  int32_t highest = -1;
  for (int64_t i = 0; i < in.rows.numel(); ++i) highest = rows[i] > highest ? rows[i] : highest;
  if (highest >= pool_rows) {
    return focused::bad("rows must be below the ", pool_rows, " rows of the pools, got ", highest);
  }
  for (int64_t list = 0; list < in.counts.numel(); ++list) {
    const int64_t count = in.counts.as<int32_t>()[list], capacity = in.list_capacity();
    if (count < 0) return focused::bad("counts must be >= 0, got ", count);
    for (int64_t i = 0; i < count && i < capacity; ++i) {
      const int32_t block = in.blocks.as<int32_t>()[list * capacity + i] & (kFullBlock - 1);
      if (block >= in.block_count()) {
        return focused::bad("blocks must be below ", in.block_count(), ", got ", block);
      }
    }
  }
  return {};
}

Status check_alignment(const FocusedAttention& in) {
  const std::pair<const TensorView*, const char*> read_wide[] = {{&in.q, "q"},
                                                                 {&in.keys, "keys"},
                                                                 {&in.values, "values"},
                                                                 {&in.rows, "rows"},
                                                                 {&in.positions, "positions"},
                                                                 {&in.bias, "bias"},
                                                                 {&in.key_rope, "key_rope"},
                                                                 {&in.query_rope, "query_rope"}};
  for (const auto& [tensor, name] : read_wide) {
    if (tensor->defined()) MC_RETURN_IF_ERROR(check_aligned(*tensor, name));
  }
  return {};
}

Status check_inputs(const FocusedAttention& in) {
  MC_RETURN_IF_ERROR(check_pools(in));
  MC_RETURN_IF_ERROR(check_table(in));
  MC_RETURN_IF_ERROR(check_plan(in));
  MC_RETURN_IF_ERROR(check_alignment(in));
  return in.q.device == Device::kCpu ? check_values(in) : Status::ok();
}

Status check_workspace(const TensorView& workspace, int64_t needed_bytes) {
  const int64_t bytes = workspace.defined() ? workspace.numel() * dtype_bytes(workspace.dtype) : 0;
  if (bytes >= needed_bytes) return {};
  return focused::bad("workspace must have ", needed_bytes, " bytes, got ", bytes);
}

}  // namespace

int64_t focused_attention_workspace_bytes(const FocusedAttention& in) {
  if (in.q.device == Device::kCpu || !check_inputs(in).is_ok()) return 0;
  return focused::attend_cuda_workspace_bytes(in);
}

Status focused_attention(const FocusedAttention& in, const TensorView& out, const TensorView& lse,
                         const TensorView& workspace, const Exec& exec) {
  MC_RETURN_IF_ERROR(check_inputs(in));
  const int64_t queries = in.query_count(), heads = in.query_heads();
  MC_RETURN_IF_ERROR(check_tensor(out, "out", in.q.dtype, {queries, heads, in.width()}, in.q));
  MC_RETURN_IF_ERROR(check_tensor(lse, "lse", DType::kF32, {queries, heads}, in.q));
  if (queries == 0) return {};
  if (in.q.device == Device::kCpu) return focused::attend_cpu(in, out, lse, exec);
  MC_RETURN_IF_ERROR(check_workspace(workspace, focused::attend_cuda_workspace_bytes(in)));
  return focused::attend_cuda(in, out, lse, workspace, exec);
}

int64_t focused_attention_backward_workspace_bytes(const FocusedAttention& in) {
  if (in.q.device == Device::kCpu || !check_inputs(in).is_ok()) return 0;
  return focused::attend_backward_cuda_workspace_bytes(in);
}

Status focused_attention_backward(const FocusedAttention& in, const FocusedAttentionGrads& grads,
                                  const TensorView& workspace, const Exec& exec) {
  MC_RETURN_IF_ERROR(check_inputs(in));
  const int64_t queries = in.query_count(), heads = in.query_heads(), width = in.width();
  const DType dtype = in.q.dtype;
  const auto& pool = in.keys.shape;
  MC_RETURN_IF_ERROR(check_tensor(grads.out, "out", dtype, {queries, heads, width}, in.q));
  MC_RETURN_IF_ERROR(check_tensor(grads.lse, "lse", DType::kF32, {queries, heads}, in.q));
  MC_RETURN_IF_ERROR(
      check_tensor(grads.grad_out, "grad_out", dtype, {queries, heads, width}, in.q));
  MC_RETURN_IF_ERROR(
      check_optional(grads.grad_lse, "grad_lse", DType::kF32, {queries, heads}, in.q));
  MC_RETURN_IF_ERROR(check_tensor(grads.grad_q, "grad_q", dtype, {queries, heads, width}, in.q));
  MC_RETURN_IF_ERROR(check_tensor(grads.grad_keys, "grad_keys", dtype,
                                  {pool[0], pool[1], pool[2], pool[3]}, in.q));
  MC_RETURN_IF_ERROR(check_tensor(grads.grad_values, "grad_values", dtype,
                                  {pool[0], pool[1], pool[2], pool[3]}, in.q));
  if (grads.grad_bias.defined() && !in.bias.defined()) {
    return focused::bad("grad_bias must be absent when bias is");
  }
  if (grads.grad_bias.defined()) {
    MC_RETURN_IF_ERROR(check_tensor(grads.grad_bias, "grad_bias", DType::kF32,
                                    {in.bias_heads(), in.block_count(), kBlockPlaces}, in.q));
  }
  if (in.q.device == Device::kCpu) return focused::attend_backward_cpu(in, grads, exec);
  MC_RETURN_IF_ERROR(check_workspace(workspace, focused::attend_backward_cuda_workspace_bytes(in)));
  return focused::attend_backward_cuda(in, grads, workspace, exec);
}

}  // namespace mc
