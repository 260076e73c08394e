#include "kernels/block_encoder/block_encoder.h"

#include <algorithm>

#include "kernels/common/check_args.h"

namespace mc {
namespace {

Status check_width(const ArgCheck& check, std::string_view name, int64_t width) {
  if (width > 0 && width % 64 == 0) return Status::ok();
  return check.fail(name, "be a positive multiple of 64, got ", width);
}

Status check_rank2(const ArgCheck& check, std::string_view name, const TensorView& view) {
  MC_RETURN_IF_ERROR(check.float_type(name, view));
  return check.tensor(name, view, view.dtype, {kAnyCount, kAnyCount});
}

Status check_attention(const ArgCheck& check, const TensorView& qkv, const TensorView& table) {
  MC_RETURN_IF_ERROR(check_rank2(check, "qkv", qkv));
  if (qkv.shape[0] % kWindowRows != 0) {
    return check.fail("qkv.shape[0]", "be a multiple of 32, got ", qkv.shape[0]);
  }
  if (qkv.shape[1] % 3 != 0) {
    return check.fail("qkv.shape[1]", "be a multiple of 3, got ", qkv.shape[1]);
  }
  const int64_t width = qkv.shape[1] / 3;
  MC_RETURN_IF_ERROR(check_width(check, "qkv.shape[1] / 3", width));
  MC_RETURN_IF_ERROR(check.tensor("table", table, DType::kF32, {kWindowRows, kAnyCount}));
  const int64_t head_width = table.shape[1];
  if ((head_width != 32 && head_width != 64 && head_width != 128) || width % head_width != 0) {
    return check.fail("table.shape[1]", "be 32, 64 or 128 and divide ", width, ", got ",
                      head_width);
  }
  return Status::ok();
}

template <class Args>
Status run(const TensorView& first, const Exec& exec, const Args& args,
           void (*on_cpu)(const Exec&, const Args&), Status (*on_cuda)(const Exec&, const Args&)) {
  if (first.shape[0] == 0) return Status::ok();
  if (first.device == Device::kCuda) return on_cuda(exec, args);
  on_cpu(exec, args);
  return Status::ok();
}

}  // namespace

int64_t add_norm_groups(int64_t row_count) {
  return std::clamp<int64_t>((row_count + 63) / 64, 1, 256);
}

Status add_norm(const Exec& exec, const AddNormArgs& args) {
  const ArgCheck check("add_norm", args.x);
  MC_RETURN_IF_ERROR(check_rank2(check, "x", args.x));
  const int64_t rows = args.x.shape[0], width = args.x.shape[1];
  const DType dtype = args.x.dtype;
  MC_RETURN_IF_ERROR(check_width(check, "x.shape[1]", width));
  MC_RETURN_IF_ERROR(check.tensor("gain", args.gain, dtype, {width}));
  MC_RETURN_IF_ERROR(check.tensor("y", args.y, dtype, {rows, width}));
  MC_RETURN_IF_ERROR(check.tensor("inverse", args.inverse, DType::kF32, {rows}));
  if (args.delta.defined()) {
    MC_RETURN_IF_ERROR(check.tensor("delta", args.delta, dtype, {rows, width}));
    MC_RETURN_IF_ERROR(check.tensor("sum", args.sum, dtype, {rows, width}));
  }
  return run(args.x, exec, args, &add_norm_cpu, &add_norm_cuda);
}

Status add_norm_backward(const Exec& exec, const AddNormBackwardArgs& args) {
  const ArgCheck check("add_norm_backward", args.s);
  MC_RETURN_IF_ERROR(check_rank2(check, "s", args.s));
  const int64_t rows = args.s.shape[0], width = args.s.shape[1];
  const DType dtype = args.s.dtype;
  MC_RETURN_IF_ERROR(check_width(check, "s.shape[1]", width));
  MC_RETURN_IF_ERROR(check.tensor("grad_y", args.grad_y, dtype, {rows, width}));
  if (args.grad_sum.defined()) {
    MC_RETURN_IF_ERROR(check.tensor("grad_sum", args.grad_sum, dtype, {rows, width}));
  }
  MC_RETURN_IF_ERROR(check.tensor("gain", args.gain, dtype, {width}));
  MC_RETURN_IF_ERROR(check.tensor("inverse", args.inverse, DType::kF32, {rows}));
  MC_RETURN_IF_ERROR(check.tensor("grad_s", args.grad_s, dtype, {rows, width}));
  MC_RETURN_IF_ERROR(check.tensor("grad_gain", args.grad_gain, dtype, {width}));
  MC_RETURN_IF_ERROR(
      check.tensor("partials", args.partials, DType::kF32, {add_norm_groups(rows), width}));
  return run(args.s, exec, args, &add_norm_backward_cpu, &add_norm_backward_cuda);
}

Status window_attention(const Exec& exec, const WindowAttentionArgs& args) {
  const ArgCheck check("window_attention", args.qkv);
  MC_RETURN_IF_ERROR(check_attention(check, args.qkv, args.table));
  MC_RETURN_IF_ERROR(
      check.tensor("out", args.out, args.qkv.dtype, {args.qkv.shape[0], args.qkv.shape[1] / 3}));
  return run(args.qkv, exec, args, &window_attention_cpu, &window_attention_cuda);
}

Status window_attention_backward(const Exec& exec, const WindowAttentionBackwardArgs& args) {
  const ArgCheck check("window_attention_backward", args.qkv);
  MC_RETURN_IF_ERROR(check_attention(check, args.qkv, args.table));
  const int64_t rows = args.qkv.shape[0], width = args.qkv.shape[1] / 3;
  const DType dtype = args.qkv.dtype;
  MC_RETURN_IF_ERROR(check.tensor("grad_out", args.grad_out, dtype, {rows, width}));
  MC_RETURN_IF_ERROR(check.tensor("grad_qkv", args.grad_qkv, dtype, {rows, 3 * width}));
  return run(args.qkv, exec, args, &window_attention_backward_cpu, &window_attention_backward_cuda);
}

Status gated_act(const Exec& exec, const GatedActArgs& args) {
  const ArgCheck check("gated_act", args.gate_up);
  MC_RETURN_IF_ERROR(check_rank2(check, "gate_up", args.gate_up));
  const int64_t rows = args.gate_up.shape[0], width = args.gate_up.shape[1];
  if (width == 0 || width % 128 != 0) {
    return check.fail("gate_up.shape[1]", "be a positive multiple of 128, got ", width);
  }
  MC_RETURN_IF_ERROR(check.tensor("out", args.out, args.gate_up.dtype, {rows, width / 2}));
  return run(args.gate_up, exec, args, &gated_act_cpu, &gated_act_cuda);
}

Status gated_act_backward(const Exec& exec, const GatedActBackwardArgs& args) {
  const ArgCheck check("gated_act_backward", args.gate_up);
  MC_RETURN_IF_ERROR(check_rank2(check, "gate_up", args.gate_up));
  const int64_t rows = args.gate_up.shape[0], width = args.gate_up.shape[1];
  if (width == 0 || width % 128 != 0) {
    return check.fail("gate_up.shape[1]", "be a positive multiple of 128, got ", width);
  }
  const DType dtype = args.gate_up.dtype;
  MC_RETURN_IF_ERROR(check.tensor("grad_out", args.grad_out, dtype, {rows, width / 2}));
  MC_RETURN_IF_ERROR(check.tensor("grad_gate_up", args.grad_gate_up, dtype, {rows, width}));
  return run(args.gate_up, exec, args, &gated_act_backward_cpu, &gated_act_backward_cuda);
}

}  // namespace mc
