// The CPU kernels of gaussian_rope, written once for `Vec`; see kernels/common/vec.h. Included
// inside a namespace by gaussian_rope_cpu.cc, once for each CPU level; it includes nothing itself.

// One row of x. `sign` is 1, or -1 for the inverse.
template <class T>
MC_INLINE void rotate_row(const T* x, const float* cos, const float* sin, float sign, T* out,
                          int64_t pairs) {
  const Vec turn = Vec::set(sign);
  for (int64_t at = 0; at < pairs; at += Vec::kLanes) {
    const int count = pairs - at < Vec::kLanes ? static_cast<int>(pairs - at) : Vec::kLanes;
    const bool whole = count == Vec::kLanes;
    const T *low = x + at, *high = x + pairs + at;
    const Vec first = whole ? Vec::load(low) : Vec::load_first(low, count);
    const Vec second = whole ? Vec::load(high) : Vec::load_first(high, count);
    const Vec c = whole ? Vec::load(cos + at) : Vec::load_first(cos + at, count);
    const Vec s = turn * (whole ? Vec::load(sin + at) : Vec::load_first(sin + at, count));
    const Vec left = first * c - second * s, right = second * c + first * s;
    if (whole) {
      left.store(out + at);
      right.store(out + pairs + at);
    } else {
      left.store_first(out + at, count);
      right.store_first(out + pairs + at, count);
    }
  }
}

template <class T>
void rotate_rows(const RopeShape& shape, const RopeTables& tables, const void* x, void* out,
                 int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t table = shape.table_row(row) * shape.pairs;
    const T* from = static_cast<const T*>(x) + row * shape.width;
    T* to = static_cast<T*>(out) + row * shape.width;
    rotate_row<T>(from, tables.cos + table, tables.sin + table, tables.sign, to, shape.pairs);
    for (int64_t column = 2 * shape.pairs; column < shape.width; ++column)
      to[column] = from[column];
  }
}

// Adds what one row of x says about its row of the tables.
template <class T>
MC_INLINE void add_table_gradient(const T* grad, const T* x, float* grad_cos, float* grad_sin,
                                  int64_t pairs) {
  for (int64_t at = 0; at < pairs; at += Vec::kLanes) {
    const int count = pairs - at < Vec::kLanes ? static_cast<int>(pairs - at) : Vec::kLanes;
    const Vec g1 = Vec::load_first(grad + at, count), x1 = Vec::load_first(x + at, count);
    const Vec g2 = Vec::load_first(grad + pairs + at, count);
    const Vec x2 = Vec::load_first(x + pairs + at, count);
    const Vec old_cos = Vec::load_first(grad_cos + at, count);
    const Vec old_sin = Vec::load_first(grad_sin + at, count);
    Vec::fma(g2, x2, Vec::fma(g1, x1, old_cos)).store_first(grad_cos + at, count);
    (Vec::fma(g2, x1, old_sin) - g1 * x2).store_first(grad_sin + at, count);
  }
}

// Table rows [begin, end): each sums over its heads, and over the batch when all share one table.
template <class T>
void sum_table_gradients(const RopeShape& shape, const void* grad, const void* x, float* grad_cos,
                         float* grad_sin, int64_t begin, int64_t end) {
  const int64_t batches = shape.copies == 1 ? shape.batch : 1;
  for (int64_t table = begin; table < end; ++table) {
    float *to_cos = grad_cos + table * shape.pairs, *to_sin = grad_sin + table * shape.pairs;
    for (int64_t i = 0; i < shape.pairs; ++i) to_cos[i] = to_sin[i] = 0.f;
    for (int64_t extra = 0; extra < batches; ++extra) {
      for (int64_t head = 0; head < shape.heads; ++head) {
        const int64_t row = shape.x_row(table, extra, head) * shape.width;
        add_table_gradient<T>(static_cast<const T*>(grad) + row, static_cast<const T*>(x) + row,
                              to_cos, to_sin, shape.pairs);
      }
    }
  }
}
