// Forward on CPU in columns of 16 queries (cpu_columns.h). One task is one query block and one KV
// head, as in focused_attention_cpu.cc.
#include <algorithm>
#include <cfloat>
#include <cstring>
#include <limits>

#include "kernels/common/cpu_level.h"
#include "kernels/focused_attention/cpu_columns.h"

namespace mc::focused {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
template <class T>
alignas(64) constexpr T kEmptyRow[kWidthMax] = {};

int64_t columns_a_head(int64_t queries) {
  return (queries + kColumn - 1) / kColumn;
}

template <class T>
struct Scratch {
  Scratch(int64_t columns, int64_t width)
      : queries(columns * kColumn * width / kPerWord<T>),
        sums(columns * kColumn * width),
        max(columns * kColumn),
        sum(columns * kColumn),
        rows_f32(kColumn * width),
        rows(kColumn * width),
        keys(kGroupPlaces * width),
        values(kGroupPlaces * width / kPerWord<T>),
        scores(kPanelColumns * kGroupPlaces * kColumn),
        spread(kGroupPlaces * kColumn) {}

  Aligned<Word<T>> queries;  // [columns][words of a row][16]
  Aligned<float> sums;       // [columns][E][16]
  Aligned<float> max, sum;   // [columns][16]
  Aligned<float> rows_f32;   // [16][E]
  Aligned<T> rows, keys;
  Aligned<Word<T>> values;
  Aligned<float> scores, spread;
};

template <class T>
class QueryColumns {
 public:
  QueryColumns(const FocusedAttention& in, const ColumnOps<T>& columns, const RowStore& store,
               Scratch<T>& scratch)
      : in_(in), ops_(tile_ops()), columns_(columns), load_(in, ops_), store_(store), s_(scratch) {}

  void run(int64_t query_block, int64_t kv_head) {
    const int32_t* starts = in_.query_starts.as<int32_t>() + query_block;
    first_ = starts[0];
    queries_ = starts[1] - first_;
    kv_head_ = kv_head;
    const ReadList list = read_list(in_, query_block, kv_head);
    for (int64_t i = 0; i < columns(); ++i) load_column(i);
    load_.each_group(
        list, kv_head, &ahead_, [&](int64_t places) { return asks(places); },
        [&](const BlockGroup& group) { attend(group); });
    for (int64_t i = 0; i < columns(); ++i) store_column(i, list.cut);
  }

 private:
  int64_t head_columns() const { return columns_a_head(queries_); }
  int64_t columns() const { return in_.group() * head_columns(); }
  int64_t head_of(int64_t column) const { return kv_head_ * in_.group() + column / head_columns(); }
  int64_t query_of(int64_t column) const { return first_ + column % head_columns() * kColumn; }
  int64_t queries_in(int64_t column) const {
    return std::min(kColumn, first_ + queries_ - query_of(column));
  }

  // Of all panels of a group.
  int64_t asks(int64_t places) const {
    const int64_t pairs = head_columns() / kPanelColumns, single = head_columns() % kPanelColumns;
    return in_.group() * (pairs * columns_.asks(kPanelColumns, places, in_.width()) +
                          single * columns_.asks(1, places, in_.width()));
  }

  int64_t words() const { return in_.width() / kPerWord<T>; }

  void load_column(int64_t column) {
    const int64_t width = in_.width(), count = queries_in(column);
    std::memset(&s_.rows[count * width], 0,
                static_cast<size_t>((kColumn - count) * width) * sizeof(T));
    const T* rows[kColumn];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = (query_of(column) + i) * in_.query_heads() + head_of(column);
      rows[i] = in_.q.as<T>() + row * width;
    }
    const bool turned = in_.query_rope.defined();
    gather(rows, count, turned ? load_.query_table(query_of(column)) : nullptr, s_.rows.get());
    ops_.transpose(reinterpret_cast<const float*>(s_.rows.get()), kColumn, words(), words(),
                   reinterpret_cast<float*>(&s_.queries[column * kColumn * words()]), kColumn);
    std::memset(&s_.sums[column * kColumn * width], 0,
                static_cast<size_t>(kColumn * width) * sizeof(float));
    std::fill_n(&s_.max[column * kColumn], kColumn, kMinusInfinity);
    std::fill_n(&s_.sum[column * kColumn], kColumn, 0.0f);
  }

  void store_column(int64_t column, bool cut) {
    const int64_t width = in_.width();
    ops_.transpose(&s_.sums[column * kColumn * width], width, kColumn, kColumn, s_.rows_f32.get(),
                   width);
    for (int64_t i = 0; i < queries_in(column); ++i) {
      const int64_t row = column * kColumn + i;
      store_.store(query_of(column) + i, head_of(column),
                   {&s_.rows_f32[i * width], s_.max[row], s_.sum[row], cut});
    }
  }

  void attend(const BlockGroup& group) {
    for (int64_t i = 0; i < group.count; ++i) load_block(group, i);
    masked_ = !group.all_full();
    for (int64_t i = 0; i < group.count && masked_; ++i) load_reach(group, i);
    bias_head_ = -1;
    for (int64_t head = 0; head < in_.group(); ++head) {
      const float* bias = bias_of(group, kv_head_ * in_.group() + head);
      const int64_t first = head * head_columns(), end = first + head_columns();
      for (int64_t column = first; column < end; column += kPanelColumns) {
        attend_panel(group, column, std::min(kPanelColumns, end - column), bias);
      }
    }
  }

  void load_block(const BlockGroup& group, int64_t i) {
    const int64_t width = in_.width(), room = i * kBlockPlaces * width;
    const T *keys[kBlockPlaces], *values[kBlockPlaces];
    const bool together = group.start[i] >= 0;
    point_at(group.block[i], group.start[i], keys, values);
    values_[i] = columns_.lay_values(values, together, width, &s_.values[room / kPerWord<T>]);
    const T* lie = keys[0];
    const bool turned = in_.key_rope.defined();
    if (turned || !together) {
      gather(keys, kBlockPlaces, turned ? load_.key_table(group.block[i], 0) : nullptr,
             &s_.keys[room]);
      lie = &s_.keys[room];
    }
    key_tiles_[2 * i] = lie;
    key_tiles_[2 * i + 1] = lie + kColumn * width;
  }

  // The 32 rows of a block; start: of the first one where they lie together, or -1.
  void point_at(int64_t block, int64_t start, const T** keys, const T** values) const {
    const auto *key_pool = in_.keys.as<T>(), *value_pool = in_.values.as<T>();
    if (start >= 0) {
      const int64_t width = in_.width(), offset = load_.row_offset(start, kv_head_);
      for (int64_t j = 0; j < kBlockPlaces; ++j) {
        keys[j] = key_pool + offset + j * width;
        values[j] = value_pool + offset + j * width;
      }
      return;
    }
    const int32_t* rows = in_.rows.as<int32_t>() + block * kBlockPlaces;
    for (int64_t j = 0; j < kBlockPlaces; ++j) {
      const bool empty = rows[j] < 0;
      const int64_t offset = empty ? 0 : load_.row_offset(rows[j], kv_head_);
      keys[j] = empty ? kEmptyRow<T> : key_pool + offset;
      values[j] = empty ? kEmptyRow<T> : value_pool + offset;
    }
  }

  // Rows one behind the other, rotated when there is a table.
  void gather(const T* const* rows, int64_t count, const float* table, T* to) const {
    const int64_t width = in_.width();
    if (table != nullptr) {
      return rotate_rows(RotatedRows<T>{rows, count, table, in_.rope_width(), width}, to);
    }
    for (int64_t j = 0; j < count; ++j) {
      std::memcpy(to + j * width, rows[j], static_cast<size_t>(width) * sizeof(T));
    }
  }

  void load_reach(const BlockGroup& group, int64_t i) {
    int32_t *first = seen_first_ + i * kBlockPlaces, *last = seen_last_ + i * kBlockPlaces;
    const int64_t at = group.block[i] * kBlockPlaces;
    const bool timed = in_.causal() && !group.full[i];
    reach_of_places(in_.rows.as<int32_t>() + at, timed ? in_.positions.as<int32_t>() + at : nullptr,
                    first, last);
  }

  // Weights take the place of their scores: less to keep near.
  Word<T>* weights() const { return reinterpret_cast<Word<T>*>(s_.scores.get()); }

  // Bias is added by the product itself, which starts from it; after a cap it cannot be.
  bool bias_after() const { return in_.softcap > 0.0f || !(in_.scale >= FLT_MIN); }

  const float* bias_of(const BlockGroup& group, int64_t head) {
    if (!in_.bias.defined()) return nullptr;
    const int64_t bias_head = head * in_.bias_heads() / in_.query_heads();
    if (bias_head != bias_head_) {
      load_.bias(group, bias_head, bias_);
      if (!bias_after()) {
        spread_bias(bias_, group.places(), 1.0f / (in_.scale * kLog2e), s_.spread.get());
      }
    }
    bias_head_ = bias_head;
    return bias_;
  }

  void attend_panel(const BlockGroup& group, int64_t column, int64_t columns, const float* bias) {
    const int64_t places = group.places(), at = column * kColumn;
    const bool starts_from_bias = bias != nullptr && !bias_after();
    const Panel<T> panel{places,
                         in_.width(),
                         columns,
                         key_tiles_,
                         starts_from_bias ? s_.spread.get() : nullptr,
                         &s_.queries[at * words()],
                         s_.scores.get(),
                         weights(),
                         values_,
                         &s_.sums[at * in_.width()],
                         &ahead_};
    columns_.score_panel(panel);
    for (int64_t i = 0; i < columns; ++i) {
      soften(column + i, i, places, starts_from_bias ? nullptr : bias);
    }
    columns_.add_values_panel(panel);
  }

  void soften(int64_t column, int64_t i, int64_t places, const float* bias) {
    alignas(64) int32_t position[kColumn] = {}, oldest[kColumn] = {};
    if (masked_ && in_.causal()) {
      const int32_t* now = in_.query_positions.as<int32_t>() + query_of(column);
      for (int64_t j = 0; j < queries_in(column); ++j) {
        position[j] = now[j];
        const int64_t back = in_.window > 0 ? int64_t{now[j]} - in_.window + 1 : 0;
        oldest[j] = static_cast<int32_t>(std::max<int64_t>(back, 0));
      }
    }
    alignas(64) float factor[kColumn];
    const bool grown = softmax_column(
        ColumnSoftmax<T>{places, &s_.scores[i * kGroupPlaces * kColumn],
                         weights() + i * kGroupPlaces * kColumn, masked_ ? seen_first_ : nullptr,
                         masked_ ? seen_last_ : nullptr, position, oldest, bias, in_.scale,
                         in_.softcap, &s_.max[column * kColumn], &s_.sum[column * kColumn]},
        factor);
    if (grown) scale_column(&s_.sums[column * kColumn * in_.width()], in_.width(), factor);
  }

  const FocusedAttention& in_;
  const TileOps& ops_;
  const ColumnOps<T>& columns_;
  const RowLoader load_;
  const RowStore& store_;
  Scratch<T>& s_;
  int64_t first_ = 0, queries_ = 0, kv_head_ = 0;
  Ahead ahead_;
  bool masked_ = false;
  int64_t bias_head_ = -1;  // whose bias lies in bias_
  const T* key_tiles_[kKeyTiles];
  const Word<T>* values_[kGroupBlocks];
  alignas(64) int32_t seen_first_[kGroupPlaces], seen_last_[kGroupPlaces];
  alignas(64) float bias_[kGroupPlaces];
};

template <class T>
void attend_all(const FocusedAttention& in, const ColumnOps<T>& ops, const TensorView& out,
                const TensorView& lse, const Exec& exec) {
  const int64_t kv_heads = in.kv_heads();
  const RowStore store(in, tile_ops(), out, lse);
  exec.for_range(0, in.query_block_count() * kv_heads, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(columns_a_head(in.query_tile) * in.group(), in.width());
    QueryColumns<T> task(in, ops, store, scratch);
    ops.hold();
    for (int64_t i = begin; i < end; ++i) task.run(i / kv_heads, i % kv_heads);
    ops.release();
  });
}

}  // namespace

bool fills_columns(const FocusedAttention& in) {
  if (cpu_level() < CpuLevel::kAvx512 || in.q.dtype == DType::kF16) return false;
  // Tiles gain so much that half a column may be in vain (measured: level at about 8 queries).
  const int64_t queries = in.query_count(), blocks = in.query_block_count();
  if (cpu_level() == CpuLevel::kAmx && in.q.dtype == DType::kBF16) return queries >= 8 * blocks;
  // Measured on AVX-512: level with rows at 7 of 8 lanes filled.
  return 8 * queries >= 7 * blocks * columns_a_head(in.query_tile) * kColumn;
}

void attend_columns(const FocusedAttention& in, const TensorView& out, const TensorView& lse,
                    const Exec& exec) {
  if (in.q.dtype == DType::kF32) return attend_all(in, kColumnsF32, out, lse, exec);
  const bool tiles = cpu_level() == CpuLevel::kAmx;
  attend_all(in, tiles ? amx_columns() : kColumnsBF16, out, lse, exec);
}

}  // namespace mc::focused
