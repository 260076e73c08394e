// Linked in place of every *_cuda.cu when the build has no CUDA compiler: the same functions, each
// answering that CUDA is absent. So no call site has an #ifdef.
#include "base/status.h"

namespace mc {
namespace {

[[maybe_unused]] Status cuda_absent(const char* op) {
  return Status::unsupported(std::string("[") + op +
                             "] this build has no CUDA; install a wheel built with it, or build "
                             "with nvcc on the PATH");
}

}  // namespace
}  // namespace mc
