// attention_use: how much a set of queries uses each key. Attention to the power of 1.5 counts what
// one query looks at with all its weight more than what many glance at.
//
//   queries [B, Hq, Q, E]  float32, bfloat16 or float16, contiguous
//                          E is a multiple of 16, at most 512
//   keys    [B, Hkv, P, E] dtype of queries, contiguous; Hkv divides Hq, Q <= P
//                          The last Q are the queries' own: query t sees keys [0, P - Q + t]
//   count                  T, at most P - Q: keys asked about, which every query sees
//   scale                  multiplies the products, finite
//   use     [B, Hkv, T]    float32, written completely:
//                          use[b, g, j] = sum over the query heads h of g and all t of w[j] ^ 1.5,
//                          w = softmax(scale * queries[b, h, t] . keys[b, g, 0 : P - Q + t + 1])
//
// Products are summed in float32, and so is use, in an order that depends on shapes alone: two runs
// give the same bits, with any number of threads. It has no gradient.
//
// Cost: B * Hq * Q * (P - Q / 2) products of E, and as many exponentials.
#pragma once

#include "base/status.h"
#include "kernels/common/exec.h"
#include "kernels/common/tensor_view.h"

namespace mc {

struct AttentionUseArgs {
  TensorView queries;
  TensorView keys;
  int64_t count = 0;
  float scale = 1.f;
  TensorView use;
  TensorView workspace;  // on CUDA: bytes, at least attention_use_workspace_bytes
};

Status attention_use(const Exec& exec, const AttentionUseArgs& args);
// 0 on CPU, and for arguments that will be refused.
int64_t attention_use_workspace_bytes(const AttentionUseArgs& args);

// Variants: assume checked arguments.
void attention_use_cpu(const Exec& exec, const AttentionUseArgs& args);
Status attention_use_cuda(const Exec& exec, const AttentionUseArgs& args);

}  // namespace mc
