// Linked in place of every *_cuda.cu when the build has no CUDA compiler: the same functions, each
// answering that CUDA is absent. So no call site has an #ifdef.
#include "base/status.h"
#include "kernels/gist_pool/gist_pool.h"

namespace mc {
namespace {

Status cuda_absent(const char* op) {
  return Status::unsupported(std::string("[") + op +
                             "] this build has no CUDA; install a wheel built with it, or build "
                             "with nvcc on the PATH");
}

}  // namespace

Status gist_pool_cuda(const Exec&, const GistPoolArgs&) {
  return cuda_absent("gist_pool");
}
Status gist_pool_backward_cuda(const Exec&, const GistPoolBackwardArgs&) {
  return cuda_absent("gist_pool_backward");
}
Status block_weights_cuda(const Exec&, const float*, int64_t, int64_t, float*) {
  return cuda_absent("gist_pool_tree");
}

}  // namespace mc
