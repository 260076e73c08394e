#include "kernels/score_topk/topk_stream.h"

// GCC 12's own intrinsics read a vector that they leave undefined on purpose (GCC PR 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "base/checks.h"
#include "kernels/common/cpu_level.h"

namespace mc {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr int64_t kStride = 64;  // scores looked at before one branch
constexpr int64_t kVectorSlack = 16;
constexpr int64_t kFewSelected = 512;  // below this a comparison sort beats histograms
constexpr int kDigitBits = 11;
constexpr int64_t kDigits = int64_t{1} << kDigitBits;

enum Mode : int { kAll = 0, kAtLeast = 1, kAbove = 2 };

// Where admitted scores go. Each scan appends at most kStride per step and stops when it may no
// longer do so; a vector store may write 16 slots past `held`.
struct Sink {
  uint32_t* keys;
  uint32_t* positions;
  int64_t held;
  int64_t capacity;
};

struct Scan {
  const float* scores;
  const uint8_t* mask;
  int64_t count;
  uint32_t base;
  float threshold;
  int mode;
};

inline bool admits(const Scan& scan, float score) {
  if (scan.mode == kAll) return true;
  return scan.mode == kAtLeast ? score >= scan.threshold : score > scan.threshold;
}

inline uint32_t key_of(float score) {
  if (!(score >= kMinusInf)) score = kMinusInf;
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// Appends one by one scores [begin, end); the tail of every level and the slow part of portable.
void scan_each(const Scan& scan, int64_t begin, int64_t end, Sink& sink) {
  for (int64_t i = begin; i < end; ++i) {
    if (!admits(scan, scan.scores[i])) continue;
    if (scan.mask != nullptr && scan.mask[i] == 0) continue;
    sink.keys[sink.held] = key_of(scan.scores[i]);
    sink.positions[sink.held] = scan.base + static_cast<uint32_t>(i);
    ++sink.held;
  }
}

// Each scan starts at `begin` and returns where it stopped: the end, or a full sink.
int64_t scan_portable(const Scan& scan, int64_t begin, Sink& sink) {
  int64_t i = begin;
  for (; i < scan.count && sink.capacity - sink.held >= kStride; i += kStride) {
    const int64_t end = std::min(i + kStride, scan.count);
    int hits = 0;
    for (int64_t j = i; j < end; ++j) hits |= static_cast<int>(admits(scan, scan.scores[j]));
    if (hits != 0) scan_each(scan, i, end, sink);
  }
  return std::min(i, scan.count);
}

template <int kMode>
MC_TARGET_AVX2 inline int hits8(__m256 scores, __m256 threshold) {
  if constexpr (kMode == kAll) return 0xff;
  constexpr int kCompare = kMode == kAtLeast ? _CMP_GE_OQ : _CMP_GT_OQ;
  return _mm256_movemask_ps(_mm256_cmp_ps(scores, threshold, kCompare));
}

template <int kMode>
MC_TARGET_AVX2 int64_t scan_avx2(const Scan& scan, int64_t begin, Sink& sink) {
  const __m256 threshold = _mm256_set1_ps(scan.threshold);
  int64_t i = begin;
  for (; i + kStride <= scan.count && sink.capacity - sink.held >= kStride; i += kStride) {
    uint64_t hits = 0;
    for (int part = 0; part < 8; ++part) {
      const __m256 scores = _mm256_loadu_ps(scan.scores + i + 8 * part);
      hits |= static_cast<uint64_t>(hits8<kMode>(scores, threshold)) << (8 * part);
    }
    for (; hits != 0; hits &= hits - 1) {
      const int64_t j = i + __builtin_ctzll(hits);
      if (scan.mask != nullptr && scan.mask[j] == 0) continue;
      sink.keys[sink.held] = key_of(scan.scores[j]);
      sink.positions[sink.held] = scan.base + static_cast<uint32_t>(j);
      ++sink.held;
    }
  }
  if (i + kStride > scan.count && i < scan.count && sink.capacity - sink.held >= kStride) {
    scan_each(scan, i, scan.count, sink);
    return scan.count;
  }
  return i;
}

template <int kMode>
MC_TARGET_AVX512 inline __mmask16 hits16(__m512 scores, __m512 threshold) {
  if constexpr (kMode == kAll) return 0xffff;
  constexpr int kCompare = kMode == kAtLeast ? _CMP_GE_OQ : _CMP_GT_OQ;
  return _mm512_cmp_ps_mask(scores, threshold, kCompare);
}

MC_TARGET_AVX512 inline void append16(const Scan& scan, int64_t at, __m512 scores, __mmask16 hits,
                                      Sink& sink) {
  if (scan.mask != nullptr) {
    const __m128i allowed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scan.mask + at));
    hits &= _mm_test_epi8_mask(allowed, allowed);
  }
  // max returns its second operand for NaN; adding +0 turns -0 into +0.
  const __m512 real =
      _mm512_add_ps(_mm512_max_ps(scores, _mm512_set1_ps(kMinusInf)), _mm512_setzero_ps());
  const __m512i bits = _mm512_castps_si512(real);
  const __m512i sign = _mm512_srai_epi32(bits, 31);
  const __m512i key = _mm512_xor_si512(
      bits, _mm512_or_si512(sign, _mm512_set1_epi32(static_cast<int>(0x80000000u))));
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i position =
      _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(scan.base + at)), lanes);
  // Compress in registers and store 16: a compress straight to memory is microcoded on Zen.
  _mm512_storeu_si512(sink.keys + sink.held, _mm512_maskz_compress_epi32(hits, key));
  _mm512_storeu_si512(sink.positions + sink.held, _mm512_maskz_compress_epi32(hits, position));
  sink.held += __builtin_popcount(hits);
}

template <int kMode>
MC_TARGET_AVX512 int64_t scan_avx512(const Scan& scan, int64_t begin, Sink& sink) {
  const __m512 threshold = _mm512_set1_ps(scan.threshold);
  int64_t i = begin;
  for (; i + kStride <= scan.count && sink.capacity - sink.held >= kStride; i += kStride) {
    const float* scores = scan.scores + i;
    const __m512 a = _mm512_loadu_ps(scores), b = _mm512_loadu_ps(scores + 16);
    const __m512 c = _mm512_loadu_ps(scores + 32), d = _mm512_loadu_ps(scores + 48);
    const __mmask16 in_a = hits16<kMode>(a, threshold), in_b = hits16<kMode>(b, threshold);
    const __mmask16 in_c = hits16<kMode>(c, threshold), in_d = hits16<kMode>(d, threshold);
    if ((in_a | in_b | in_c | in_d) == 0) continue;
    if (in_a != 0) append16(scan, i, a, in_a, sink);
    if (in_b != 0) append16(scan, i + 16, b, in_b, sink);
    if (in_c != 0) append16(scan, i + 32, c, in_c, sink);
    if (in_d != 0) append16(scan, i + 48, d, in_d, sink);
  }
  if (i + kStride > scan.count && i < scan.count && sink.capacity - sink.held >= kStride) {
    scan_each(scan, i, scan.count, sink);
    return scan.count;
  }
  return i;
}

int64_t scan_from(const Scan& scan, int64_t begin, Sink& sink) {
  switch (cpu_level()) {
    case CpuLevel::kAmx:
    case CpuLevel::kAvx512:
      if (scan.mode == kAll) return scan_avx512<kAll>(scan, begin, sink);
      if (scan.mode == kAtLeast) return scan_avx512<kAtLeast>(scan, begin, sink);
      return scan_avx512<kAbove>(scan, begin, sink);
    case CpuLevel::kAvx2:
      if (scan.mode == kAll) return scan_avx2<kAll>(scan, begin, sink);
      if (scan.mode == kAtLeast) return scan_avx2<kAtLeast>(scan, begin, sink);
      return scan_avx2<kAbove>(scan, begin, sink);
    case CpuLevel::kPortable: break;
  }
  return scan_portable(scan, begin, sink);
}

struct Cut {
  uint32_t key;   // the k-th greatest
  int64_t equal;  // how many of those equal to it belong to the k greatest
};

// The k-th greatest of keys[0, count), 1 <= k <= count, by digits from the top; each round looks
// at one bucket of the last, so the sum of the rounds is close to one pass.
Cut kth_greatest(const uint32_t* keys, int64_t count, int64_t k, std::vector<uint32_t>& scratch) {
  uint32_t least = keys[0], most = keys[0];
  for (int64_t i = 1; i < count; ++i) {
    least = std::min(least, keys[i]);
    most = std::max(most, keys[i]);
  }
  const uint32_t* members = keys;
  while (true) {
    const int width = std::bit_width(most - least);
    const int shift = width > kDigitBits ? width - kDigitBits : 0;
    std::array<uint32_t, kDigits> counts{};
    for (int64_t i = 0; i < count; ++i) ++counts[(members[i] - least) >> shift];
    int64_t digit = kDigits - 1;
    for (; counts[digit] < k; --digit) k -= counts[digit];
    if (shift == 0) return {least + static_cast<uint32_t>(digit), k};
    scratch.resize(std::max<size_t>(scratch.size(), count));
    int64_t inside = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t key = members[i];
      scratch[inside] = key;  // may overwrite members[i] itself, never one not yet read
      inside += static_cast<int64_t>(((key - least) >> shift) == digit);
    }
    members = scratch.data();
    count = inside;
    least += static_cast<uint32_t>(digit << shift);
    most = least + ((uint32_t{1} << shift) - 1);
  }
}

// Stable, greatest key first: positions stay in order within equal keys.
void sort_descending(std::vector<uint32_t>& keys, std::vector<uint32_t>& positions, int64_t count) {
  const auto [least, most] = std::minmax_element(keys.begin(), keys.begin() + count);
  const uint32_t top = *most;
  const int width = std::bit_width(top - *least);
  std::vector<uint32_t> other_keys(count), other_positions(count);
  const int digit_bits = count < 512 ? 6 : count < 8192 ? 8 : kDigitBits;
  const uint32_t digit_mask = (1u << digit_bits) - 1;
  for (int shift = 0; shift < width; shift += digit_bits) {
    std::array<uint32_t, kDigits> starts{};
    for (int64_t i = 0; i < count; ++i) ++starts[((top - keys[i]) >> shift) & digit_mask];
    uint32_t before = 0;
    for (uint32_t digit = 0; digit <= digit_mask; ++digit) {
      const uint32_t here = starts[digit];
      starts[digit] = before;
      before += here;
    }
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t to = starts[((top - keys[i]) >> shift) & digit_mask]++;
      other_keys[to] = keys[i];
      other_positions[to] = positions[i];
    }
    keys.swap(other_keys);
    positions.swap(other_positions);
  }
}

}  // namespace

uint32_t score_key(float score) {
  return key_of(score);
}

float score_of_key(uint32_t key) {
  return std::bit_cast<float>((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}

void keep_greatest(uint32_t* keys, uint32_t* positions, int64_t count, int64_t k,
                   std::vector<uint32_t>& scratch) {
  if (count <= k || k == 0) return;
  Cut cut = kth_greatest(keys, count, k, scratch);
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t key = keys[i];
    const bool equal = key == cut.key && cut.equal > 0;
    cut.equal -= static_cast<int64_t>(equal);
    keys[kept] = key;
    positions[kept] = positions[i];
    kept += static_cast<int64_t>(key > cut.key || equal);
  }
  MC_ASSERT(kept == k);
}

TopkStream::TopkStream(int64_t k) : k_(k), capacity_(std::max(2 * k, k + 8192)) {
  reset(kMinusInf);
}

void TopkStream::reset(float floor) {
  held_ = 0;
  threshold_ = floor;
  mode_ = floor > kMinusInf ? kAtLeast : kAll;
}

void TopkStream::push(const float* scores, int64_t count, int64_t base, const uint8_t* mask) {
  if (k_ == 0) return;
  const auto present = static_cast<int64_t>(keys_.size());
  const int64_t wanted = std::min(capacity_, held_ + count + kStride) + kVectorSlack;
  if (present < wanted) {
    keys_.resize(std::max(wanted, std::min(2 * present, capacity_ + kVectorSlack)));
    positions_.resize(keys_.size());
  }
  for (int64_t done = 0; done < count;) {
    if (capacity_ - held_ < kStride) cut();
    const Scan scan{scores, mask, count, static_cast<uint32_t>(base), threshold_, mode_};
    const int64_t room = static_cast<int64_t>(keys_.size()) - kVectorSlack;
    Sink sink{keys_.data(), positions_.data(), held_, std::min(capacity_, room)};
    done = scan_from(scan, done, sink);
    held_ = sink.held;
  }
}

void TopkStream::cut() {
  keep_greatest(keys_.data(), positions_.data(), held_, k_, scratch_);
  held_ = k_;
  threshold_ = score_of_key(*std::min_element(keys_.begin(), keys_.begin() + k_));
  mode_ = kAbove;
}

void TopkStream::finish_few(int64_t offset, std::vector<Selected>& out) {
  std::array<uint64_t, kFewSelected> order;  // ascending: greater key first, then lower position
  for (int64_t i = 0; i < held_; ++i) {
    order[i] = static_cast<uint64_t>(~keys_[i]) << 32 | positions_[i];
  }
  const int64_t best = std::min(k_, held_);
  if (best < held_) std::nth_element(order.begin(), order.begin() + best, order.begin() + held_);
  std::sort(order.begin(), order.begin() + best);
  for (int64_t i = 0; i < best; ++i) {
    out.push_back({~static_cast<uint32_t>(order[i] >> 32),
                   offset + static_cast<int64_t>(order[i] & 0xffffffffu)});
  }
}

void TopkStream::finish(int64_t offset, std::vector<Selected>& out) {
  if (held_ <= kFewSelected) {
    finish_few(offset, out);
    return;
  }
  if (held_ > k_) {
    keep_greatest(keys_.data(), positions_.data(), held_, k_, scratch_);
    held_ = k_;
  }
  sort_descending(keys_, positions_, held_);
  const size_t first = out.size();
  out.resize(first + held_);
  for (int64_t i = 0; i < held_; ++i) out[first + i] = {keys_[i], offset + positions_[i]};
}

float sampled_floor(const float* scores, int64_t count, const uint8_t* mask, int64_t k,
                    int64_t rank_factor) {
  constexpr int64_t kRun = 8;         // neighbours taken together: half a cache line
  constexpr int64_t kRunsAhead = 32;  // each run is a miss of cache and TLB: many at a time
  constexpr int64_t kRunsMost = 2048;
  const int64_t runs = std::clamp<int64_t>(count / 1024, 0, kRunsMost);
  if (runs < 32 || k > count / 16) return kMinusInf;
  // One place in each of `runs` equal parts, at a hashed offset so that no period fits.
  std::array<int64_t, kRunsMost> starts;
  uint64_t state = 0x9e3779b97f4a7c15u;
  const int64_t part = count / runs;
  for (int64_t run = 0; run < runs; ++run) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    starts[run] = run * part + static_cast<int64_t>((state >> 33) % (part - kRun + 1));
  }
  std::vector<uint32_t> sample;
  sample.reserve(runs * kRun);
  for (int64_t run = 0; run < runs; ++run) {
    __builtin_prefetch(scores + starts[std::min(run + kRunsAhead, runs - 1)]);
    for (int64_t i = starts[run]; i < starts[run] + kRun; ++i) {
      if (mask == nullptr || mask[i] != 0) sample.push_back(key_of(scores[i]));
    }
  }
  const double expected =
      static_cast<double>(k) * static_cast<double>(runs * kRun) / static_cast<double>(count);
  const auto rank = static_cast<int64_t>(expected + 4.0 * std::sqrt(expected) + 2.0) * rank_factor;
  if (rank >= static_cast<int64_t>(sample.size())) return kMinusInf;
  std::vector<uint32_t> scratch;
  return score_of_key(kth_greatest(sample.data(), sample.size(), rank, scratch).key);
}

}  // namespace mc
