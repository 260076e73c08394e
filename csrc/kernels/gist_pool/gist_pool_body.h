// The CPU kernel of gist_pool, written once for `Vec`; see kernels/common/vec.h. Included inside a
// namespace by gist_pool_cpu.cc, once for each CPU level; it includes nothing itself.

// Sum of a[i] * b[i].
template <class T>
MC_INLINE float dot(const T* a, const T* b, int64_t width) {
  Vec sums[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
  int64_t at = 0;
  for (; at + 4 * Vec::kLanes <= width; at += 4 * Vec::kLanes) {
    for (int i = 0; i < 4; ++i) {
      const int64_t here = at + i * Vec::kLanes;
      sums[i] = Vec::fma(Vec::load(a + here), Vec::load(b + here), sums[i]);
    }
  }
  for (; at < width; at += Vec::kLanes) {
    const int count = width - at < Vec::kLanes ? static_cast<int>(width - at) : Vec::kLanes;
    sums[0] = Vec::fma(Vec::load_first(a + at, count), Vec::load_first(b + at, count), sums[0]);
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

// Share of each row of a block in its gist; all 0 when no row has weight. `shares` has room for
// block_size + Vec::kLanes.
template <class T>
void block_shares(const PoolShape& shape, const T* rows, const float* weights, const T* query,
                  float* shares) {
  const int64_t count = shape.block_size;
  float highest = query == nullptr ? 0.f : -kInfinity;
  for (int64_t i = 0; i < count && query != nullptr; ++i) {
    if (weights != nullptr && weights[i] == 0.f) {
      shares[i] = -kInfinity;
      continue;
    }
    shares[i] = shape.scale * dot(rows + i * shape.width, query, shape.width);
    highest = shares[i] > highest ? shares[i] : highest;
  }
  if (query != nullptr) {
    for (int64_t i = count; i < count + Vec::kLanes; ++i) shares[i] = -kInfinity;
    const Vec shift = Vec::set(highest == -kInfinity ? 0.f : highest);
    for (int64_t i = 0; i < count; i += Vec::kLanes) {
      (Vec::load(shares + i) - shift).exp().store(shares + i);
    }
  }
  float total = 0.f;
  for (int64_t i = 0; i < count; ++i) {
    const float weight = weights == nullptr ? 1.f : weights[i];
    shares[i] = query == nullptr ? weight : weight == 0.f ? 0.f : weight * shares[i];
    total += shares[i];
  }
  const float inverse = total == 0.f ? 0.f : 1.f / total;
  for (int64_t i = 0; i < count; ++i) shares[i] *= inverse;
}

// sums[0, width) = the sums so far (0 where `first`) + shares[i] * rows[i], in order. Without
// shares each is 1.
template <class T, int kRows>
MC_INLINE void add_rows(const T* const* rows, const float* shares, bool first, float* sums,
                        int64_t width) {
  Vec factor[kRows];
  for (int i = 0; i < kRows; ++i) factor[i] = Vec::set(shares == nullptr ? 1.f : shares[i]);
  int64_t at = 0;
  for (; at + Vec::kLanes <= width; at += Vec::kLanes) {
    Vec sum = first ? Vec::zero() : Vec::load(sums + at);
    for (int i = 0; i < kRows; ++i) {
      const Vec row = Vec::load(rows[i] + at);
      sum = shares == nullptr ? sum + row : Vec::fma(factor[i], row, sum);
    }
    sum.store(sums + at);
  }
  if (at == width) return;
  const int count = static_cast<int>(width - at);
  Vec sum = first ? Vec::zero() : Vec::load(sums + at);
  for (int i = 0; i < kRows; ++i) {
    const Vec row = Vec::load_first(rows[i] + at, count);
    sum = shares == nullptr ? sum + row : Vec::fma(factor[i], row, sum);
  }
  sum.store(sums + at);
}

// One gist, or a part of its columns, at most kPoolColumns; kRows rows are read at once.
template <class T, int kRows>
void pool_columns(const PoolShape& shape, const T* rows, const float* shares, T* gist,
                  int64_t width) {
  float sums[kPoolColumns + Vec::kLanes];
  const T* some[kRows];
  float of_some[kRows];
  int filled = 0;
  bool first = true;
  for (int64_t i = 0; i < shape.block_size; ++i) {
    if (shares != nullptr && shares[i] == 0.f) continue;
    some[filled] = rows + i * shape.width;
    of_some[filled] = shares == nullptr ? 1.f : shares[i];
    if (++filled < kRows) continue;
    add_rows<T, kRows>(some, shares == nullptr ? nullptr : of_some, first, sums, width);
    first = false;
    filled = 0;
  }
  for (int i = 0; i < filled; ++i, first = false) {
    add_rows<T, 1>(some + i, shares == nullptr ? nullptr : of_some + i, first, sums, width);
  }
  const float scale = shares == nullptr ? 1.f / static_cast<float>(shape.block_size) : 1.f;
  int64_t at = 0;
  for (; at + Vec::kLanes <= width; at += Vec::kLanes) {
    const Vec sum = first ? Vec::zero() : Vec::load(sums + at);
    (shares == nullptr ? sum * Vec::set(scale) : sum).store(gist + at);
  }
  if (at == width) return;
  const Vec sum = first ? Vec::zero() : Vec::load(sums + at);
  (shares == nullptr ? sum * Vec::set(scale) : sum)
      .store_first(gist + at, static_cast<int>(width - at));
}

// Memory is read in long streams, which the hardware follows: short rows one after another as they
// lie, of long ones eight at once (measured: 1.5x columns down the block).
template <class T>
void pool_block(const PoolShape& shape, const T* rows, const float* shares, T* gist) {
  const bool is_short = shape.width * static_cast<int64_t>(sizeof(T)) < kPageBytes;
  for (int64_t at = 0; at < shape.width; at += kPoolColumns) {
    const int64_t left = shape.width - at, width = left < kPoolColumns ? left : kPoolColumns;
    if (is_short) {
      pool_columns<T, 1>(shape, rows + at, shares, gist + at, width);
    } else {
      pool_columns<T, 8>(shape, rows + at, shares, gist + at, width);
    }
  }
}

template <class T>
void pool_blocks(const PoolShape& shape, const PoolInputs& in, void* gists, int64_t begin,
                 int64_t end) {
  float shares[kGistPoolMaxBlockSize + Vec::kLanes];
  const bool is_mean = in.weights == nullptr && in.query == nullptr;
  for (int64_t block = begin; block < end; ++block) {
    const T* rows = static_cast<const T*>(in.rows) + block * shape.block_size * shape.width;
    const float* weights = in.weights == nullptr ? nullptr : in.weights + block * shape.block_size;
    if (!is_mean) {
      block_shares<T>(shape, rows, weights, static_cast<const T*>(in.query), shares);
    }
    pool_block<T>(shape, rows, is_mean ? nullptr : shares,
                  static_cast<T*>(gists) + block * shape.width);
  }
}

// to[i] = a * x[i] + b * y[i]; y may be nullptr.
template <class T>
MC_INLINE void combine_row(T* to, float a, const T* x, float b, const T* y, int64_t width) {
  const Vec left = Vec::set(a), right = Vec::set(b);
  for (int64_t at = 0; at < width; at += Vec::kLanes) {
    const int count = width - at < Vec::kLanes ? static_cast<int>(width - at) : Vec::kLanes;
    const bool whole = count == Vec::kLanes;
    Vec sum = left * (whole ? Vec::load(x + at) : Vec::load_first(x + at, count));
    if (y != nullptr) {
      sum = Vec::fma(right, whole ? Vec::load(y + at) : Vec::load_first(y + at, count), sum);
    }
    if (whole) {
      sum.store(to + at);
    } else {
      sum.store_first(to + at, count);
    }
  }
}

// to[i] += a * x[i]
template <class T>
MC_INLINE void add_row(float* to, float a, const T* x, int64_t width) {
  const Vec factor = Vec::set(a);
  for (int64_t at = 0; at < width; at += Vec::kLanes) {
    const int count = width - at < Vec::kLanes ? static_cast<int>(width - at) : Vec::kLanes;
    if (count == Vec::kLanes) {
      Vec::fma(factor, Vec::load(x + at), Vec::load(to + at)).store(to + at);
    } else {
      const Vec old = Vec::load_first(to + at, count);
      Vec::fma(factor, Vec::load_first(x + at, count), old).store_first(to + at, count);
    }
  }
}

// With p the shares and b[i] = rows[i].grad_gist: moves[i] = p[i] * (b[i] - sum of p*b) is the
// gradient of the logarithm of row i's mass; rows, weights and query follow from it.
template <class T>
void pool_backward_block(const PoolShape& shape, const PoolInputs& in, const PoolGradients& out,
                         int64_t block, float* query_sum) {
  float shares[kGistPoolMaxBlockSize + Vec::kLanes], moves[kGistPoolMaxBlockSize];
  const int64_t first = block * shape.block_size;
  const T* rows = static_cast<const T*>(in.rows) + first * shape.width;
  const T* query = static_cast<const T*>(in.query);
  const T* grad_gist = static_cast<const T*>(out.grad_gists) + block * shape.width;
  const float* weights = in.weights == nullptr ? nullptr : in.weights + first;
  block_shares<T>(shape, rows, weights, query, shares);
  if (query != nullptr || out.grad_weights != nullptr) {
    float expected = 0.f;
    for (int64_t i = 0; i < shape.block_size; ++i) {
      moves[i] = shares[i] == 0.f ? 0.f : dot(rows + i * shape.width, grad_gist, shape.width);
      expected += shares[i] * moves[i];
    }
    for (int64_t i = 0; i < shape.block_size; ++i) moves[i] = shares[i] * (moves[i] - expected);
  }
  for (int64_t i = 0; i < shape.block_size; ++i) {
    if (out.grad_rows != nullptr) {
      combine_row<T>(static_cast<T*>(out.grad_rows) + (first + i) * shape.width, shares[i],
                     grad_gist, query == nullptr ? 0.f : shape.scale * moves[i], query,
                     shape.width);
    }
    if (out.grad_weights != nullptr) {
      out.grad_weights[first + i] = weights[i] == 0.f ? 0.f : moves[i] / weights[i];
    }
    if (query_sum != nullptr && moves[i] != 0.f) {
      add_row<T>(query_sum, shape.scale * moves[i], rows + i * shape.width, shape.width);
    }
  }
}

template <class T>
void pool_backward_blocks(const PoolShape& shape, const PoolInputs& in, const PoolGradients& out,
                          int64_t begin, int64_t end, float* query_sum) {
  for (int64_t i = 0; i < shape.width && query_sum != nullptr; ++i) query_sum[i] = 0.f;
  for (int64_t block = begin; block < end; ++block) {
    pool_backward_block<T>(shape, in, out, block, query_sum);
  }
}
