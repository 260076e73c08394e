#include "kernels/attention_use/attention_use.h"
#include "torch_ops/op_support.h"

namespace mc::torch_ops {
namespace {

int64_t size_of(const Tensor& tensor, int axis) {
  return tensor.dim() > axis ? tensor.size(axis) : 0;  // the kernel's checks name a wrong rank
}

Tensor op_attention_use(Tensor queries, Tensor keys, int64_t count, double scale) {
  const DeviceScope scope(queries);
  AttentionUseArgs args;
  args.queries = view(queries);
  args.keys = view(keys);
  args.count = count;
  args.scale = static_cast<float>(scale);
  // A count that will be refused allocates nothing.
  const bool fits = count >= 0 && count <= size_of(keys, 2);
  Tensor use = empty_like_device(queries, {size_of(queries, 0), size_of(keys, 1), fits ? count : 0},
                                 ScalarType::Float);
  args.use = view(use);
  std::optional<Tensor> workspace;
  if (args.queries.device == Device::kCuda && fits) {
    workspace = empty_like_device(queries, {attention_use_workspace_bytes(args)}, ScalarType::Byte);
  }
  args.workspace = view(workspace);
  raise_if_error(attention_use(exec_for(queries), args));
  return use;
}

}  // namespace
}  // namespace mc::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(MC_OPS_NAMESPACE, m) {
  m.def("attention_use(Tensor queries, Tensor keys, int count, float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CPU, m) {
  m.impl("attention_use", TORCH_BOX(&mc::torch_ops::op_attention_use));
}
STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CUDA, m) {
  m.impl("attention_use", TORCH_BOX(&mc::torch_ops::op_attention_use));
}
