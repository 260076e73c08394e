// Exact selection of the k best rows: of scores that exist (topk), of node vectors scored on the
// way (score_topk), or of a list of candidate nodes (score_topk_at).
//
// One order everywhere: greater score first, and of equal scores the lower position first. NaN
// counts as -inf and -0 as +0, so the order is total, and the result is the same bits on every
// run, for every number of threads and blocks. A row that the mask forbids is never returned; when
// fewer than k rows are allowed, the places left over hold -inf and index -1.
//
//   scores     [B, N] f32
//   queries    [Q, D] f32
//   rows       [N, D] f32, bf16 or i8
//   scales     [N]    f32, only with i8 rows: the score is multiplied by it
//   mask       [N] or [B, N] (topk) or [Q, N] bool, optional: true allows the row
//   candidates [Q, C] i64: positions in rows; any outside [0, N) is skipped; ties go to the
//              earlier candidate
//   values     [B, k] or [Q, k] f32, written completely
//   indices    [B, k] or [Q, k] i64, written completely; for score_topk_at a position in rows
//   workspace  u8, at least the bytes named below, 256-byte aligned; CUDA only
//
// All contiguous. Scores are summed in f32 in an order that depends only on D, the dtype and the
// instruction set, never on a row's place or the number of threads.
//
// Cost: one read of scores or rows; on CPU about 8 * (2k + 8192) bytes of scratch a query and
// thread, on CUDA the workspace and no host synchronisation.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/common/exec.h"
#include "kernels/common/tensor_view.h"

namespace mc {

struct TopkArgs {
  TensorView scores;
  TensorView mask;  // may be undefined
  TensorView values;
  TensorView indices;
  TensorView workspace;  // CUDA only
};

struct ScoreTopkArgs {
  TensorView queries;
  TensorView rows;
  TensorView scales;      // may be undefined
  TensorView mask;        // may be undefined; not with candidates
  TensorView candidates;  // only for score_topk_at
  TensorView values;
  TensorView indices;
  TensorView workspace;  // CUDA only
};

Status topk(const TopkArgs& args, const Exec& exec);
Status score_topk(const ScoreTopkArgs& args, const Exec& exec);
Status score_topk_at(const ScoreTopkArgs& args, const Exec& exec);

// Bytes of the CUDA workspace; `count` is N, or C for score_topk_at; 0 needed on CPU.
int64_t topk_workspace_bytes(int64_t batch, int64_t count, int64_t k);
int64_t score_topk_workspace_bytes(int64_t queries, int64_t count, int64_t k);

// The variants assume checked arguments; called from score_topk.cc only.
Status topk_cpu(const TopkArgs& args, const Exec& exec);
Status score_topk_cpu(const ScoreTopkArgs& args, const Exec& exec);
Status topk_cuda(const TopkArgs& args, const Exec& exec);
Status score_topk_cuda(const ScoreTopkArgs& args, const Exec& exec);

}  // namespace mc
