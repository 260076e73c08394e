// The CPU kernels of block_encoder, written once for `Vec`; see kernels/common/vec.h. Included
// inside a namespace by block_encoder_cpu.cc, once for each CPU level; it includes nothing itself.

template <class T>
MC_INLINE void add_norm_row(const AddNormRow<T>& row, int64_t width, float epsilon) {
  const T* s = row.delta == nullptr ? row.x : row.sum;
  Vec squares[2] = {Vec::zero(), Vec::zero()};
  for (int64_t at = 0; at < width; at += 2 * Vec::kLanes) {
    for (int i = 0; i < 2; ++i) {
      const int64_t here = at + i * Vec::kLanes;
      if (row.delta != nullptr) {
        (Vec::load(row.x + here) + Vec::load(row.delta + here)).store(row.sum + here);
      }
      const Vec value = Vec::load(s + here);
      squares[i] = Vec::fma(value, value, squares[i]);
    }
  }
  const float mean = (squares[0] + squares[1]).sum() / static_cast<float>(width);
  const float inverse = 1.f / __builtin_sqrtf(mean + epsilon);
  *row.inverse = inverse;
  const Vec scale = Vec::set(inverse);
  for (int64_t at = 0; at < width; at += Vec::kLanes) {
    (Vec::load(s + at) * scale * Vec::load(row.gain + at)).store(row.y + at);
  }
}

template <class T>
void add_norm_rows(const AddNormRow<T>& first, int64_t width, float epsilon, int64_t begin,
                   int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    AddNormRow<T> row = first;
    row.x += r * width;
    row.y += r * width;
    row.inverse += r;
    if (row.delta != nullptr) {
      row.delta += r * width;
      row.sum += r * width;
    }
    add_norm_row(row, width, epsilon);
  }
}

// Also adds each row's part of grad_gain to grad_gain[0..width), in f32.
template <class T>
void add_norm_backward_rows(const AddNormGrad<T>& grad, int64_t width, int64_t begin, int64_t end,
                            float* grad_gain) {
  for (int64_t at = 0; at < width; at += Vec::kLanes) Vec::zero().store(grad_gain + at);
  for (int64_t r = begin; r < end; ++r) {
    const T *dy = grad.grad_y + r * width, *s = grad.s + r * width;
    const T* dsum = grad.grad_sum == nullptr ? nullptr : grad.grad_sum + r * width;
    T* out = grad.grad_s + r * width;
    const float inverse = grad.inverse[r];
    const Vec scale = Vec::set(inverse);
    Vec dots[2] = {Vec::zero(), Vec::zero()};
    for (int64_t at = 0; at < width; at += 2 * Vec::kLanes) {
      for (int i = 0; i < 2; ++i) {
        const int64_t here = at + i * Vec::kLanes;
        const Vec part = Vec::load(dy + here) * Vec::load(s + here);
        dots[i] = Vec::fma(part, Vec::load(grad.gain + here), dots[i]);
        Vec::fma(part, scale, Vec::load(grad_gain + here)).store(grad_gain + here);
      }
    }
    const float dot = (dots[0] + dots[1]).sum();
    const Vec pull = Vec::set(-dot * inverse * inverse * inverse / static_cast<float>(width));
    for (int64_t at = 0; at < width; at += Vec::kLanes) {
      Vec value = Vec::load(dy + at) * Vec::load(grad.gain + at) * scale;
      value = Vec::fma(Vec::load(s + at), pull, value);
      if (dsum != nullptr) value = value + Vec::load(dsum + at);
      value.store(out + at);
    }
  }
}

MC_INLINE Vec sigmoid(Vec x) {
  // Bounded, so that the reciprocal never meets infinity; min keeps a NaN in its second operand.
  const Vec e = Vec::min(Vec::set(1e30f), (Vec::zero() - x).exp());
  return reciprocal(Vec::set(1.f) + e);
}

// As exact as a result of type T can show.
template <class T>
MC_INLINE Vec sigmoid_for(Vec x) {
  if constexpr (!kIsRough<T>) return sigmoid(x);
  return reciprocal_rough(Vec::set(1.f) + exp_rough(Vec::zero() - x));
}

template <class T>
void gated_act_rows(const T* gate_up, T* out, int64_t width, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T *gate = gate_up + 2 * r * width, *up = gate + width;
    for (int64_t at = 0; at < width; at += Vec::kLanes) {
      const Vec g = Vec::load(gate + at);
      (g * sigmoid_for<T>(g) * Vec::load(up + at)).store(out + r * width + at);
    }
  }
}

template <class T>
void gated_act_backward_rows(const GatedActGrad<T>& grad, int64_t width, int64_t begin,
                             int64_t end) {
  const Vec one = Vec::set(1.f);
  for (int64_t r = begin; r < end; ++r) {
    const T *gate = grad.gate_up + 2 * r * width, *up = gate + width;
    const T* dout = grad.grad_out + r * width;
    T *dgate = grad.grad_gate_up + 2 * r * width, *dup = dgate + width;
    for (int64_t at = 0; at < width; at += Vec::kLanes) {
      const Vec g = Vec::load(gate + at), d = Vec::load(dout + at), share = sigmoid(g);
      (d * g * share).store(dup + at);
      const Vec slope = share * Vec::fma(g, one - share, one);
      (d * Vec::load(up + at) * slope).store(dgate + at);
    }
  }
}

// c[32, kCols] = a[32, kInner] * b[kInner, kCols] in f32; with kTransposed a is [kInner, 32].
template <int kInner, int kCols, bool kTransposed>
MC_INLINE void small_product(const float* a, const float* b, float* c) {
  constexpr int kVecs = kCols / Vec::kLanes;
  constexpr int kPanel = Vec::kLanes == 16 ? (kVecs < 4 ? kVecs : 4) : 2;
  constexpr int kRows = 4;
  for (int column = 0; column < kVecs; column += kPanel) {
    const float* right = b + column * Vec::kLanes;
    for (int row = 0; row < kWindow; row += kRows) {
      Vec sums[kRows][kPanel];
      for (int i = 0; i < kRows; ++i) {
        for (int v = 0; v < kPanel; ++v) sums[i][v] = Vec::zero();
      }
      for (int k = 0; k < kInner; ++k) {
        Vec loaded[kPanel];
        for (int v = 0; v < kPanel; ++v) {
          loaded[v] = Vec::load(right + k * kCols + v * Vec::kLanes);
        }
        for (int i = 0; i < kRows; ++i) {
          const float* from = kTransposed ? a + k * kWindow + row + i : a + (row + i) * kInner + k;
          const Vec left = Vec::set(*from);
          for (int v = 0; v < kPanel; ++v) sums[i][v] = Vec::fma(left, loaded[v], sums[i][v]);
        }
      }
      for (int i = 0; i < kRows; ++i) {
        for (int v = 0; v < kPanel; ++v) {
          sums[i][v].store(c + (row + i) * kCols + (column + v) * Vec::kLanes);
        }
      }
    }
  }
}

// One head's 32 rows in f32, rotated by the table (or back, with sign -1) when there is one.
template <class T, int kHead>
MC_INLINE void load_head(const T* from, int64_t stride, const float* table, float sign, float* to) {
  constexpr int kHalf = kHead / 2;
  for (int i = 0; i < kWindow; ++i) {
    for (int at = 0; at < kHalf; at += Vec::kLanes) {
      Vec low = Vec::load(from + i * stride + at), high = Vec::load(from + i * stride + kHalf + at);
      if (table != nullptr) {
        const Vec cosine = Vec::load(table + i * kHead + at);
        const Vec sine = Vec::load(table + i * kHead + kHalf + at) * Vec::set(sign);
        const Vec turned = low * cosine - high * sine;
        high = Vec::fma(high, cosine, low * sine);
        low = turned;
      }
      low.store(to + i * kHead + at);
      high.store(to + i * kHead + kHalf + at);
    }
  }
}

template <class T, int kHead>
MC_INLINE void store_head(const float* from, T* to, int64_t stride) {
  for (int i = 0; i < kWindow; ++i) {
    for (int at = 0; at < kHead; at += Vec::kLanes) {
      Vec::load(from + i * kHead + at).store(to + i * stride + at);
    }
  }
}

template <int kHead>
MC_INLINE void transpose_head(const float* from, float* to) {
  for (int block = 0; block < kHead; block += 16) {
    for (int half = 0; half < kWindow; half += 16) {
      transpose16(from + half * kHead + block, kHead, to + block * kWindow + half, kWindow);
    }
  }
}

// Turns raw scores [32, 32] into probabilities.
template <class T>
MC_INLINE void softmax_rows(float* scores, float scale) {
  constexpr int kVecs = kWindow / Vec::kLanes;
  for (int i = 0; i < kWindow; ++i) {
    float* row = scores + i * kWindow;
    Vec values[kVecs];
    Vec highest = Vec::load(row);
    for (int v = 0; v < kVecs; ++v) {
      values[v] = Vec::load(row + v * Vec::kLanes);
      highest = Vec::max(highest, values[v]);
    }
    const Vec shift = Vec::set(highest.max_lane() * scale), factor = Vec::set(scale);
    Vec total = Vec::zero();
    for (int v = 0; v < kVecs; ++v) {
      values[v] = values[v] * factor - shift;
      values[v] = kIsRough<T> ? exp_rough(values[v]) : values[v].exp();
      total = total + values[v];
    }
    const Vec inverse = Vec::set(1.f / total.sum());
    for (int v = 0; v < kVecs; ++v) (values[v] * inverse).store(row + v * Vec::kLanes);
  }
}

template <int kHead>
struct alignas(64) HeadRoom {
  float q[kWindow * kHead], k[kWindow * kHead], v[kWindow * kHead], turned[kWindow * kHead];
  float scores[kWindow * kWindow];
};

template <class T, int kHead>
MC_INLINE void head_probabilities(const AttentionShape<T>& shape, int64_t window, int64_t head,
                                  HeadRoom<kHead>& room) {
  const int64_t stride = 3 * shape.width;
  const T* q = shape.qkv + window * kWindow * stride + head * kHead;
  load_head<T, kHead>(q, stride, shape.table, 1.f, room.q);
  load_head<T, kHead>(q + shape.width, stride, shape.table, 1.f, room.k);
  load_head<T, kHead>(q + 2 * shape.width, stride, nullptr, 1.f, room.v);
  transpose_head<kHead>(room.k, room.turned);
  small_product<kHead, kWindow, false>(room.q, room.turned, room.scores);
  softmax_rows<T>(room.scores, shape.scale);
}

template <class T, int kHead>
void attention_windows(const AttentionShape<T>& shape, T* out, Windows<kHead> windows) {
  HeadRoom<kHead> room;
  const int64_t heads = shape.width / kHead;
  for (int64_t window = windows.begin; window < windows.end; ++window) {
    for (int64_t head = 0; head < heads; ++head) {
      head_probabilities<T, kHead>(shape, window, head, room);
      small_product<kWindow, kHead, false>(room.scores, room.v, room.turned);
      store_head<T, kHead>(room.turned, out + window * kWindow * shape.width + head * kHead,
                           shape.width);
    }
  }
}

// scores becomes ds = p * (dp - sum over the row of p * dp) * scale; dp is [32, 32].
MC_INLINE void softmax_backward_rows(float* scores, const float* dp, float scale) {
  constexpr int kVecs = kWindow / Vec::kLanes;
  for (int i = 0; i < kWindow; ++i) {
    Vec total = Vec::zero();
    for (int v = 0; v < kVecs; ++v) {
      const int at = i * kWindow + v * Vec::kLanes;
      total = Vec::fma(Vec::load(scores + at), Vec::load(dp + at), total);
    }
    const Vec mean = Vec::set(total.sum()), factor = Vec::set(scale);
    for (int v = 0; v < kVecs; ++v) {
      const int at = i * kWindow + v * Vec::kLanes;
      (Vec::load(scores + at) * (Vec::load(dp + at) - mean) * factor).store(scores + at);
    }
  }
}

template <class T, int kHead>
void attention_backward_windows(const AttentionShape<T>& shape, const T* grad_out, T* grad_qkv,
                                Windows<kHead> windows) {
  HeadRoom<kHead> room;
  alignas(64) float dout[kWindow * kHead], dp[kWindow * kWindow];
  const int64_t heads = shape.width / kHead, stride = 3 * shape.width;
  for (int64_t window = windows.begin; window < windows.end; ++window) {
    for (int64_t head = 0; head < heads; ++head) {
      head_probabilities<T, kHead>(shape, window, head, room);
      load_head<T, kHead>(grad_out + window * kWindow * shape.width + head * kHead, shape.width,
                          nullptr, 1.f, dout);
      T* to = grad_qkv + window * kWindow * stride + head * kHead;
      transpose_head<kHead>(room.v, room.turned);
      small_product<kHead, kWindow, false>(dout, room.turned, dp);
      small_product<kWindow, kHead, true>(room.scores, dout, room.turned);
      store_head<T, kHead>(room.turned, to + 2 * shape.width, stride);
      softmax_backward_rows(room.scores, dp, shape.scale);
      small_product<kWindow, kHead, false>(room.scores, room.k, room.turned);
      load_head<float, kHead>(room.turned, kHead, shape.table, -1.f, dout);
      store_head<T, kHead>(dout, to, stride);
      small_product<kWindow, kHead, true>(room.scores, room.q, room.turned);
      load_head<float, kHead>(room.turned, kHead, shape.table, -1.f, dout);
      store_head<T, kHead>(dout, to + shape.width, stride);
    }
  }
}
