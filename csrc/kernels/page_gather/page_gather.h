// page_gather, page_scatter: pages by number between a pool and a contiguous tensor.
//
//   pool    [P, S, D]  P pages of S rows; contiguous. On CUDA it may also lie in pinned host
//   memory:
//                      the caller vouches for that.
//   index   [N]        int64, page numbers; on the device that works
//   rows    [N, S, D]  contiguous, on the device of index
//   scales  [P, S]     float32, beside the pool; only where the pool is int8 or float8_e4m3fn and
//   rows
//                      are float32, bfloat16 or float16
//
// page_gather writes rows[n] = pool[index[n]], zeros where index[n] is -1.
// page_scatter writes pool[index[n]] = rows[n], nothing where index[n] is -1; other indices must be
//   distinct.
// Without scales rows have the dtype of the pool, and bytes are copied. With scales:
//   gather    value = code * scale
//   scatter   scale = largest |value| of the row / 127 (int8) or 448 (float8); code = value /
//   scale,
//             rounded to nearest even. Values must be finite. A row of zeros has scale 0.
//
// An index outside [-1, P) is refused on CPU. On CUDA, where nobody waits to look, it counts as -1.
// Element counts beyond 2^31 are fine. Cost: reads and writes each row once.
#pragma once

#include "base/status.h"
#include "kernels/common/exec.h"
#include "kernels/common/tensor_view.h"

namespace mc {

struct PageMoveArgs {
  TensorView pool;
  TensorView index;
  TensorView rows;
  TensorView scales;
};

Status page_gather(const Exec& exec, const PageMoveArgs& args);
Status page_scatter(const Exec& exec, const PageMoveArgs& args);

// Variants: assume checked arguments.
void page_gather_cpu(const Exec& exec, const PageMoveArgs& args);
void page_scatter_cpu(const Exec& exec, const PageMoveArgs& args);
Status page_gather_cuda(const Exec& exec, const PageMoveArgs& args);
Status page_scatter_cuda(const Exec& exec, const PageMoveArgs& args);

}  // namespace mc
