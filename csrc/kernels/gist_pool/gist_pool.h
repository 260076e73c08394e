// gist_pool: each block of `block_size` consecutive rows becomes one row, its gist.
//
//   rows     [N*block_size, D]  float32, bfloat16 or float16, contiguous
//   weights  [N*block_size]     float32, >= 0, optional: the mass of each row (0: the row is left
//   out
//                               and not read; it may be NaN)
//   query    [D]                dtype of rows, optional: attention pooling
//   gists    [N, D]             dtype of rows, written completely, may not overlap an input
//
//   share[i] = w[i] * exp(scale * rows[i].query) / (sum of the same over the block)
//   gist     = sum over the block of share[i] * rows[i]
//
// w[i] is 1 without weights, and the exponential is 1 without a query: the mean. A block whose
// weights are all 0 gives zeros. Sums are kept in float32 and rounded once; every run gives the
// same bits, with any number of threads. Cost: reads every row once (twice with a query, the second
// time from cache).
//
// gist_pool_backward: from `grad_gists` [N, D], the gradients of what is defined among
//   grad_rows     [N*block_size, D]  dtype of rows
//   grad_weights  [N*block_size]     float32; 0 for rows of weight 0
//   grad_query    [D]                dtype of rows; needs query_partials
//   query_partials [gist_pool_query_groups(device, N), D] float32, scratch
//
// gist_pool_tree: the gists of every LOD of a tree over `rows` [R, D], R any number: LOD 1 has
// R / block_size nodes, LOD n+1 has (nodes of LOD n) / block_size, rounded down (a tail that fills
// no block has no gist), up to the last LOD that has a node.
//   nodes         [gist_pool_tree_nodes(R, block_size), D]  LOD 1 first; the same bits as gist_pool
//                 applied to each LOD
//   node_weights  [same count]  float32, with weights only: the sum of the weights of the children,
//                 which is the node's weight one LOD up
#pragma once

#include "base/status.h"
#include "kernels/common/exec.h"
#include "kernels/common/tensor_view.h"

namespace mc {

inline constexpr int64_t kGistPoolMaxBlockSize = 1024;

struct GistPoolArgs {
  TensorView rows;
  int64_t block_size = 0;
  TensorView weights;
  TensorView query;
  float scale = 1.f;
  TensorView gists;
};

struct GistPoolBackwardArgs {
  TensorView grad_gists;
  TensorView rows;
  int64_t block_size = 0;
  TensorView weights;
  TensorView query;
  float scale = 1.f;
  TensorView grad_rows;
  TensorView grad_weights;
  TensorView grad_query;
  TensorView query_partials;
};

struct GistPoolTreeArgs {
  TensorView rows;
  int64_t block_size = 0;
  TensorView weights;
  TensorView query;
  float scale = 1.f;
  TensorView nodes;
  TensorView node_weights;
};

Status gist_pool(const Exec& exec, const GistPoolArgs& args);
Status gist_pool_backward(const Exec& exec, const GistPoolBackwardArgs& args);

Status gist_pool_tree(const Exec& exec, const GistPoolTreeArgs& args);
int64_t gist_pool_tree_nodes(int64_t row_count, int64_t block_size);

// Blocks are dealt to this many groups for the sum over blocks in grad_query. It depends on the
// device and on N alone, so that the order of additions does too.
int64_t gist_pool_query_groups(Device device, int64_t block_count);

// Variants: assume checked arguments.
void gist_pool_cpu(const Exec& exec, const GistPoolArgs& args);
void gist_pool_backward_cpu(const Exec& exec, const GistPoolBackwardArgs& args);
Status gist_pool_cuda(const Exec& exec, const GistPoolArgs& args);
Status gist_pool_backward_cuda(const Exec& exec, const GistPoolBackwardArgs& args);
Status block_weights_cuda(const Exec& exec, const float* weights, int64_t block_size,
                          int64_t block_count, float* sums);

}  // namespace mc
