#include <tuple>

#include "kernels/gaussian_rope/gaussian_rope.h"
#include "torch_ops/op_support.h"

namespace mc::torch_ops {
namespace {

int64_t last_size(const Tensor& tensor, int axis) {
  return tensor.dim() > axis ? tensor.size(axis) : 0;  // the kernel's checks name a wrong rank
}

std::tuple<Tensor, Tensor> op_gaussian_rope_tables(Tensor positions, std::optional<Tensor> sigmas,
                                                   Tensor inv_freq, double scale) {
  const DeviceScope scope(positions);
  const int64_t count = last_size(positions, 0), pairs = last_size(inv_freq, 0);
  Tensor cos = empty_like_device(positions, {count, pairs}, ScalarType::Float);
  Tensor sin = empty_like_device(positions, {count, pairs}, ScalarType::Float);
  raise_if_error(
      gaussian_rope_tables(exec_for(positions), {view(positions), view(sigmas), view(inv_freq),
                                                 static_cast<float>(scale), view(cos), view(sin)}));
  return {cos, sin};
}

Tensor op_gaussian_rope(Tensor x, Tensor cos, Tensor sin, bool inverse) {
  const DeviceScope scope(x);
  Tensor out = empty_like_device(
      x, {last_size(x, 0), last_size(x, 1), last_size(x, 2), last_size(x, 3)}, x.scalar_type());
  raise_if_error(gaussian_rope(exec_for(x), {view(x), view(cos), view(sin), inverse, view(out)}));
  return out;
}

void op_gaussian_rope_inplace(Tensor x, Tensor cos, Tensor sin, bool inverse) {
  const DeviceScope scope(x);
  raise_if_error(gaussian_rope(exec_for(x), {view(x), view(cos), view(sin), inverse, view(x)}));
}

std::tuple<Tensor, Tensor> op_gaussian_rope_tables_backward(Tensor grad, Tensor x, int64_t copies,
                                                            int64_t pairs) {
  const DeviceScope scope(x);
  const int64_t tokens = last_size(x, 2);
  Tensor grad_cos = empty_like_device(x, {copies, tokens, pairs}, ScalarType::Float);
  Tensor grad_sin = empty_like_device(x, {copies, tokens, pairs}, ScalarType::Float);
  raise_if_error(gaussian_rope_tables_backward(
      exec_for(x), {view(grad), view(x), view(grad_cos), view(grad_sin)}));
  return {grad_cos, grad_sin};
}

}  // namespace
}  // namespace mc::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(MC_OPS_NAMESPACE, m) {
  m.def(
      "gaussian_rope_tables(Tensor positions, Tensor? sigmas, Tensor inv_freq, float scale=1.0) "
      "-> (Tensor, Tensor)");
  m.def("gaussian_rope(Tensor x, Tensor cos, Tensor sin, bool inverse=False) -> Tensor");
  m.def("gaussian_rope_no_grad(Tensor x, Tensor cos, Tensor sin, bool inverse=False) -> Tensor");
  m.def("gaussian_rope_inplace(Tensor(a!) x, Tensor cos, Tensor sin, bool inverse=False) -> ()");
  m.def(
      "gaussian_rope_tables_backward(Tensor grad, Tensor x, int copies, int pairs) "
      "-> (Tensor, Tensor)");
}

#define MC_IMPL_GAUSSIAN_ROPE(m)                                                        \
  m.impl("gaussian_rope_tables", TORCH_BOX(&mc::torch_ops::op_gaussian_rope_tables));   \
  m.impl("gaussian_rope", TORCH_BOX(&mc::torch_ops::op_gaussian_rope));                 \
  m.impl("gaussian_rope_no_grad", TORCH_BOX(&mc::torch_ops::op_gaussian_rope));         \
  m.impl("gaussian_rope_inplace", TORCH_BOX(&mc::torch_ops::op_gaussian_rope_inplace)); \
  m.impl("gaussian_rope_tables_backward",                                               \
         TORCH_BOX(&mc::torch_ops::op_gaussian_rope_tables_backward))

STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CPU, m) {
  MC_IMPL_GAUSSIAN_ROPE(m);
}
STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CUDA, m) {
  MC_IMPL_GAUSSIAN_ROPE(m);
}
