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

// kVecs registers of columns at once: long runs of each row, so that the prefetcher follows.
template <class T, int kVecs>
MC_INLINE void pool_columns(const PoolShape& shape, const T* rows, const float* shares, T* gist) {
  Vec sums[kVecs];
  for (int v = 0; v < kVecs; ++v) sums[v] = Vec::zero();
  if (shares == nullptr) {
    for (int64_t i = 0; i < shape.block_size; ++i) {
      const T* row = rows + i * shape.width;
      for (int v = 0; v < kVecs; ++v) sums[v] = sums[v] + Vec::load(row + v * Vec::kLanes);
    }
    const Vec inverse = Vec::set(1.f / static_cast<float>(shape.block_size));
    for (int v = 0; v < kVecs; ++v) sums[v] = sums[v] * inverse;
  } else {
    for (int64_t i = 0; i < shape.block_size; ++i) {
      if (shares[i] == 0.f) continue;
      const T* row = rows + i * shape.width;
      const Vec share = Vec::set(shares[i]);
      for (int v = 0; v < kVecs; ++v) {
        sums[v] = Vec::fma(share, Vec::load(row + v * Vec::kLanes), sums[v]);
      }
    }
  }
  for (int v = 0; v < kVecs; ++v) sums[v].store(gist + v * Vec::kLanes);
}

// The last columns, fewer than a register.
template <class T>
MC_INLINE void pool_tail(const PoolShape& shape, const T* rows, const float* shares, T* gist,
                         int count) {
  Vec sum = Vec::zero();
  const float mean = 1.f / static_cast<float>(shape.block_size);
  for (int64_t i = 0; i < shape.block_size; ++i) {
    if (shares != nullptr && shares[i] == 0.f) continue;
    const Vec row = Vec::load_first(rows + i * shape.width, count);
    sum = shares == nullptr ? sum + row : Vec::fma(Vec::set(shares[i]), row, sum);
  }
  if (shares == nullptr) sum = sum * Vec::set(mean);
  sum.store_first(gist, count);
}

template <class T>
void pool_block(const PoolShape& shape, const T* rows, const float* shares, T* gist) {
  int64_t at = 0;
  for (; at + 8 * Vec::kLanes <= shape.width; at += 8 * Vec::kLanes) {
    pool_columns<T, 8>(shape, rows + at, shares, gist + at);
  }
  for (; at + 4 * Vec::kLanes <= shape.width; at += 4 * Vec::kLanes) {
    pool_columns<T, 4>(shape, rows + at, shares, gist + at);
  }
  for (; at + Vec::kLanes <= shape.width; at += Vec::kLanes) {
    pool_columns<T, 1>(shape, rows + at, shares, gist + at);
  }
  if (at < shape.width) {
    pool_tail<T>(shape, rows + at, shares, gist + at, static_cast<int>(shape.width - at));
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
