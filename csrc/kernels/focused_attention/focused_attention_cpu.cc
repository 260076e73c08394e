// Forward on CPU. One task is one query block and one KV head: the rows of all its query heads run
// over the list together, so that each tile of keys is gathered, rotated and transposed once.
#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/focused_attention/cpu_columns.h"

namespace mc::focused {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Scratch {
  Scratch(int64_t rows, int64_t width, bool pairs)
      : sums(rows * width),
        max(rows),
        sum(rows),
        queries(rows * width),
        keys(pairs ? 0 : kGroupPlaces * width),
        keys_t(kGroupPlaces * width),
        values(kGroupPlaces * width),
        scores(kRowTile * kGroupPlaces),
        query_pairs(pairs ? rows * width : 0),
        key_pairs(pairs ? kGroupPlaces * width : 0),
        weight_pairs(pairs ? kRowTile * kGroupPlaces : 0),
        value_pairs(pairs ? kGroupPlaces * width / 2 : 0) {}

  Aligned<float> sums, max, sum, queries, keys, keys_t, values, scores;
  Aligned<uint16_t> query_pairs, key_pairs, weight_pairs;
  Aligned<uint32_t> value_pairs;
};

class QueryBlock {
 public:
  QueryBlock(const FocusedAttention& in, const RowStore& store, Scratch& scratch, bool pairs)
      : in_(in), ops_(tile_ops()), load_(in, ops_), store_(store), s_(scratch), pairs_(pairs) {}

  void run(int64_t query_block, int64_t kv_head) {
    const int32_t* starts = in_.query_starts.as<int32_t>() + query_block;
    first_ = starts[0];
    queries_ = starts[1] - first_;
    kv_head_ = kv_head;
    const ReadList list = read_list(in_, query_block, kv_head);
    load_queries();
    load_.each_group(
        list, kv_head, &ahead_, [&](int64_t places) { return steps(places); },
        [&](const BlockGroup& group) { attend(group); });
    for (int64_t row = 0; row < rows(); ++row) {
      store_.store(query_of(row), head_of(row),
                   {&s_.sums[row * in_.width()], s_.max[row], s_.sum[row], list.cut});
    }
  }

 private:
  int64_t rows() const { return in_.group() * queries_; }
  int64_t head_of(int64_t row) const { return kv_head_ * in_.group() + row / queries_; }
  int64_t query_of(int64_t row) const { return first_ + row % queries_; }
  // Of kAheadStep turns, in both products together: panels are 8 rows by 32 columns at least.
  int64_t steps(int64_t places) const {
    const int64_t turns = places * in_.width() / 16 / (pairs_ ? 2 : 1);
    return std::max<int64_t>(1, (rows() + 7) / 8 * turns / kAheadStep);
  }

  void load_queries() {
    const int64_t width = in_.width();
    for (int64_t row = 0; row < rows(); ++row) {
      load_.query_f32(query_of(row), head_of(row), &s_.queries[row * width]);
      s_.max[row] = kMinusInfinity;
      s_.sum[row] = 0.0f;
    }
    if (pairs_) {
      ops_.from_f32(s_.queries.get(), DType::kBF16, rows() * width, s_.query_pairs.get(), 1.0f);
    }
    std::memset(s_.sums.get(), 0, static_cast<size_t>(rows() * width) * sizeof(float));
  }

  void attend(const BlockGroup& group) {
    const int64_t width = in_.width(), places = group.places();
    bias_head_ = -1;
    if (pairs_) {
      load_.keys_bf16(group, kv_head_, s_.key_pairs.get());
      ops_.transpose(reinterpret_cast<const float*>(s_.key_pairs.get()), places, width / 2,
                     width / 2, s_.keys_t.get(), places);
      load_.value_pairs(group, kv_head_, s_.value_pairs.get());
    } else {
      load_.keys_f32(group, kv_head_, s_.keys.get());
      ops_.transpose(s_.keys.get(), places, width, width, s_.keys_t.get(), places);
      load_.values_f32(group, kv_head_, s_.values.get());
    }
    for (int64_t row = 0; row < rows(); row += kRowTile) {
      const int64_t tile = std::min(kRowTile, rows() - row);
      score_tile(row, tile, places);
      for (int64_t i = 0; i < tile; ++i) softmax(group, row + i, i);
      add_values(row, tile, places);
    }
  }

  void score_tile(int64_t row, int64_t tile, int64_t places) {
    const int64_t width = in_.width();
    if (pairs_) {
      const auto* pairs = reinterpret_cast<const uint32_t*>(s_.query_pairs.get());
      ops_.pair_gemm({tile, places, width / 2, pairs + row * width / 2, width / 2,
                      reinterpret_cast<const uint32_t*>(s_.keys_t.get()), places, s_.scores.get(),
                      places, false, &ahead_});
    } else {
      ops_.gemm({tile, places, width, &s_.queries[row * width], width, 1, s_.keys_t.get(), places,
                 s_.scores.get(), places, false, &ahead_});
    }
  }

  // Of the head of `row`; rows come head by head, so that each head's is loaded once a group.
  const float* bias_of(const BlockGroup& group, int64_t row) {
    if (!in_.bias.defined()) return nullptr;
    const int64_t head = head_of(row) * in_.bias_heads() / in_.query_heads();
    if (head != bias_head_) load_.bias(group, head, bias_);
    bias_head_ = head;
    return bias_;
  }

  void softmax(const BlockGroup& group, int64_t row, int64_t i) {
    const int64_t places = group.places();
    uint32_t visible[kGroupBlocks];
    const bool masked = !group.all_full();
    if (masked) load_.visible(group, query_of(row), visible);
    const ScoreRow scores{&s_.scores[i * places],
                          places,
                          masked ? visible : nullptr,
                          bias_of(group, row),
                          in_.scale,
                          in_.softcap,
                          pairs_ ? &s_.weight_pairs[i * places] : nullptr};
    const float factor = ops_.softmax_row(scores, &s_.max[row], &s_.sum[row]);
    if (factor != 1.0f) ops_.scale_row(&s_.sums[row * in_.width()], in_.width(), factor);
  }

  void add_values(int64_t row, int64_t tile, int64_t places) {
    const int64_t width = in_.width();
    if (pairs_) {
      ops_.pair_gemm({tile, width, places / 2,
                      reinterpret_cast<const uint32_t*>(s_.weight_pairs.get()), places / 2,
                      s_.value_pairs.get(), width, &s_.sums[row * width], width, true, &ahead_});
    } else {
      ops_.gemm({tile, width, places, s_.scores.get(), places, 1, s_.values.get(), width,
                 &s_.sums[row * width], width, true, &ahead_});
    }
  }

  const FocusedAttention& in_;
  const TileOps& ops_;
  const RowLoader load_;
  const RowStore& store_;
  Scratch& s_;
  const bool pairs_;
  int64_t first_ = 0, queries_ = 0, kv_head_ = 0;
  Ahead ahead_;
  int64_t bias_head_ = -1;  // whose bias lies in bias_
  alignas(64) float bias_[kGroupPlaces];
};

}  // namespace

Status attend_cpu(const FocusedAttention& in, const TensorView& out, const TensorView& lse,
                  const Exec& exec) {
  const TileOps& ops = tile_ops();
  if (fills_columns(in)) {
    attend_columns(in, out, lse, exec);
    return {};
  }
  const bool pairs = in.q.dtype == DType::kBF16 && ops.pair_gemm != nullptr;
  const int64_t kv_heads = in.kv_heads();
  const RowStore store(in, ops, out, lse);
  exec.for_range(0, in.query_block_count() * kv_heads, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(in.query_tile * in.group(), in.width(), pairs);
    QueryBlock task(in, store, scratch, pairs);
    for (int64_t i = begin; i < end; ++i) task.run(i / kv_heads, i % kv_heads);
  });
  return {};
}

}  // namespace mc::focused
