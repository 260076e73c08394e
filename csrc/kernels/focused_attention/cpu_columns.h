// The inner loops of attention in columns. Scores stand transposed, [places, queries]: keys are
// then read as they lie in the pool, softmax needs no sum across a register, and its weights leave
// it in the layout that the second product wants.
//
// T is float or uint16_t (bf16). A word is what one turn of a product takes of a row: a float, or a
// pair of bf16. A column is 16 queries of one head; a panel is one or two columns of one head. All
// buffers are 64-byte aligned; rows of the pools need not be.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/focused_attention/cpu_rows.h"

namespace mc::focused {

inline constexpr int64_t kColumn = 16;  // queries: the lanes of a register, the rows of a tile
inline constexpr int64_t kPanelColumns = 2;
inline constexpr int64_t kKeyTiles = kGroupPlaces / 16;

template <class T>
using Word = std::conditional_t<std::is_same_v<T, float>, float, uint32_t>;
template <class T>
inline constexpr int64_t kPerWord = sizeof(Word<T>) / sizeof(T);

// One panel on its way through a group of blocks.
template <class T>
struct Panel {
  int64_t places, width, columns;
  const T* const* keys;          // [places / 16] pointers to 16 rows of E
  const float* bias;             // [places][16] what scores start from, or nullptr: 0
  const Word<T>* queries;        // [columns][words of a row][16]
  float* scores;                 // [columns][kGroupPlaces][16]
  const Word<T>* weights;        // [columns][kGroupPlaces][16], the first words of places used
  const Word<T>* const* values;  // [places / 32] what `lay_values` made of 32 rows
  float* sums;                   // [columns][E][16]
  Ahead* ahead;
};

// The products, once for each kind of machine.
template <class T>
struct ColumnOps {
  // Around all products of a thread.
  void (*hold)();
  void (*release)();
  void (*score_panel)(const Panel<T>& panel);
  void (*add_values_panel)(const Panel<T>& panel);
  // 32 rows of values as add_values_panel reads them: in `room` [32 * E], or where they lie when
  // they are `together`.
  const Word<T>* (*lay_values)(const T* const* rows, bool together, int64_t width, Word<T>* room);
  // How often the two products of a panel ask for memory ahead.
  int64_t (*asks)(int64_t columns, int64_t places, int64_t width);
};

extern const ColumnOps<float> kColumnsF32;      // AVX-512
extern const ColumnOps<uint16_t> kColumnsBF16;  // AVX-512 with BF16
const ColumnOps<uint16_t>& amx_columns();       // kColumnsBF16 in a build without AMX

// Whether the query blocks fill columns well enough: what a column lacks is computed in vain.
bool fills_columns(const FocusedAttention& in);
// Forward, where fills_columns(in).
void attend_columns(const FocusedAttention& in, const TensorView& out, const TensorView& lse,
                    const Exec& exec);

// One column of scores on its way through softmax.
template <class T>
struct ColumnSoftmax {
  int64_t places;
  float* scores;            // [places][16] in
  Word<T>* weights;         // [words of places][16] out: exp2(score - max); may be `scores`
  const int32_t* first;     // [places] a query sees a place when it is at `first` or later,
  const int32_t* last;      // [places] and reaches back to `last` or earlier; nullptr: sees all
  const int32_t* position;  // [16] of the queries
  const int32_t* oldest;    // [16] how far back they reach
  const float* bias;        // [places] times log2(e), added after the cap, or nullptr
  float scale;              // of the scores
  float softcap;
  float* max;  // [16] log2
  float* sum;  // [16]
};

// Online softmax; true when earlier sums need scaling by factor [16].
bool softmax_column(const ColumnSoftmax<float>& column, float* factor);
bool softmax_column(const ColumnSoftmax<uint16_t>& column, float* factor);
// sums [E][16] times factor [16].
void scale_column(float* sums, int64_t width, const float* factor);
// What 32 places let queries see, in the terms of ColumnSoftmax; positions nullptr: every filled.
void reach_of_places(const int32_t* rows, const int32_t* positions, int32_t* first, int32_t* last);
// places [n] each times `factor`, to all 16 lanes of [n][16].
void spread_bias(const float* bias, int64_t places, float factor, float* to);

// Rows of width E, rotated by their tables [count][table_width] and rounded to T.
template <class T>
struct RotatedRows {
  const T* const* rows;  // [count]
  int64_t count;
  const float* table;
  int64_t table_width, width;
};
void rotate_rows(const RotatedRows<float>& from, float* to);
void rotate_rows(const RotatedRows<uint16_t>& from, uint16_t* to);

}  // namespace mc::focused
