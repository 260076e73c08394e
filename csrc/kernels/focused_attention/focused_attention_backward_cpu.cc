// Backward on CPU, in f32. One task is one KV head: it walks the plan in order and adds to
// gradients that belong to it alone, so the sums are the same in every run, with any number of
// threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/focused_attention/cpu_rows.h"

namespace mc::focused {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void clear(float* values, int64_t count) {
  std::memset(values, 0, static_cast<size_t>(count) * sizeof(float));
}

// The first place of each row: gradients of a row at several places meet there.
std::vector<int64_t> first_places(const FocusedAttention& in) {
  const int64_t places = in.block_count() * kBlockPlaces;
  std::vector<int64_t> of_row(static_cast<size_t>(in.keys.shape[0] * in.page_rows()), -1);
  std::vector<int64_t> of_place(static_cast<size_t>(places), -1);
  for (int64_t place = 0; place < places; ++place) {
    const int32_t row = in.rows.as<int32_t>()[place];
    if (row < 0) continue;
    int64_t& first = of_row[static_cast<size_t>(row)];
    if (first < 0) first = place;
    of_place[static_cast<size_t>(place)] = first;
  }
  return of_place;
}

class KvHead {
 public:
  KvHead(const FocusedAttention& in, const FocusedAttentionGrads& grads, const TileOps& ops,
         float* grad_bias)
      : in_(in),
        grads_(grads),
        ops_(ops),
        load_(in, ops),
        grad_bias_(grad_bias),
        rows_max_(in.query_tile * in.group()),
        queries_f32_(rows_max_ * in.width()),
        grad_outs_(rows_max_ * in.width()),
        grad_queries_(rows_max_ * in.width()),
        lse_(rows_max_),
        delta_(rows_max_),
        keys_(kGroupPlaces * in.width()),
        keys_t_(kGroupPlaces * in.width()),
        values_(kGroupPlaces * in.width()),
        values_t_(kGroupPlaces * in.width()),
        weights_(kRowTile * kGroupPlaces),
        score_grads_(kRowTile * kGroupPlaces),
        grad_keys_(in.block_count() * kBlockPlaces * in.width()),
        grad_values_(in.block_count() * kBlockPlaces * in.width()) {}

  void run(int64_t kv_head, const std::vector<int64_t>& first_place) {
    kv_head_ = kv_head;
    const int64_t numbers = in_.block_count() * kBlockPlaces * in_.width();
    clear(grad_keys_.get(), numbers);
    clear(grad_values_.get(), numbers);
    for (int64_t i = 0; i < in_.query_block_count(); ++i) query_block(i);
    store_pools(first_place);
  }

 private:
  int64_t rows() const { return in_.group() * queries_; }
  int64_t head_of(int64_t row) const { return kv_head_ * in_.group() + row / queries_; }
  int64_t query_of(int64_t row) const { return first_ + row % queries_; }

  void query_block(int64_t i) {
    const int32_t* starts = in_.query_starts.as<int32_t>() + i;
    first_ = starts[0];
    queries_ = starts[1] - first_;
    const ReadList list = read_list(in_, i, kv_head_);
    load_rows();
    for (int64_t j = 0; j < list.count && !list.cut; j += kGroupBlocks) {
      block_group(load_.group(list.blocks, j, list.count));
    }
    store_queries(list.cut ? std::numeric_limits<float>::quiet_NaN() : 1.0f);
  }

  void load_rows() {
    const int64_t width = in_.width(), bytes = dtype_bytes(in_.q.dtype);
    for (int64_t row = 0; row < rows(); ++row) {
      const int64_t at = query_of(row) * in_.query_heads() + head_of(row);
      load_.query_f32(query_of(row), head_of(row), &queries_f32_[row * width]);
      float* grad_out = &grad_outs_[row * width];
      ops_.to_f32(grads_.grad_out.as<char>() + at * width * bytes, in_.q.dtype, width, grad_out);
      float* out = keys_.get();  // free at this time
      ops_.to_f32(grads_.out.as<char>() + at * width * bytes, in_.q.dtype, width, out);
      delta_[row] = ops_.dot(out, grad_out, width);
      if (grads_.grad_lse.defined()) delta_[row] -= grads_.grad_lse.as<float>()[at];
      const float lse = grads_.lse.as<float>()[at];
      lse_[row] = lse == -kInfinity ? kInfinity : lse * kLog2e;  // nothing visible: weights are 0
    }
    clear(grad_queries_.get(), rows() * width);
  }

  void block_group(const BlockGroup& group) {
    const int64_t width = in_.width(), places = group.places();
    bias_head_ = -1;
    load_.keys_f32(group, kv_head_, keys_.get());
    load_.values_f32(group, kv_head_, values_.get());
    ops_.transpose(keys_.get(), places, width, width, keys_t_.get(), places);
    ops_.transpose(values_.get(), places, width, width, values_t_.get(), places);
    for (int64_t row = 0; row < rows(); row += kRowTile) {
      const int64_t tile = std::min(kRowTile, rows() - row);
      ops_.gemm({tile, places, width, &queries_f32_[row * width], width, 1, keys_t_.get(), places,
                 weights_.get(), places, false});
      ops_.gemm({tile, places, width, &grad_outs_[row * width], width, 1, values_t_.get(), places,
                 score_grads_.get(), places, false});
      for (int64_t i = 0; i < tile; ++i) score_row(group, row + i, i);
      ops_.gemm({tile, width, places, score_grads_.get(), places, 1, keys_.get(), width,
                 &grad_queries_[row * width], width, true});
      for (int64_t i = 0; i < group.count; ++i) {
        const int64_t at = group.block[i] * kBlockPlaces * width, column = i * kBlockPlaces;
        ops_.gemm({kBlockPlaces, width, tile, &weights_[column], 1, places,
                   &grad_outs_[row * width], width, &grad_values_[at], width, true});
        ops_.gemm({kBlockPlaces, width, tile, &score_grads_[column], 1, places,
                   &queries_f32_[row * width], width, &grad_keys_[at], width, true});
      }
    }
  }

  // Of `head`; rows come head by head, so that each head's is loaded once a group.
  const float* bias_of(const BlockGroup& group, int64_t head) {
    if (!in_.bias.defined()) return nullptr;
    const int64_t bias_head = head * in_.bias_heads() / in_.query_heads();
    if (bias_head != bias_head_) load_.bias(group, bias_head, bias_);
    bias_head_ = bias_head;
    return bias_;
  }

  void score_row(const BlockGroup& group, int64_t row, int64_t i) {
    const int64_t places = group.places(), head = head_of(row);
    uint32_t visible[kGroupBlocks];
    alignas(64) float grad_bias[kGroupPlaces];
    const bool masked = !group.all_full();
    if (masked) load_.visible(group, query_of(row), visible);
    const bool wants_bias = grad_bias_ != nullptr;
    if (wants_bias) clear(grad_bias, places);
    ops_.grad_row({&weights_[i * places], &score_grads_[i * places], places,
                   masked ? visible : nullptr, bias_of(group, head), in_.scale, in_.softcap,
                   lse_[row], delta_[row], wants_bias ? grad_bias : nullptr});
    for (int64_t b = 0; b < group.count && wants_bias; ++b) {
      float* to = grad_bias_ + (head * in_.block_count() + group.block[b]) * kBlockPlaces;
      ops_.add_row(to, grad_bias + b * kBlockPlaces, kBlockPlaces);
    }
  }

  void store_queries(float factor) {
    const int64_t width = in_.width(), bytes = dtype_bytes(in_.q.dtype);
    for (int64_t row = 0; row < rows(); ++row) {
      const int64_t at = query_of(row) * in_.query_heads() + head_of(row);
      float* grad = &grad_queries_[row * width];
      if (in_.query_rope.defined()) {
        ops_.rotate(grad, load_.query_table(query_of(row)), in_.rope_width() / 2, -1.0f);
      }
      ops_.from_f32(grad, in_.q.dtype, width, grads_.grad_q.as<char>() + at * width * bytes,
                    factor);
    }
  }

  void store_pools(const std::vector<int64_t>& first_place) {
    const int64_t width = in_.width(), places = in_.block_count() * kBlockPlaces;
    const int64_t bytes = dtype_bytes(in_.q.dtype);
    for (int64_t place = 0; place < places; ++place) {
      const int64_t first = first_place[static_cast<size_t>(place)];
      if (first < 0) continue;
      float* grad_key = &grad_keys_[place * width];
      if (in_.key_rope.defined()) {
        ops_.rotate(grad_key, load_.key_table(place / kBlockPlaces, place % kBlockPlaces),
                    in_.rope_width() / 2, -1.0f);
      }
      if (first == place) continue;
      ops_.add_row(&grad_keys_[first * width], grad_key, width);
      ops_.add_row(&grad_values_[first * width], &grad_values_[place * width], width);
    }
    for (int64_t place = 0; place < places; ++place) {
      if (first_place[static_cast<size_t>(place)] != place) continue;
      const int64_t at = load_.row_offset(in_.rows.as<int32_t>()[place], kv_head_) * bytes;
      ops_.from_f32(&grad_keys_[place * width], in_.q.dtype, width,
                    grads_.grad_keys.as<char>() + at, 1.0f);
      ops_.from_f32(&grad_values_[place * width], in_.q.dtype, width,
                    grads_.grad_values.as<char>() + at, 1.0f);
    }
  }

  const FocusedAttention& in_;
  const FocusedAttentionGrads& grads_;
  const TileOps& ops_;
  const RowLoader load_;
  float* const grad_bias_;  // [Hq, N, 32], or nullptr
  const int64_t rows_max_;
  Aligned<float> queries_f32_, grad_outs_, grad_queries_, lse_, delta_;
  Aligned<float> keys_, keys_t_, values_, values_t_, weights_, score_grads_;
  Aligned<float> grad_keys_, grad_values_;
  int64_t first_ = 0, queries_ = 0, kv_head_ = 0;
  int64_t bias_head_ = -1;  // whose bias lies in bias_
  alignas(64) float bias_[kGroupPlaces];
};

void zero(const TensorView& tensor) {
  std::memset(tensor.data, 0, static_cast<size_t>(tensor.numel() * dtype_bytes(tensor.dtype)));
}

// Sums the query heads that share a bias head, in order.
void store_bias(const FocusedAttention& in, const TileOps& ops, const float* by_query_head,
                const TensorView& grad_bias) {
  const int64_t places = in.block_count() * kBlockPlaces;
  zero(grad_bias);
  for (int64_t head = 0; head < in.query_heads(); ++head) {
    const int64_t to = head * in.bias_heads() / in.query_heads();
    for (int64_t j = 0; j < places; j += kBlockPlaces) {
      ops.add_row(grad_bias.as<float>() + to * places + j, by_query_head + head * places + j,
                  kBlockPlaces);
    }
  }
}

}  // namespace

Status attend_backward_cpu(const FocusedAttention& in, const FocusedAttentionGrads& grads,
                           const Exec& exec) {
  const TileOps& ops = tile_ops();
  zero(grads.grad_keys);
  zero(grads.grad_values);
  const std::vector<int64_t> first_place = first_places(in);
  const bool wants_bias = grads.grad_bias.defined();
  const int64_t places = in.block_count() * kBlockPlaces;
  Aligned<float> grad_bias(wants_bias ? in.query_heads() * places : 0);
  if (wants_bias) clear(grad_bias.get(), in.query_heads() * places);
  exec.for_range(0, in.kv_heads(), 1, [&](int64_t begin, int64_t end) {
    KvHead task(in, grads, ops, wants_bias ? grad_bias.get() : nullptr);
    for (int64_t kv_head = begin; kv_head < end; ++kv_head) task.run(kv_head, first_place);
  });
  if (wants_bias) store_bias(in, ops, grad_bias.get(), grads.grad_bias);
  return {};
}

}  // namespace mc::focused
