#include "kernels/score_topk/score_topk.h"

#include <algorithm>
#include <string>

#include "kernels/score_topk/workspace.h"

namespace mc {
namespace {

Status bad(const char* op, const std::string& message) {
  return Status::invalid_argument(str_cat("[", op, "] ", message));
}

Status check_tensor(const char* op, const char* name, const TensorView& view, DType dtype,
                    int32_t rank) {
  if (view.rank != rank) {
    return bad(op, str_cat(name, " must have rank ", rank, ", got shape ", shape_string(view)));
  }
  if (view.dtype != dtype) {
    return bad(op, str_cat(name, " must be ", dtype_name(dtype), ", got ", dtype_name(view.dtype)));
  }
  if (!view.is_contiguous()) return bad(op, str_cat(name, " must be contiguous"));
  return Status::ok();
}

Status check_mask(const char* op, const TensorView& mask, int64_t lists, int64_t count) {
  if (!mask.defined()) return Status::ok();
  MC_RETURN_IF_ERROR(check_tensor(op, "mask", mask, DType::kBool, mask.rank == 2 ? 2 : 1));
  const bool one = mask.rank == 1 && mask.shape[0] == count;
  const bool each = mask.rank == 2 && mask.shape[0] == lists && mask.shape[1] == count;
  if (one || each) return Status::ok();
  return bad(op, str_cat("mask must be [", count, "] or [", lists, ", ", count, "], got ",
                         shape_string(mask)));
}

Status check_selection(const char* op, const TensorView& values, const TensorView& indices,
                       int64_t lists, int64_t count) {
  const int64_t k = values.shape[1];
  if (k < 0 || k > count) {
    return bad(op, str_cat("k must be between 0 and ", count, ", got ", k));
  }
  MC_RETURN_IF_ERROR(check_tensor(op, "values", values, DType::kF32, 2));
  MC_RETURN_IF_ERROR(check_tensor(op, "indices", indices, DType::kI64, 2));
  const bool same = values.shape[0] == lists && indices.shape[0] == lists && indices.shape[1] == k;
  if (same) return Status::ok();
  return bad(op, str_cat("values and indices must both be [", lists, ", k], got ",
                         shape_string(values), " and ", shape_string(indices)));
}

Status check_same_device(const char* op, std::initializer_list<const TensorView*> views) {
  const TensorView& first = **views.begin();
  for (const TensorView* view : views) {
    if (view->defined() && view->device != first.device) {
      return bad(op, "all tensors must be on one device");
    }
  }
  return Status::ok();
}

Status check_workspace(const char* op, const TensorView& workspace, Device device,
                       int64_t needed_bytes) {
  if (device == Device::kCpu || needed_bytes == 0) return Status::ok();
  MC_RETURN_IF_ERROR(check_tensor(op, "workspace", workspace, DType::kU8, 1));
  if (workspace.shape[0] >= needed_bytes) return Status::ok();
  return bad(op, str_cat("workspace must have at least ", needed_bytes, " bytes, got ",
                         workspace.shape[0]));
}

Status check_rows(const char* op, const ScoreTopkArgs& args) {
  const DType query_dtype = args.queries.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
  MC_RETURN_IF_ERROR(check_tensor(op, "queries", args.queries, query_dtype, 2));
  const DType dtype = args.rows.dtype;
  if (dtype != DType::kBF16 && dtype != DType::kI8 && dtype != DType::kF32) {
    return bad(op, str_cat("rows must be bfloat16, int8 or float32, got ", dtype_name(dtype)));
  }
  MC_RETURN_IF_ERROR(check_tensor(op, "rows", args.rows, dtype, 2));
  if (args.rows.shape[1] != args.queries.shape[1]) {
    return bad(op, str_cat("rows must be [N, ", args.queries.shape[1], "] as queries are ",
                           shape_string(args.queries), ", got ", shape_string(args.rows)));
  }
  if (args.scales.defined() != (dtype == DType::kI8)) {
    return bad(op, str_cat("scales must ", dtype == DType::kI8 ? "" : "not ", "be given with ",
                           dtype_name(dtype), " rows"));
  }
  if (!args.scales.defined()) return Status::ok();
  MC_RETURN_IF_ERROR(check_tensor(op, "scales", args.scales, DType::kF32, 1));
  if (args.scales.shape[0] == args.rows.shape[0]) return Status::ok();
  return bad(op,
             str_cat("scales must be [", args.rows.shape[0], "], got ", shape_string(args.scales)));
}

Status score_topk_checked(const char* op, const ScoreTopkArgs& args, const Exec& exec) {
  const Device device = args.rows.device;
  MC_RETURN_IF_ERROR(check_same_device(op, {&args.rows, &args.queries, &args.scales, &args.mask,
                                            &args.candidates, &args.values, &args.indices}));
  const int64_t count = args.candidates.defined() ? args.candidates.shape[1] : args.rows.shape[0];
  MC_RETURN_IF_ERROR(check_workspace(
      op, args.workspace, device,
      score_topk_workspace_bytes(args.queries.shape[0], count, args.values.shape[1])));
  return device == Device::kCpu ? score_topk_cpu(args, exec) : score_topk_cuda(args, exec);
}

}  // namespace

int64_t topk_workspace_bytes(int64_t batch, int64_t count, int64_t k) {
  if (batch <= 0 || k <= 0 || k > count) return 0;
  return selection_bytes(std::min(batch, kListsAtOnce), k);
}

int64_t score_topk_workspace_bytes(int64_t queries, int64_t count, int64_t k) {
  if (queries <= 0 || k <= 0 || k > count) return 0;
  const int64_t together = queries_at_once(queries, count);
  return padded(together * count * 4) + padded(together * count) + selection_bytes(together, k);
}

Status topk(const TopkArgs& args, const Exec& exec) {
  constexpr const char* kOp = "topk";
  MC_RETURN_IF_ERROR(check_tensor(kOp, "scores", args.scores, DType::kF32, 2));
  const int64_t batch = args.scores.shape[0], count = args.scores.shape[1];
  MC_RETURN_IF_ERROR(check_mask(kOp, args.mask, batch, count));
  MC_RETURN_IF_ERROR(check_selection(kOp, args.values, args.indices, batch, count));
  MC_RETURN_IF_ERROR(
      check_same_device(kOp, {&args.scores, &args.mask, &args.values, &args.indices}));
  if (args.values.numel() == 0) return Status::ok();
  const Device device = args.scores.device;
  MC_RETURN_IF_ERROR(check_workspace(kOp, args.workspace, device,
                                     topk_workspace_bytes(batch, count, args.values.shape[1])));
  return device == Device::kCpu ? topk_cpu(args, exec) : topk_cuda(args, exec);
}

Status score_topk(const ScoreTopkArgs& args, const Exec& exec) {
  constexpr const char* kOp = "score_topk";
  MC_RETURN_IF_ERROR(check_rows(kOp, args));
  const int64_t queries = args.queries.shape[0], count = args.rows.shape[0];
  MC_RETURN_IF_ERROR(check_mask(kOp, args.mask, queries, count));
  MC_RETURN_IF_ERROR(check_selection(kOp, args.values, args.indices, queries, count));
  if (args.values.numel() == 0) return Status::ok();
  return score_topk_checked(kOp, args, exec);
}

Status score_topk_at(const ScoreTopkArgs& args, const Exec& exec) {
  constexpr const char* kOp = "score_topk_at";
  MC_RETURN_IF_ERROR(check_rows(kOp, args));
  const int64_t queries = args.queries.shape[0];
  MC_RETURN_IF_ERROR(check_tensor(kOp, "candidates", args.candidates, DType::kI64, 2));
  if (args.candidates.shape[0] != queries) {
    return bad(
        kOp, str_cat("candidates must be [", queries, ", C], got ", shape_string(args.candidates)));
  }
  MC_RETURN_IF_ERROR(
      check_selection(kOp, args.values, args.indices, queries, args.candidates.shape[1]));
  if (args.values.numel() == 0) return Status::ok();
  return score_topk_checked(kOp, args, exec);
}

}  // namespace mc
