#include "kernels/page_gather/page_gather.h"
#include "torch_ops/op_support.h"

namespace mc::torch_ops {
namespace {

int64_t size_or_zero(const Tensor& tensor, int axis) {
  return tensor.dim() > axis ? tensor.size(axis) : 0;  // the kernel's checks name a wrong rank
}

Tensor op_page_gather(Tensor pool, Tensor index) {
  const DeviceScope scope(index);
  Tensor rows = empty_like_device(
      index, {size_or_zero(index, 0), size_or_zero(pool, 1), size_or_zero(pool, 2)},
      pool.scalar_type());
  raise_if_error(page_gather(exec_for(index), {view(pool), view(index), view(rows), {}}));
  return rows;
}

void op_page_gather_out(Tensor pool, Tensor index, std::optional<Tensor> scales, Tensor rows) {
  const DeviceScope scope(index);
  raise_if_error(page_gather(exec_for(index), {view(pool), view(index), view(rows), view(scales)}));
}

void op_page_scatter(Tensor rows, Tensor index, Tensor pool, std::optional<Tensor> scales) {
  const DeviceScope scope(index);
  raise_if_error(
      page_scatter(exec_for(index), {view(pool), view(index), view(rows), view(scales)}));
}

}  // namespace
}  // namespace mc::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(MC_OPS_NAMESPACE, m) {
  m.def("page_gather(Tensor pool, Tensor index) -> Tensor");
  m.def("page_gather_no_grad(Tensor pool, Tensor index) -> Tensor");
  m.def("page_gather_out(Tensor pool, Tensor index, Tensor? scales, Tensor(a!) rows) -> ()");
  m.def("page_scatter(Tensor rows, Tensor index, Tensor(a!) pool, Tensor(b!)? scales=None) -> ()");
}

#define MC_IMPL_PAGE_GATHER(m)                                              \
  m.impl("page_gather", TORCH_BOX(&mc::torch_ops::op_page_gather));         \
  m.impl("page_gather_no_grad", TORCH_BOX(&mc::torch_ops::op_page_gather)); \
  m.impl("page_gather_out", TORCH_BOX(&mc::torch_ops::op_page_gather_out)); \
  m.impl("page_scatter", TORCH_BOX(&mc::torch_ops::op_page_scatter))

STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CPU, m) {
  MC_IMPL_PAGE_GATHER(m);
}
STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CUDA, m) {
  MC_IMPL_PAGE_GATHER(m);
}
