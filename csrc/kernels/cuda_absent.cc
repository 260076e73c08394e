// Linked in place of every *_cuda.cu when the build has no CUDA compiler: the same functions, each
// answering that CUDA is absent. So no call site has an #ifdef.
#include "base/status.h"
#include "kernels/attention_use/attention_use.h"
#include "kernels/block_encoder/block_encoder.h"
#include "kernels/focused_attention/focused_attention.h"
#include "kernels/focused_attention/read_plan.h"
#include "kernels/gaussian_rope/gaussian_rope.h"
#include "kernels/gist_pool/gist_pool.h"
#include "kernels/page_gather/page_gather.h"
#include "kernels/score_topk/score_topk.h"

namespace mc {
namespace {

Status cuda_absent(const char* op) {
  return Status::unsupported(std::string("[") + op +
                             "] this build has no CUDA; install a wheel built with it, or build "
                             "with nvcc on the PATH");
}

}  // namespace

Status attention_use_cuda(const Exec&, const AttentionUseArgs&) {
  return cuda_absent("attention_use");
}
Status gist_pool_cuda(const Exec&, const GistPoolArgs&) {
  return cuda_absent("gist_pool");
}
Status gist_pool_backward_cuda(const Exec&, const GistPoolBackwardArgs&) {
  return cuda_absent("gist_pool_backward");
}
Status block_weights_cuda(const Exec&, const float*, int64_t, int64_t, float*) {
  return cuda_absent("gist_pool_tree");
}

namespace focused {

int64_t attend_cuda_workspace_bytes(const FocusedAttention&) {
  return 0;
}
Status attend_cuda(const FocusedAttention&, const TensorView&, const TensorView&, const TensorView&,
                   const Exec&) {
  return cuda_absent("focused_attention");
}
int64_t attend_backward_cuda_workspace_bytes(const FocusedAttention&) {
  return 0;
}
Status attend_backward_cuda(const FocusedAttention&, const FocusedAttentionGrads&,
                            const TensorView&, const Exec&) {
  return cuda_absent("focused_attention_backward");
}
Status make_read_plan_cuda(const ReadPlanRequest&, const TensorView&, const TensorView&,
                           const TensorView&, const Exec&) {
  return cuda_absent("make_read_plan");
}
Status merge_attention_cuda(const TensorView&, const TensorView&, const TensorView&,
                            const TensorView&, const Exec&) {
  return cuda_absent("merge_attention");
}

}  // namespace focused

Status topk_cuda(const TopkArgs&, const Exec&) {
  return cuda_absent("topk");
}
Status score_topk_cuda(const ScoreTopkArgs&, const Exec&) {
  return cuda_absent("score_topk");
}
Status gaussian_rope_tables_cuda(const Exec&, const GaussianRopeTablesArgs&) {
  return cuda_absent("gaussian_rope_tables");
}
Status gaussian_rope_cuda(const Exec&, const GaussianRopeArgs&) {
  return cuda_absent("gaussian_rope");
}
Status gaussian_rope_tables_backward_cuda(const Exec&, const GaussianRopeBackwardArgs&) {
  return cuda_absent("gaussian_rope_tables_backward");
}

Status page_gather_cuda(const Exec&, const PageMoveArgs&) {
  return cuda_absent("page_gather");
}
Status page_scatter_cuda(const Exec&, const PageMoveArgs&) {
  return cuda_absent("page_scatter");
}
Status add_norm_cuda(const Exec&, const AddNormArgs&) {
  return cuda_absent("add_norm");
}
Status add_norm_backward_cuda(const Exec&, const AddNormBackwardArgs&) {
  return cuda_absent("add_norm_backward");
}
Status window_attention_cuda(const Exec&, const WindowAttentionArgs&) {
  return cuda_absent("window_attention");
}
Status window_attention_backward_cuda(const Exec&, const WindowAttentionBackwardArgs&) {
  return cuda_absent("window_attention_backward");
}
Status gated_act_cuda(const Exec&, const GatedActArgs&) {
  return cuda_absent("gated_act");
}
Status gated_act_backward_cuda(const Exec&, const GatedActBackwardArgs&) {
  return cuda_absent("gated_act_backward");
}

}  // namespace mc
