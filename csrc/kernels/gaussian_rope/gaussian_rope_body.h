// The CPU kernels of gaussian_rope, written once for `Vec`; see kernels/common/vec.h. Included
// inside a namespace by gaussian_rope_cpu.cc, once for each CPU level; it includes nothing itself.

// Cosines and sines of angles up to 1e8 and more. The angle is reduced in double: n quarter turns,
// and a rest r of at most an eighth of a turn, whose sine and cosine are polynomials (Cephes,
// sinf.c; error below 2^-23). Plain C without branches, which the compiler turns into vectors.
MC_INLINE void sincos_row(float place, const float* inv_freq, float* cos, float* sin,
                          int64_t pairs) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  constexpr double kQuarterHigh = 1.5707963109016418, kQuarterLow = 1.5893254773528196e-8;
  for (int64_t j = 0; j < pairs; ++j) {
    const float angle = place * inv_freq[j];
    const double shifted = static_cast<double>(angle) * 0.63661977236758134 + kRound;
    uint64_t bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    const double n = shifted - kRound;
    const auto r = static_cast<float>((angle - n * kQuarterHigh) - n * kQuarterLow);
    const float z = r * r;
    const float s = r + r * z * (-1.6666654611e-1f + z * (8.3321608736e-3f - z * 1.9515295891e-4f));
    const float c = 1.f - 0.5f * z +
                    z * z * (4.1666645683e-2f + z * (-1.3887316255e-3f + z * 2.4433157118e-5f));
    const auto quarter = static_cast<uint32_t>(bits);
    const bool swapped = (quarter & 1u) != 0;
    const float turned_cos = swapped ? s : c, turned_sin = swapped ? c : s;
    cos[j] = ((quarter + 1u) & 2u) != 0 ? -turned_cos : turned_cos;
    sin[j] = (quarter & 2u) != 0 ? -turned_sin : turned_sin;
  }
}

MC_INLINE void scale_first(float* row, Vec factor, int count) {
  (Vec::load_first(row, count) * factor).store_first(row, count);
}

void table_rows(const TableInputs& in, float* cos, float* sin, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float *row_cos = cos + row * in.pairs, *row_sin = sin + row * in.pairs;
    sincos_row(in.positions[row], in.inv_freq, row_cos, row_sin, in.pairs);
    const float sigma = in.sigmas == nullptr ? 0.f : in.sigmas[row];
    if (sigma == 0.f && in.scale == 1.f) continue;
    for (int64_t at = 0; at < in.pairs; at += Vec::kLanes) {
      const int count = in.pairs - at < Vec::kLanes ? static_cast<int>(in.pairs - at) : Vec::kLanes;
      const Vec spread = Vec::set(sigma) * Vec::load_first(in.inv_freq + at, count);
      const Vec factor = Vec::set(in.scale) * (Vec::set(-0.5f) * spread * spread).exp();
      scale_first(row_cos + at, factor, count);
      scale_first(row_sin + at, factor, count);
    }
  }
}

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
    if (from == to) continue;  // in place: the other columns are there already
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
