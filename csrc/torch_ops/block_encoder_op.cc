#include <tuple>

#include "kernels/block_encoder/block_encoder.h"
#include "torch_ops/op_support.h"

namespace mc::torch_ops {
namespace {

// Without delta, sum comes back with no rows: x itself is what was normalised.
std::tuple<Tensor, Tensor, Tensor> op_add_norm(Tensor x, std::optional<Tensor> delta, Tensor gain,
                                               double epsilon) {
  const DeviceScope scope(x);
  const int64_t rows = x.size(0), width = x.size(x.dim() - 1);
  const ScalarType dtype = x.scalar_type();
  Tensor sum = empty_like_device(x, {delta.has_value() ? rows : 0, width}, dtype);
  Tensor y = empty_like_device(x, {rows, width}, dtype);
  Tensor inverse = empty_like_device(x, {rows}, ScalarType::Float);
  AddNormArgs args{view(x), view(delta), view(gain),   static_cast<float>(epsilon),
                   {},      view(y),     view(inverse)};
  if (delta.has_value()) args.sum = view(sum);
  raise_if_error(add_norm(exec_for(x), args));
  return {sum, y, inverse};
}

std::tuple<Tensor, Tensor> op_add_norm_backward(Tensor grad_y, std::optional<Tensor> grad_sum,
                                                Tensor s, Tensor gain, Tensor inverse) {
  const DeviceScope scope(s);
  const int64_t rows = s.size(0), width = s.size(s.dim() - 1);
  const ScalarType dtype = s.scalar_type();
  Tensor grad_s = empty_like_device(s, {rows, width}, dtype);
  Tensor grad_gain = empty_like_device(s, {width}, dtype);
  const Tensor partials = empty_like_device(s, {add_norm_groups(rows), width}, ScalarType::Float);
  raise_if_error(add_norm_backward(
      exec_for(s), {view(grad_y), view(grad_sum), view(s), view(gain), view(inverse), view(grad_s),
                    view(grad_gain), view(partials)}));
  return {grad_s, grad_gain};
}

Tensor op_window_attention(Tensor qkv, Tensor table) {
  const DeviceScope scope(qkv);
  Tensor out =
      empty_like_device(qkv, {qkv.size(0), qkv.size(qkv.dim() - 1) / 3}, qkv.scalar_type());
  raise_if_error(window_attention(exec_for(qkv), {view(qkv), view(table), view(out)}));
  return out;
}

Tensor op_window_attention_backward(Tensor grad_out, Tensor qkv, Tensor table) {
  const DeviceScope scope(qkv);
  Tensor grad = empty_like_device(qkv, {qkv.size(0), qkv.size(qkv.dim() - 1)}, qkv.scalar_type());
  raise_if_error(window_attention_backward(exec_for(qkv),
                                           {view(grad_out), view(qkv), view(table), view(grad)}));
  return grad;
}

Tensor op_gated_act(Tensor gate_up) {
  const DeviceScope scope(gate_up);
  Tensor out = empty_like_device(gate_up, {gate_up.size(0), gate_up.size(gate_up.dim() - 1) / 2},
                                 gate_up.scalar_type());
  raise_if_error(gated_act(exec_for(gate_up), {view(gate_up), view(out)}));
  return out;
}

Tensor op_gated_act_backward(Tensor grad_out, Tensor gate_up) {
  const DeviceScope scope(gate_up);
  Tensor grad = empty_like_device(gate_up, {gate_up.size(0), gate_up.size(gate_up.dim() - 1)},
                                  gate_up.scalar_type());
  raise_if_error(
      gated_act_backward(exec_for(gate_up), {view(grad_out), view(gate_up), view(grad)}));
  return grad;
}

}  // namespace
}  // namespace mc::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(MC_OPS_NAMESPACE, m) {
  m.def(
      "add_norm(Tensor x, Tensor? delta, Tensor gain, float epsilon=1e-06) -> "
      "(Tensor sum, Tensor y, Tensor inverse)");
  m.def(
      "add_norm_backward(Tensor grad_y, Tensor? grad_sum, Tensor s, Tensor gain, Tensor inverse) "
      "-> (Tensor, Tensor)");
  m.def("window_attention(Tensor qkv, Tensor table) -> Tensor");
  m.def("window_attention_backward(Tensor grad_out, Tensor qkv, Tensor table) -> Tensor");
  m.def("gated_act(Tensor gate_up) -> Tensor");
  m.def("gated_act_backward(Tensor grad_out, Tensor gate_up) -> Tensor");
}

#define MC_IMPL_BLOCK_ENCODER(m)                                                                \
  m.impl("add_norm", TORCH_BOX(&mc::torch_ops::op_add_norm));                                   \
  m.impl("add_norm_backward", TORCH_BOX(&mc::torch_ops::op_add_norm_backward));                 \
  m.impl("window_attention", TORCH_BOX(&mc::torch_ops::op_window_attention));                   \
  m.impl("window_attention_backward", TORCH_BOX(&mc::torch_ops::op_window_attention_backward)); \
  m.impl("gated_act", TORCH_BOX(&mc::torch_ops::op_gated_act));                                 \
  m.impl("gated_act_backward", TORCH_BOX(&mc::torch_ops::op_gated_act_backward))

STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CPU, m) {
  MC_IMPL_BLOCK_ENCODER(m);
}
STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CUDA, m) {
  MC_IMPL_BLOCK_ENCODER(m);
}
