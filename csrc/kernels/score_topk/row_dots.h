// Dot products of a few rows with a few queries: the inner loop of score_topk on CPU.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/tensor_view.h"

namespace mc {

inline constexpr int64_t kRowsTogether = 4;
inline constexpr int64_t kQueriesTogether = 4;

// Queries in f32, each padded with zeros to whole vectors, and in the order in which the kernel
// for `dtype` meets the elements: for bf16 rows the even ones of each vector, then the odd ones,
// because that is how a 32-bit register of bf16 pairs comes apart.
struct PreparedQueries {
  int64_t count = 0;
  int64_t stride = 0;  // floats from query to query
  std::vector<float> elements;

  const float* query(int64_t q) const { return elements.data() + q * stride; }
};

PreparedQueries prepare_queries(const TensorView& queries, DType row_dtype);

// dots[q][n] = rows[n] . query q, for all kRowsTogether rows and q < query_count <=
// kQueriesTogether. The sum's order depends on `width` alone.
using RowDots = void (*)(const void* const* rows, const float* queries, int64_t query_stride,
                         int64_t width, int64_t query_count,
                         float dots[kQueriesTogether][kRowsTogether]);

// For f32, bf16 or i8 rows, at the CPU level in force now; prepare_queries must have seen the same.
RowDots row_dots_for(DType row_dtype);

inline const void* row_at(const TensorView& rows, int64_t n) {
  return rows.as<char>() + n * rows.shape[1] * dtype_bytes(rows.dtype);
}

}  // namespace mc
