// The CPU kernels of attention_use, written once for `Vec`; see kernels/common/vec.h. Included
// inside a namespace by attention_use_cpu.cc, once for each CPU level; it includes nothing itself.
//
// A word is what one turn of a product takes of a row: a float, or (AVX-512) a pair of bf16. Keys
// lie in panels of kPanel places, transposed: [words of a row][kPanel]. The level says kRows, the
// queries whose products with a panel fit into its registers, and root_of(kRootUnit * x) = exp(x).

constexpr int kVecs = kPanel / Vec::kLanes;

MC_INLINE Vec load_words(const float* words) {
  return Vec::load(words);
}
MC_INLINE Vec spread_word(float word) {
  return Vec::set(word);
}
MC_INLINE Vec multiply_add(Vec a, Vec b, Vec sum) {
  return Vec::fma(a, b, sum);
}

template <class T, class Word>
MC_INLINE Word word_of(const T* row, int64_t word) {
  if constexpr (kIsFloat<Word>) {
    return to_float(row[word]);
  } else {
    Word pair;
    __builtin_memcpy(&pair, row + 2 * word, sizeof pair);
    return pair;
  }
}

// Places [first, first + kPanel) of `keys`; those that are not there are zeros.
template <class T, class Word>
void pack_panel(const T* keys, const UseShape& shape, int64_t first, Word* panel) {
  const int64_t words = words_of<Word>(shape.width), left = shape.places - first;
  const int64_t there = left < kPanel ? left : kPanel;
  for (int64_t i = 0; i < there; ++i) {
    const T* row = keys + (first + i) * shape.width;
    for (int64_t k = 0; k < words; ++k) panel[k * kPanel + i] = word_of<T, Word>(row, k);
  }
  for (int64_t i = there; i < kPanel; ++i) {
    for (int64_t k = 0; k < words; ++k) panel[k * kPanel + i] = Word{0};
  }
}

// scores [kCount][kPanel], `stride` apart: products of kCount queries with a panel.
template <int kCount, class Word>
MC_INLINE void score_rows(const Word* queries, int64_t words, const Word* panel, float* scores,
                          int64_t stride) {
  Vec sum[kCount][kVecs];
  for (int i = 0; i < kCount; ++i) {
    for (int v = 0; v < kVecs; ++v) sum[i][v] = Vec::zero();
  }
  for (int64_t k = 0; k < words; ++k, panel += kPanel) {
    decltype(load_words(panel)) keys[kVecs];
    for (int v = 0; v < kVecs; ++v) keys[v] = load_words(panel + v * Vec::kLanes);
    for (int i = 0; i < kCount; ++i) {
      const auto word = spread_word(queries[i * words + k]);
      for (int v = 0; v < kVecs; ++v) sum[i][v] = multiply_add(word, keys[v], sum[i][v]);
    }
  }
  for (int i = 0; i < kCount; ++i) {
    for (int v = 0; v < kVecs; ++v) sum[i][v].store(scores + i * stride + v * Vec::kLanes);
  }
}

template <class Word>
void score_tile(const UseTile<Word>& tile) {
  for (int64_t panel = 0; panel * kPanel < tile.seen_most; ++panel) {
    const Word* keys = tile.keys + panel * tile.words * kPanel;
    float* scores = tile.scores + panel * kPanel;
    int64_t row = 0;
    for (; row + kRows <= tile.rows; row += kRows) {
      score_rows<kRows>(tile.queries + row * tile.words, tile.words, keys,
                        scores + row * tile.stride, tile.stride);
    }
    for (; row < tile.rows; ++row) {
      score_rows<1>(tile.queries + row * tile.words, tile.words, keys, scores + row * tile.stride,
                    tile.stride);
    }
  }
}

// The first `seen` scores become square roots of weights that are not yet divided by their sum,
// exp((scale * score - the largest) / 2), of which the first `count` are written. Returns the sum
// of the weights. Behind `seen`, scores may be read and written up to a whole vector.
MC_INLINE float soften(float* scores, int64_t seen, int64_t count, float half_scale) {
  const int64_t whole = seen / Vec::kLanes * Vec::kLanes;
  const int rest = static_cast<int>(seen - whole);
  if (rest > 0) {  // more of the first, which change no maximum
    for (int64_t i = seen; i < whole + Vec::kLanes; ++i) scores[i] = scores[0];
  }
  const Vec factor = Vec::set(half_scale);
  Vec top = factor * Vec::load(scores);
  for (int64_t at = Vec::kLanes; at < seen; at += Vec::kLanes) {
    top = Vec::max(factor * Vec::load(scores + at), top);
  }
  const Vec anchor = Vec::set(-top.max_lane());
  Vec sum = Vec::zero();
  for (int64_t at = 0; at < whole; at += Vec::kLanes) {
    const Vec root = root_of(Vec::fma(Vec::load(scores + at), factor, anchor));
    if (at < count) root.store(scores + at);
    sum = Vec::fma(root, root, sum);
  }
  if (rest > 0) {  // written in any case: `count` may end here
    root_of(Vec::fma(Vec::load(scores + whole), factor, anchor)).store(scores + whole);
    const Vec root = Vec::load_first(scores + whole, rest);
    sum = Vec::fma(root, root, sum);
  }
  return sum.sum();
}

// use [count] += weight ^ 1.5 of every row of the tile.
template <class Word>
void add_use(const UseTile<Word>& tile, float* use) {
  float factor[kTileRows];
  for (int64_t row = 0; row < tile.rows; ++row) {
    float* scores = tile.scores + row * tile.stride;
    const float sum = soften(scores, tile.seen[row], tile.count, tile.half_scale * kRootUnit);
    factor[row] = 1.f / (sum * __builtin_sqrtf(sum));
  }
  for (int64_t at = 0; at < tile.count; at += Vec::kLanes) {
    Vec total = Vec::load(use + at);
    for (int64_t row = 0; row < tile.rows; ++row) {
      const Vec root = Vec::load(tile.scores + row * tile.stride + at);
      total = Vec::fma(root * root, root * Vec::set(factor[row]), total);
    }
    total.store(use + at);
  }
}

template <class T, class Word>
void copy_query(const T* row, int64_t words, Word* to) {
  for (int64_t k = 0; k < words; ++k) to[k] = word_of<T, Word>(row, k);
}

// Rows [begin, end) of a KV head, taken kTileRows at a time, into use [count, a whole vector].
template <class T, class Word>
void use_of_rows(const UseHead<T, Word>& head, int64_t begin, int64_t end, float* use) {
  const UseShape& shape = head.shape;
  UseTile<Word> tile = head.tile;
  for (int64_t first = begin; first < end; first += kTileRows) {
    tile.rows = end - first < kTileRows ? end - first : kTileRows;
    for (int64_t i = 0; i < tile.rows; ++i) {
      const int64_t ask = (first + i) / shape.group(), of_group = (first + i) % shape.group();
      const T* row = head.queries + (of_group * shape.asks + ask) * shape.width;
      copy_query(row, tile.words, tile.queries + i * tile.words);
      tile.seen[i] = shape.seen(ask);
    }
    tile.seen_most = tile.seen[tile.rows - 1];
    score_tile(tile);
    add_use(tile, use);
  }
}
