#include "kernels/gist_pool/gist_pool.h"

#include <algorithm>

#include "kernels/common/check_args.h"

namespace mc {
namespace {

Status check_inputs(const ArgCheck& check, const TensorView& rows, int64_t block_size,
                    const TensorView& weights, const TensorView& query) {
  MC_RETURN_IF_ERROR(check.float_type("rows", rows));
  MC_RETURN_IF_ERROR(check.tensor("rows", rows, rows.dtype, {kAnyCount, kAnyCount}));
  if (block_size < 1 || block_size > kGistPoolMaxBlockSize) {
    return check.fail("block_size", "be in [1, ", kGistPoolMaxBlockSize, "], got ", block_size);
  }
  if (rows.shape[0] % block_size != 0) {
    return check.fail("rows.shape[0]", "be a multiple of block_size=", block_size, ", got ",
                      rows.shape[0]);
  }
  if (weights.defined()) {
    MC_RETURN_IF_ERROR(check.tensor("weights", weights, DType::kF32, {rows.shape[0]}));
  }
  if (query.defined()) {
    MC_RETURN_IF_ERROR(check.tensor("query", query, rows.dtype, {rows.shape[1]}));
  }
  return Status::ok();
}

Status check_tree(const ArgCheck& check, const GistPoolTreeArgs& args) {
  const TensorView& rows = args.rows;
  TensorView whole = rows;  // the tail is allowed here
  if (args.block_size >= 2) whole.shape[0] -= rows.shape[0] % args.block_size;
  MC_RETURN_IF_ERROR(check_inputs(check, whole, args.block_size, {}, args.query));
  if (args.block_size < 2) return check.fail("block_size", "be >= 2, got ", args.block_size);
  const int64_t nodes = gist_pool_tree_nodes(rows.shape[0], args.block_size);
  MC_RETURN_IF_ERROR(check.tensor("nodes", args.nodes, rows.dtype, {nodes, rows.shape[1]}));
  if (!args.weights.defined()) return Status::ok();
  MC_RETURN_IF_ERROR(check.tensor("weights", args.weights, DType::kF32, {rows.shape[0]}));
  return check.tensor("node_weights", args.node_weights, DType::kF32, {nodes});
}

// `count` rows of a contiguous tensor from row `first` on.
TensorView slice(const TensorView& view, int64_t first, int64_t count) {
  if (!view.defined()) return view;
  TensorView out = view;
  const int64_t row_bytes =
      view.rank == 2 ? view.shape[1] * dtype_bytes(view.dtype) : dtype_bytes(view.dtype);
  out.data = static_cast<char*>(view.data) + first * row_bytes;
  out.shape[0] = count;
  return out;
}

Status sum_block_weights(const Exec& exec, const TensorView& weights, int64_t block_size,
                         const TensorView& sums) {
  const float* from = weights.as<float>();
  float* to = sums.as<float>();
  const int64_t count = sums.shape[0];
  if (weights.device == Device::kCuda) {
    return block_weights_cuda(exec, from, block_size, count, to);
  }
  for (int64_t block = 0; block < count; ++block) {
    float sum = 0.f;
    for (int64_t i = 0; i < block_size; ++i) sum += from[block * block_size + i];
    to[block] = sum;
  }
  return Status::ok();
}

Status check_gradients(const ArgCheck& check, const GistPoolBackwardArgs& args) {
  const TensorView& rows = args.rows;
  const int64_t count = rows.shape[0], width = rows.shape[1], blocks = count / args.block_size;
  MC_RETURN_IF_ERROR(check.tensor("grad_gists", args.grad_gists, rows.dtype, {blocks, width}));
  if (args.grad_rows.defined()) {
    MC_RETURN_IF_ERROR(check.tensor("grad_rows", args.grad_rows, rows.dtype, {count, width}));
  }
  if (args.grad_weights.defined()) {
    if (!args.weights.defined()) return check.fail("grad_weights", "come with weights");
    MC_RETURN_IF_ERROR(check.tensor("grad_weights", args.grad_weights, DType::kF32, {count}));
  }
  if (args.grad_query.defined()) {
    if (!args.query.defined()) return check.fail("grad_query", "come with a query");
    MC_RETURN_IF_ERROR(check.tensor("grad_query", args.grad_query, rows.dtype, {width}));
    const int64_t groups = gist_pool_query_groups(rows.device, blocks);
    MC_RETURN_IF_ERROR(
        check.tensor("query_partials", args.query_partials, DType::kF32, {groups, width}));
  }
  return Status::ok();
}

}  // namespace

int64_t gist_pool_query_groups(Device device, int64_t block_count) {
  return std::min<int64_t>(block_count, device == Device::kCpu ? 64 : 1024);
}

Status gist_pool(const Exec& exec, const GistPoolArgs& args) {
  const ArgCheck check("gist_pool", args.rows);
  MC_RETURN_IF_ERROR(check_inputs(check, args.rows, args.block_size, args.weights, args.query));
  MC_RETURN_IF_ERROR(check.tensor("gists", args.gists, args.rows.dtype,
                                  {args.rows.shape[0] / args.block_size, args.rows.shape[1]}));
  if (args.gists.numel() == 0) return Status::ok();
  if (args.rows.device == Device::kCuda) return gist_pool_cuda(exec, args);
  gist_pool_cpu(exec, args);
  return Status::ok();
}

Status gist_pool_backward(const Exec& exec, const GistPoolBackwardArgs& args) {
  const ArgCheck check("gist_pool_backward", args.rows);
  MC_RETURN_IF_ERROR(check_inputs(check, args.rows, args.block_size, args.weights, args.query));
  MC_RETURN_IF_ERROR(check_gradients(check, args));
  if (args.rows.device == Device::kCuda) return gist_pool_backward_cuda(exec, args);
  gist_pool_backward_cpu(exec, args);
  return Status::ok();
}

int64_t gist_pool_tree_nodes(int64_t row_count, int64_t block_size) {
  int64_t nodes = 0;
  for (int64_t count = row_count / block_size; count > 0; count /= block_size) nodes += count;
  return nodes;
}

Status gist_pool_tree(const Exec& exec, const GistPoolTreeArgs& args) {
  MC_RETURN_IF_ERROR(check_tree(ArgCheck("gist_pool_tree", args.rows), args));
  TensorView rows = args.rows, weights = args.weights;
  int64_t first = 0;
  for (int64_t count = rows.shape[0] / args.block_size; count > 0; count /= args.block_size) {
    rows = slice(rows, 0, count * args.block_size);
    weights = slice(weights, 0, count * args.block_size);
    const TensorView gists = slice(args.nodes, first, count);
    MC_RETURN_IF_ERROR(
        gist_pool(exec, {rows, args.block_size, weights, args.query, args.scale, gists}));
    if (weights.defined()) {
      const TensorView sums = slice(args.node_weights, first, count);
      MC_RETURN_IF_ERROR(sum_block_weights(exec, weights, args.block_size, sums));
      weights = sums;
    }
    rows = gists;
    first += count;
  }
  return Status::ok();
}

}  // namespace mc
