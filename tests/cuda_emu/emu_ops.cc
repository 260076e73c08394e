// Operators that only the emulated twin has: how its threads are scheduled, what it emulates.
#include "cuda_emu.h"
#include "torch_ops/op_support.h"

namespace {

void set_thread_order(int64_t seed) {
  mc::emu::options().seed = static_cast<unsigned>(seed);
}

void set_thread_count(int64_t count) {
  mc::emu::options().threads = static_cast<unsigned>(count);
}

void set_emulates_cuda(bool cuda) {
  mc::torch_ops::emulated_device = cuda ? mc::Device::kCuda : mc::Device::kCpu;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(MC_OPS_NAMESPACE, m) {
  m.def("set_thread_order(int seed) -> ()");
  m.def("set_thread_count(int count) -> ()");
  m.def("set_emulates_cuda(bool cuda) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("set_thread_order", TORCH_BOX(&set_thread_order));
  m.impl("set_thread_count", TORCH_BOX(&set_thread_count));
  m.impl("set_emulates_cuda", TORCH_BOX(&set_emulates_cuda));
}
