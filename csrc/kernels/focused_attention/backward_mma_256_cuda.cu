#include "kernels/focused_attention/backward_blocks.cuh"
#include "kernels/focused_attention/backward_queries.cuh"

namespace mc::focused {
namespace {

template <class T>
Status gradients(const AttendArgs& args, const BackwardArgs& back, const Exec& exec) {
  MC_RETURN_IF_ERROR((launch_query_gradient<T, 256, 4>(args, back, exec)));
  return launch_block_gradient<T, 256>(args, back, exec);
}

}  // namespace

Status backward_mma_256(DType dtype, const AttendArgs& args, const BackwardArgs& back,
                        const Exec& exec) {
  return dtype == DType::kBF16 ? gradients<bf16>(args, back, exec)
                               : gradients<f16>(args, back, exec);
}

}  // namespace mc::focused
