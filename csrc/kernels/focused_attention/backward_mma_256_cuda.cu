#include "kernels/focused_attention/backward_blocks.cuh"
#include "kernels/focused_attention/backward_queries.cuh"

namespace mc::focused {
namespace {

template <class T>
Status gradients(const AttendArgs& args, const BackwardArgs& back, const Exec& exec) {
  // 64 rows need 130 KiB of shared memory, 32 rows the 99 KiB that sm_86, sm_89 and sm_120 have.
  using Small = QueryGradient<T, 256, 2>;
  static_assert(Small::kSmemBytes <= 99 * 1024);
  static_assert(BlockGradient<T, 256>::kSmemBytes <= 99 * 1024);
  const auto device_bytes = static_cast<size_t>(max_smem_bytes(exec.device_index));
  if (device_bytes >= QueryGradient<T, 256, 4>::kSmemBytes) {
    MC_RETURN_IF_ERROR((launch_query_gradient<T, 256, 4>(args, back, exec)));
  } else {
    MC_RETURN_IF_ERROR((launch_query_gradient<T, 256, 2>(args, back, exec)));
  }
  return launch_block_gradient<T, 256>(args, back, exec);
}

}  // namespace

Status backward_mma_256(DType dtype, const AttendArgs& args, const BackwardArgs& back,
                        const Exec& exec) {
  return dtype == DType::kBF16 ? gradients<bf16>(args, back, exec)
                               : gradients<f16>(args, back, exec);
}

}  // namespace mc::focused
