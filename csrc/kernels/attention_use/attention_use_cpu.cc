// Rows are the queries of a KV head in the order of time, all heads of its group at one time next
// to each other, so that the rows of a tile see nearly the same keys. A tile's scores stay in the
// second cache between the product and what is made of them.
#include <algorithm>
#include <type_traits>

#include "kernels/attention_use/attention_use.h"
#include "kernels/attention_use/use_shape.h"
#include "kernels/common/aligned.h"
#include "kernels/common/vec.h"

namespace mc {
namespace {

constexpr int64_t kPanel = 32;      // places of a panel of keys, two vectors of the widest level
constexpr int64_t kTileRows = 24;   // whose scores are in flight: a multiple of every level's kRows
constexpr int64_t kTaskRows = 192;  // what one thread takes, in a sum of its own
constexpr float kLog2e = 1.4426950408889634f;

template <class Word>
constexpr bool kIsFloat = std::is_same_v<Word, float>;
template <class Word>
constexpr int64_t words_of(int64_t width) {
  return kIsFloat<Word> ? width : width / 2;
}

template <class Word>
struct UseTile {
  int64_t rows, words;  // of a row
  Word* queries;        // [rows][words]
  const Word* keys;     // panels
  float* scores;        // [rows][stride]
  int64_t stride, count;
  float half_scale;
  int64_t seen_most;  // of `seen`
  int64_t seen[kTileRows];
};

template <class T, class Word>
struct UseHead {
  UseShape shape;
  const T* queries;  // of the first head of the group
  UseTile<Word> tile;
};

}  // namespace

namespace portable {
namespace {
using Vec = VecPortable;
constexpr int kRows = 1;
constexpr float kRootUnit = 1.f;
MC_INLINE Vec root_of(Vec x) {
  return x.exp();
}
#include "kernels/attention_use/attention_use_body.h"
}  // namespace
}  // namespace portable

MC_BEGIN_AVX2
namespace avx2 {
namespace {
using Vec = VecAvx2;
constexpr int kRows = 3;
constexpr float kRootUnit = 1.f;
MC_INLINE Vec root_of(Vec x) {
  return x.exp();
}
#include "kernels/attention_use/attention_use_body.h"
}  // namespace
}  // namespace avx2
MC_END_LEVEL

MC_BEGIN_AVX512
namespace avx512 {
namespace {
using Vec = VecAvx512;
constexpr int kRows = 8;
constexpr float kRootUnit = kLog2e;
// 2^x, exactly 0 below -150: minimax fit on [-1/2, 1/2], relative error 1e-7.
MC_INLINE Vec root_of(Vec x) {
  constexpr float kFit[] = {1.3276471e-3f, 9.6755410e-3f, 5.5507131e-2f,
                            2.4022120e-1f, 6.9314694e-1f, 1.0000001f};
  const __m512 low = _mm512_max_ps(_mm512_set1_ps(-200.f), x.v);  // in this order NaN stays
  const __m512 whole = _mm512_roundscale_ps(low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(low, whole);
  __m512 p = _mm512_set1_ps(kFit[0]);
  for (int i = 1; i < 6; ++i) p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(kFit[i]));
  return {_mm512_scalef_ps(p, whole)};
}

struct Pairs {  // of bf16
  __m512i v;
};
MC_INLINE Pairs load_words(const uint32_t* words) {
  return {_mm512_loadu_si512(words)};
}
MC_INLINE Pairs spread_word(uint32_t word) {
  return {_mm512_set1_epi32(static_cast<int>(word))};
}
MC_INLINE Vec multiply_add(Pairs a, Pairs b, Vec sum) {
  return {_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v)};
}
#include "kernels/attention_use/attention_use_body.h"
}  // namespace
}  // namespace avx512
MC_END_LEVEL

namespace {

// Calls `name<T, Word>(...)` of the current level; words of pairs exist at AVX-512 only.
#define MC_USE_AT_LEVEL(call)     \
  if constexpr (kIsFloat<Word>) { \
    MC_FOR_CPU_LEVEL(call)        \
  } else {                        \
    avx512::call;                 \
  }

template <class T, class Word>
class AttentionUse {
 public:
  explicit AttentionUse(const AttentionUseArgs& args)
      : args_(args),
        shape_(use_shape(args.queries, args.keys, args.count)),
        words_(words_of<Word>(shape_.width)),
        panels_((shape_.places + kPanel - 1) / kPanel),
        rows_(shape_.group() * shape_.asks),
        tasks_((rows_ + kTaskRows - 1) / kTaskRows),
        use_stride_((shape_.count + kPanel - 1) / kPanel * kPanel),
        keys_(heads() * panels_ * panel_words()),
        partial_(heads() * tasks_ * use_stride_) {}

  void run(const Exec& exec) const {
    const int64_t pack_grain = std::max<int64_t>(1, 65536 / panel_words());
    exec.for_range(0, heads() * panels_, pack_grain,
                   [&](int64_t begin, int64_t end) { pack(begin, end); });
    exec.for_range(0, heads() * tasks_, 1, [&](int64_t begin, int64_t end) { use(begin, end); });
    exec.for_range(0, heads(), 1, [&](int64_t begin, int64_t end) { sum(begin, end); });
  }

 private:
  int64_t heads() const { return shape_.batch * shape_.kv_heads; }
  int64_t panel_words() const { return words_ * kPanel; }

  void pack(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / panels_, first = i % panels_ * kPanel;
      const T* keys = args_.keys.as<T>() + head * shape_.places * shape_.width;
      Word* panel = keys_.get() + i * panel_words();
      MC_USE_AT_LEVEL(pack_panel(keys, shape_, first, panel))
    }
  }

  void use(int64_t begin, int64_t end) const {
    const int64_t stride = panels_ * kPanel + kSkew;
    const Aligned<float> scores(kTileRows * stride);
    const Aligned<Word> queries(kTileRows * words_);
    UseHead<T, Word> of{shape_, nullptr, {}};
    of.tile.words = words_;
    of.tile.queries = queries.get();
    of.tile.scores = scores.get();
    of.tile.stride = stride;
    of.tile.count = shape_.count;
    of.tile.half_scale = 0.5f * args_.scale;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / tasks_, first = task_at(i % tasks_) * kTaskRows;
      of.queries = args_.queries.as<T>() + head * rows_ * shape_.width;
      of.tile.keys = keys_.get() + head * panels_ * panel_words();
      float* use = partial_.get() + i * use_stride_;
      std::fill_n(use, use_stride_, 0.f);
      const int64_t last = std::min(rows_, first + kTaskRows);
      MC_USE_AT_LEVEL(use_of_rows(of, first, last, use))
    }
  }

  // From both ends in turn: later queries see more, and a thread takes neighbours.
  int64_t task_at(int64_t i) const { return i % 2 == 0 ? i / 2 : tasks_ - 1 - i / 2; }

  void sum(int64_t begin, int64_t end) const {
    for (int64_t head = begin; head < end; ++head) {
      float* use = args_.use.as<float>() + head * shape_.count;
      std::fill_n(use, shape_.count, 0.f);
      for (int64_t task = 0; task < tasks_; ++task) {
        const float* part = partial_.get() + (head * tasks_ + task) * use_stride_;
        for (int64_t i = 0; i < shape_.count; ++i) use[i] += part[i];
      }
    }
  }

  // Rows of scores, a power of two apart, would share lines of a cache.
  static constexpr int64_t kSkew = 16;

  const AttentionUseArgs& args_;
  const UseShape shape_;
  const int64_t words_, panels_, rows_, tasks_, use_stride_;
  const Aligned<Word> keys_;      // [B, Hkv][panels][words of a row][kPanel]
  const Aligned<float> partial_;  // [B, Hkv][tasks][use_stride]
};

}  // namespace

void attention_use_cpu(const Exec& exec, const AttentionUseArgs& args) {
  with_float_type(args.queries.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<T, bf16>) {
      if (cpu_level() >= CpuLevel::kAvx512) return AttentionUse<T, uint32_t>(args).run(exec);
    }
    AttentionUse<T, float>(args).run(exec);
  });
}

}  // namespace mc
