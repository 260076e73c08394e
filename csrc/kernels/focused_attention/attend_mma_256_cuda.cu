#include "kernels/focused_attention/attend_mma.cuh"

namespace mc::focused {
namespace {

template <class T>
Status attend(const AttendArgs& args, int row_tile, const Exec& exec) {
  if (row_tile == 16) return launch_attend_mma<T, 256, 1, 1, 1>(args, exec);
  return launch_attend_mma<T, 256, 1, 4, 1>(args, exec);
}

}  // namespace

Status attend_mma_256(DType dtype, const AttendArgs& args, AttendShape shape, const Exec& exec) {
  if (dtype == DType::kBF16) return attend<bf16>(args, shape.row_tile, exec);
  return attend<f16>(args, shape.row_tile, exec);
}

}  // namespace mc::focused
