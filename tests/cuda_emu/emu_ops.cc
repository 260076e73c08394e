// Operators that only the emulated twin has: how its threads are scheduled.
#include "cuda_emu.h"
#include "torch_ops/op_support.h"

namespace {

void set_thread_order(int64_t seed) {
  mc::emu::options().seed = static_cast<unsigned>(seed);
}

void set_thread_count(int64_t count) {
  mc::emu::options().threads = static_cast<unsigned>(count);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(MC_OPS_NAMESPACE, m) {
  m.def("set_thread_order(int seed) -> ()");
  m.def("set_thread_count(int count) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("set_thread_order", TORCH_BOX(&set_thread_order));
  m.impl("set_thread_count", TORCH_BOX(&set_thread_count));
}
