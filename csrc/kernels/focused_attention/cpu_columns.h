// The inner loops of attention on AMX tiles. Scores stand transposed, [places, queries]: keys are
// then read as they lie in the pool, softmax needs no sum across a register, and its weights leave
// it in the layout that the second product wants.
//
// A column is 16 queries of one head; a panel is one or two columns of one head. All buffers are
// 64-byte aligned.
#pragma once

#include <cstdint>

#include "kernels/focused_attention/cpu_rows.h"

namespace mc::focused {

inline constexpr int64_t kColumn = 16;  // queries: the lanes of a register, the rows of a tile
inline constexpr int64_t kPanelColumns = 2;
inline constexpr int64_t kKeyTiles = kGroupPlaces / 16;

// One panel on its way through a group of blocks.
struct Panel {
  int64_t places, width, columns;
  const uint16_t* const* keys;  // [places / 16] pointers to 16 rows of E bf16
  const float* bias;            // [places][16] what scores start from, or nullptr: 0
  const uint32_t* queries;      // [columns][E / 2][16] pairs of bf16
  float* scores;                // [columns][kGroupPlaces][16]
  const uint32_t* weights;      // [columns][kGroupPlaces][16], half used: pairs of bf16
  const uint32_t* values;       // [places / 32][E][16] pairs of bf16: transposed
  float* sums;                  // [columns][E][16]
  Ahead* ahead;
};

// How often products and softmax of a panel ask for memory ahead.
inline constexpr int64_t kAskPlaces = 8;
constexpr int64_t asks_of_panel(int64_t columns, int64_t places, int64_t width) {
  return 2 * (places / 32) * (width / 32) + columns * places / kAskPlaces;
}

// One column of scores on its way through softmax.
struct ColumnSoftmax {
  int64_t places;
  float* scores;         // [places][16] in
  uint32_t* weights;     // [places / 2][16] out: exp2(score - max) as pairs of bf16; may be scores
  const int32_t* first;  // [places] a query sees a place when it is at `first` or later,
  const int32_t* last;   // [places] and reaches back to `last` or earlier; nullptr: sees all
  const int32_t* position;  // [16] of the queries
  const int32_t* oldest;    // [16] how far back they reach
  const float* bias;        // [places] times log2(e), added after the cap, or nullptr
  float scale;              // of the scores
  float softcap;
  float* max;  // [16] log2
  float* sum;  // [16]
  Ahead* ahead;
};

// Between the two, this thread holds tiles: one configuration for all products here.
void hold_tiles();
void release_tiles();

void score_panel(const Panel& panel);
void add_values_panel(const Panel& panel);
// Online softmax; true when earlier sums need scaling by factor [16].
bool softmax_column(const ColumnSoftmax& column, float* factor);
// sums [E][16] times factor [16].
void scale_column(float* sums, int64_t width, const float* factor);
// 32 rows of values to [E][16] pairs.
void transpose_values(const uint16_t* const* rows, int64_t width, uint32_t* to);
// What 32 places let queries see, in the terms of ColumnSoftmax; positions nullptr: every filled.
void reach_of_places(const int32_t* rows, const int32_t* positions, int32_t* first, int32_t* last);
// places [n] each times `factor`, to all 16 lanes of [n][16].
void spread_bias(const float* bias, int64_t places, float factor, float* to);
// Rows of width E, rotated by their tables [count][table_width] and rounded to bf16.
struct RotatedRows {
  const uint16_t* const* rows;  // [count]
  int64_t count;
  const float* table;
  int64_t table_width, width;
};
void rotate_rows(const RotatedRows& from, uint16_t* to);

}  // namespace mc::focused
