// What the kernels that score rows are given. Included by score_topk_cuda.cu only.
#pragma once

#include <cstdint>

namespace mc {
namespace {

struct ScoreArgs {
  const void* queries;  // [Q, D] of the first query of this launch
  bool queries_are_bf16;
  const void* rows;
  const float* scales;
  const uint8_t* mask;        // [count], or null
  const int64_t* candidates;  // [Q, count], or null
  int64_t row_count;
  int64_t count;
  int64_t width;
  int64_t query_count;
  float* scores;   // [Q, count]
  uint8_t* valid;  // [Q, count]: which candidates are rows; with candidates only
};

}  // namespace
}  // namespace mc
