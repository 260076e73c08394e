#include "kernels/focused_attention/attend_args.cuh"

namespace mc::focused {

int64_t attend_backward_cuda_workspace_bytes(const FocusedAttention&) {
  return 0;
}

Status attend_backward_cuda(const FocusedAttention&, const FocusedAttentionGrads&,
                            const TensorView&, const Exec&) {
  return Status::unsupported("[focused_attention] has no backward on CUDA yet");
}

}  // namespace mc::focused
