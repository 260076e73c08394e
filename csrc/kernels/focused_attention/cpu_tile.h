// TileOps: the inner loops of attention on CPU, once for each instruction set. The drivers call
// them through this table, a few times a tile, so the drivers themselves are plain C++.
//
// Matrices are row-major f32 unless said otherwise, strides in elements, all buffers 64-byte
// aligned.
#pragma once

#include <cstdint>

#include "kernels/common/tensor_view.h"

namespace mc::focused {

inline constexpr int64_t kAheadStep = 16;  // turns of a product between two requests

// Memory that is read after the products now running, which ask for some of its cache lines every
// few turns, so that memory works while they compute.
struct Ahead {
  static constexpr int64_t kMost = 512;
  static constexpr int64_t kLineBytes = 64;
  struct Span {
    const char* from;
    int64_t lines;
  };
  Span spans[kMost];
  int64_t count = 0;
  int64_t lines = 0;  // of all spans
  int64_t lines_a_step = 0;
  int64_t next_span = 0, next_line = 0;  // the line within the span

  void add(const void* from, int64_t bytes) {
    spans[count++] = {static_cast<const char*>(from), (bytes + kLineBytes - 1) / kLineBytes};
    lines += spans[count - 1].lines;
  }
  void ask() {
    for (int64_t left = lines_a_step; left > 0 && next_span < count;) {
      const Span& span = spans[next_span];
      const int64_t here = left < span.lines - next_line ? left : span.lines - next_line;
      const char* from = span.from + next_line * kLineBytes;
      for (int64_t i = 0; i < here; ++i) __builtin_prefetch(from + i * kLineBytes, 0, 3);
      left -= here;
      next_line += here;
      if (next_line == span.lines) {
        next_line = 0;
        ++next_span;
      }
    }
  }
};

// c [m, n] = a [m, k] . b [k, n], or += when accumulate. n is a multiple of 32.
struct Gemm {
  int64_t m, n, k;
  const float* a;
  int64_t a_row, a_col;  // strides of a: (1, ld) reads a transposed
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  bool accumulate;
  Ahead* ahead = nullptr;
};

// The same over bf16 pairs: k counts pairs; element (i, j) of a pair matrix holds the bf16 values
// of k = 2 i and 2 i + 1.
struct PairGemm {
  int64_t m, n, k;
  const uint32_t* a;
  int64_t a_row;
  const uint32_t* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  bool accumulate;
  Ahead* ahead = nullptr;
};

// One row of scores on its way through softmax.
struct ScoreRow {
  float* scores;            // [n] in: q . k; out: exp2(score - max)
  int64_t n;                // places, a multiple of 32
  const uint32_t* visible;  // [n / 32] bit masks, or nullptr: all
  const float* bias;        // [n] times log2(e), or nullptr
  float scale;              // of q . k
  float softcap;
  uint16_t* bf16_out;  // [n] the weights again as bf16, or nullptr
};

// One row on its way back: `scores` becomes the weights, `grads` (dP in) becomes d(q . k).
struct GradRow {
  float* scores;
  float* grads;
  int64_t n;
  const uint32_t* visible;
  const float* bias;
  float scale;
  float softcap;
  float lse;         // times log2(e)
  float delta;       // sum(grad_out * out) - grad_lse
  float* grad_bias;  // [n] accumulates d(score), or nullptr
};

struct TileOps {
  void (*gemm)(const Gemm& g);
  void (*pair_gemm)(const PairGemm& g);  // nullptr: no bf16 dot product at this level
  // Online softmax: updates max (log2) and sum, returns the factor that scales earlier results.
  float (*softmax_row)(const ScoreRow& row, float* max, float* sum);
  void (*grad_row)(const GradRow& row);
  uint32_t (*visible)(const int32_t* positions, int32_t query, int64_t window);  // 32 places
  void (*transpose)(const float* from, int64_t rows, int64_t columns, int64_t from_row, float* to,
                    int64_t to_row);                                    // multiples of 16
  void (*to_f32)(const void* from, DType dtype, int64_t n, float* to);  // n % 16 == 0
  void (*from_f32)(const float* from, DType dtype, int64_t n, void* to, float factor);
  void (*rotate)(float* row, const float* table, int64_t half, float sign);  // half % 16 == 0
  void (*pair_rows)(const uint16_t* even, const uint16_t* odd, int64_t n, uint32_t* to);
  void (*scale_row)(float* row, int64_t n, float factor);
  void (*add_row)(float* row, const float* more, int64_t n);
  float (*dot)(const float* a, const float* b, int64_t n);
};

extern const TileOps kTileOpsPortable;
extern const TileOps kTileOpsAvx2;
extern const TileOps kTileOpsAvx512;

const TileOps& tile_ops();  // of cpu_level()

}  // namespace mc::focused
