#include "kernels/attention_use/attention_use.h"

#include <cmath>

#include "kernels/attention_use/use_shape.h"
#include "kernels/common/check_args.h"

namespace mc {
namespace {

constexpr int64_t kWidthStep = 16, kWidthMax = 512;

Status check_queries_and_keys(const ArgCheck& check, const AttentionUseArgs& args) {
  const TensorView &queries = args.queries, &keys = args.keys;
  MC_RETURN_IF_ERROR(check.float_type("queries", queries));
  MC_RETURN_IF_ERROR(check.tensor("queries", queries, queries.dtype,
                                  {kAnyCount, kAnyCount, kAnyCount, kAnyCount}));
  const int64_t width = queries.shape[3];
  if (width < kWidthStep || width > kWidthMax || width % kWidthStep != 0) {
    return check.fail("queries", "have a width that is a multiple of ", kWidthStep, ", at most ",
                      kWidthMax, ", got ", width);
  }
  MC_RETURN_IF_ERROR(
      check.tensor("keys", keys, queries.dtype, {queries.shape[0], kAnyCount, kAnyCount, width}));
  const int64_t query_heads = queries.shape[1], kv_heads = keys.shape[1];
  if (kv_heads < 1 || query_heads % kv_heads != 0) {
    return check.fail("keys", "have a number of heads that divides the ", query_heads,
                      " of queries, got ", kv_heads);
  }
  if (keys.shape[2] < queries.shape[2]) {
    return check.fail("keys", "end with one for each of the ", queries.shape[2], " queries, got ",
                      keys.shape[2]);
  }
  return Status::ok();
}

}  // namespace

Status attention_use(const Exec& exec, const AttentionUseArgs& args) {
  const ArgCheck check("attention_use", args.queries);
  MC_RETURN_IF_ERROR(check_queries_and_keys(check, args));
  const UseShape shape = use_shape(args.queries, args.keys, args.count);
  if (args.count < 0 || args.count > shape.places - shape.asks) {
    return check.fail("count", "be from 0 to ", shape.places - shape.asks, ", the ", shape.places,
                      " keys less the queries' own ", shape.asks, ", got ", args.count);
  }
  if (!std::isfinite(args.scale)) return check.fail("scale", "be finite, got ", args.scale);
  MC_RETURN_IF_ERROR(
      check.tensor("use", args.use, DType::kF32, {shape.batch, shape.kv_heads, shape.count}));
  if (args.use.numel() == 0) return Status::ok();
  if (args.queries.device == Device::kCuda) {
    const int64_t bytes = attention_use_workspace_bytes(args);
    MC_RETURN_IF_ERROR(check.tensor("workspace", args.workspace, DType::kU8, {kAnyCount}));
    if (args.workspace.shape[0] < bytes) {
      return check.fail("workspace", "have ", bytes, " bytes, got ", args.workspace.shape[0]);
    }
    return attention_use_cuda(exec, args);
  }
  attention_use_cpu(exec, args);
  return Status::ok();
}

int64_t attention_use_workspace_bytes(const AttentionUseArgs& args) {
  if (args.queries.device != Device::kCuda || args.queries.rank != 4 || args.count < 0) return 0;
  const auto& shape = args.queries.shape;
  return shape[0] * shape[1] * (2 * shape[2] + args.count) * static_cast<int64_t>(sizeof(float));
}

}  // namespace mc
