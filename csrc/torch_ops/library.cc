// What the compiled operators are: asked by `megacontext doctor` and the tests.
#include <string>

#include "kernels/common/cpu_level.h"
#include "torch_ops/op_support.h"

namespace mc::torch_ops {
namespace {

int64_t op_cpu_level() {
  return static_cast<int64_t>(cpu_level());
}

bool op_set_cpu_level(int64_t level) {
  return set_cpu_level(static_cast<CpuLevel>(level));
}

void op_set_heeds_fill(bool heeds) {
  set_heeds_fill(heeds);
}

}  // namespace
}  // namespace mc::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(MC_OPS_NAMESPACE, m) {
  m.def("cpu_level() -> int");
  m.def("set_cpu_level(int level) -> bool");
  m.def("set_heeds_fill(bool heeds) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("cpu_level", TORCH_BOX(&mc::torch_ops::op_cpu_level));
  m.impl("set_cpu_level", TORCH_BOX(&mc::torch_ops::op_set_cpu_level));
  m.impl("set_heeds_fill", TORCH_BOX(&mc::torch_ops::op_set_heeds_fill));
}
