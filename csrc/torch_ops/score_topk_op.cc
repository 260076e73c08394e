#include <tuple>

#include "kernels/score_topk/score_topk.h"
#include "torch_ops/op_support.h"

namespace mc::torch_ops {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Selection = std::tuple<Tensor, Tensor>;

// [D] is taken for [1, D].
TensorView matrix_view(const Tensor& tensor) {
  TensorView out = view(tensor);
  if (out.rank != 1) return out;
  out.rank = 2;
  out.shape[1] = out.shape[0];
  out.strides[1] = out.strides[0];
  out.shape[0] = 1;
  out.strides[0] = out.shape[1];
  return out;
}

// values f32 and indices i64: [k] when `like` has rank 1, else [lists, k]. A k that will be
// refused allocates nothing.
Selection empty_selection(const Tensor& like, int64_t k, int64_t count) {
  const int64_t width = k < 0 || k > count ? 0 : k;
  if (like.dim() == 1) {
    return {empty_like_device(like, {width}, ScalarType::Float),
            empty_like_device(like, {width}, ScalarType::Long)};
  }
  return {empty_like_device(like, {like.size(0), width}, ScalarType::Float),
          empty_like_device(like, {like.size(0), width}, ScalarType::Long)};
}

// With the k that was asked for, so that the kernel's check sees it.
TensorView selection_view(const Tensor& tensor, int64_t k) {
  TensorView out = matrix_view(tensor);
  out.shape[1] = k;
  out.strides[0] = k;
  return out;
}

// None on CPU.
MaybeTensor workspace_for(const TensorView& input, const Tensor& like, int64_t bytes) {
  if (input.device == Device::kCpu) return std::nullopt;
  return empty_like_device(like, {bytes}, ScalarType::Byte);
}

Selection op_topk(Tensor scores, int64_t k, MaybeTensor mask) {
  const DeviceScope scope(scores);
  TopkArgs args;
  args.scores = matrix_view(scores);
  const int64_t batch = args.scores.shape[0], count = args.scores.shape[1];
  Selection out = empty_selection(scores, k, count);
  args.mask = view(mask);
  args.values = selection_view(std::get<0>(out), k);
  args.indices = selection_view(std::get<1>(out), k);
  const MaybeTensor workspace =
      workspace_for(args.scores, scores, topk_workspace_bytes(batch, count, k));
  args.workspace = view(workspace);
  raise_if_error(topk(args, exec_for(scores)));
  return out;
}

// Into given tensors, without autograd: on CPU nothing is allocated for torch.
void op_topk_out(Tensor scores, MaybeTensor mask, Tensor values, Tensor indices) {
  const DeviceScope scope(scores);
  TopkArgs args;
  args.scores = matrix_view(scores);
  args.mask = view(mask);
  args.values = matrix_view(values);
  args.indices = matrix_view(indices);
  const MaybeTensor workspace = workspace_for(
      args.scores, scores,
      topk_workspace_bytes(args.scores.shape[0], args.scores.shape[1], args.values.shape[1]));
  args.workspace = view(workspace);
  raise_if_error(topk(args, exec_for(scores)));
}

struct ScoreCall {
  const Tensor& queries;
  const Tensor& rows;
  const MaybeTensor& scales;
  const MaybeTensor& mask;
  const MaybeTensor& candidates;
  int64_t k;
};

Selection score_call(const ScoreCall& call, Status (*run)(const ScoreTopkArgs&, const Exec&)) {
  const DeviceScope scope(call.rows);
  ScoreTopkArgs args;
  args.queries = matrix_view(call.queries);
  args.rows = view(call.rows);
  args.scales = view(call.scales);
  args.mask = view(call.mask);
  if (call.candidates.has_value()) args.candidates = matrix_view(*call.candidates);
  const int64_t count = call.candidates.has_value() ? args.candidates.shape[1] : args.rows.shape[0];
  Selection out = empty_selection(call.queries, call.k, count);
  args.values = selection_view(std::get<0>(out), call.k);
  args.indices = selection_view(std::get<1>(out), call.k);
  const MaybeTensor workspace = workspace_for(
      args.rows, call.rows, score_topk_workspace_bytes(args.queries.shape[0], count, call.k));
  args.workspace = view(workspace);
  raise_if_error(run(args, exec_for(call.rows)));
  return out;
}

Selection op_score_topk(Tensor queries, Tensor rows, int64_t k, MaybeTensor scales,
                        MaybeTensor mask) {
  return score_call({queries, rows, scales, mask, std::nullopt, k}, &score_topk);
}

Selection op_score_topk_at(Tensor queries, Tensor rows, Tensor candidates, int64_t k,
                           MaybeTensor scales) {
  return score_call({queries, rows, scales, std::nullopt, candidates, k}, &score_topk_at);
}

}  // namespace
}  // namespace mc::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(MC_OPS_NAMESPACE, m) {
  m.def("topk(Tensor scores, int k, Tensor? mask=None) -> (Tensor values, Tensor indices)");
  // Without an autograd rule: 4 us less a call.
  m.def("topk_no_grad(Tensor scores, int k, Tensor? mask=None) -> (Tensor values, Tensor indices)");
  m.def("topk_out(Tensor scores, Tensor? mask, Tensor(a!) values, Tensor(b!) indices) -> ()");
  m.def(
      "score_topk(Tensor queries, Tensor rows, int k, Tensor? scales=None, Tensor? mask=None) -> "
      "(Tensor values, Tensor indices)");
  m.def(
      "score_topk_no_grad(Tensor queries, Tensor rows, int k, Tensor? scales=None, Tensor? "
      "mask=None) -> (Tensor values, Tensor indices)");
  m.def(
      "score_topk_at(Tensor queries, Tensor rows, Tensor candidates, int k, Tensor? scales=None) "
      "-> (Tensor values, Tensor indices)");
}

#define MC_IMPL_SCORE_TOPK(m)                                             \
  m.impl("topk", TORCH_BOX(&mc::torch_ops::op_topk));                     \
  m.impl("topk_no_grad", TORCH_BOX(&mc::torch_ops::op_topk));             \
  m.impl("topk_out", TORCH_BOX(&mc::torch_ops::op_topk_out));             \
  m.impl("score_topk", TORCH_BOX(&mc::torch_ops::op_score_topk));         \
  m.impl("score_topk_no_grad", TORCH_BOX(&mc::torch_ops::op_score_topk)); \
  m.impl("score_topk_at", TORCH_BOX(&mc::torch_ops::op_score_topk_at));

STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CPU, m){MC_IMPL_SCORE_TOPK(m)}

STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CUDA, m) {
  MC_IMPL_SCORE_TOPK(m)
}
