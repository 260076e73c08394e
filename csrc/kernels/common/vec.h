// Vec: a register of floats, once for each CPU level, with one interface. A kernel is written once,
// in a body file that says `Vec`, and compiled three times:
//
//   namespace mc::portable { namespace { using Vec = VecPortable;
//   #include "kernels/gist_pool/gist_pool_body.h"
//   }}
//   MC_BEGIN_AVX2
//   namespace mc::avx2 { namespace { using Vec = VecAvx2;
//   #include "kernels/gist_pool/gist_pool_body.h"
//   }}
//   MC_END_LEVEL
//
// and dispatched by MC_FOR_CPU_LEVEL. A body includes nothing and calls no std:: function: an
// inline copy of it, compiled for AVX-512, could replace everybody's copy when the program is
// linked.
//
// Interface:  kLanes; zero(), set(x); load(p), store(p) for float, bf16, f16; load_first(p, n) (the
// other lanes are 0) and store_first(p, n) for n <= kLanes; load and load_first for int8_t, fp8
// too; + - *, fma(a, b, c) = a*b + c, min, max; sum(), max_lane(); exp().
#pragma once

#include <immintrin.h>

// GCC 12 takes the deliberately undefined registers inside its own intrinsics for mistakes (its bug
// 105593); the warning arises where they are inlined, so it is off for files that include this one.
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "kernels/common/cpu_level.h"
#include "kernels/common/scalar.h"

#define MC_PRAGMA(text) _Pragma(#text)
#define MC_BEGIN_AVX2 MC_PRAGMA(GCC push_options) MC_PRAGMA(GCC target("avx2,fma,f16c"))
#define MC_BEGIN_AVX512       \
  MC_PRAGMA(GCC push_options) \
  MC_PRAGMA(GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c"))
#define MC_END_LEVEL MC_PRAGMA(GCC pop_options)

// Runs `call` (say gist_pool_cpu(exec, args)) from the namespace of the current level.
#define MC_FOR_CPU_LEVEL(call)                             \
  switch (::mc::cpu_level()) {                             \
    case ::mc::CpuLevel::kAmx:                             \
    case ::mc::CpuLevel::kAvx512: avx512::call; break;     \
    case ::mc::CpuLevel::kAvx2: avx2::call; break;         \
    case ::mc::CpuLevel::kPortable: portable::call; break; \
  }

#define MC_INLINE inline __attribute__((always_inline))

namespace mc {

// exp(x) by x = n*ln2 + r, |r| <= ln2/2, and a polynomial for e^r: relative error 2.3e-7. Below
// -87.3 the result is 0, above 88.7 infinity or the largest float. Coefficients: Cephes, expf.c.
inline constexpr float kExpLow = -87.33654f, kExpHigh = 88.722839f;
inline constexpr float kExpCoefficients[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                             4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
inline constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;

struct VecPortable {
  static constexpr int kLanes = 8;
  float lane[kLanes];

  static MC_INLINE VecPortable zero() { return set(0.f); }
  static MC_INLINE VecPortable set(float x) {
    VecPortable out;
    for (float& value : out.lane) value = x;
    return out;
  }
  template <class T>
  static MC_INLINE VecPortable load(const T* from) {
    VecPortable out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = to_float(from[i]);
    return out;
  }
  template <class T>
  static MC_INLINE VecPortable load_first(const T* from, int count) {
    VecPortable out = zero();
    for (int i = 0; i < count; ++i) out.lane[i] = to_float(from[i]);
    return out;
  }
  template <class T>
  MC_INLINE void store(T* to) const {
    for (int i = 0; i < kLanes; ++i) to[i] = from_float<T>(lane[i]);
  }
  template <class T>
  MC_INLINE void store_first(T* to, int count) const {
    for (int i = 0; i < count; ++i) to[i] = from_float<T>(lane[i]);
  }
  MC_INLINE VecPortable operator+(VecPortable b) const {
    for (int i = 0; i < kLanes; ++i) b.lane[i] = lane[i] + b.lane[i];
    return b;
  }
  MC_INLINE VecPortable operator-(VecPortable b) const {
    for (int i = 0; i < kLanes; ++i) b.lane[i] = lane[i] - b.lane[i];
    return b;
  }
  MC_INLINE VecPortable operator*(VecPortable b) const {
    for (int i = 0; i < kLanes; ++i) b.lane[i] = lane[i] * b.lane[i];
    return b;
  }
  static MC_INLINE VecPortable fma(VecPortable a, VecPortable b, VecPortable c) {
    return a * b + c;
  }
  static MC_INLINE VecPortable max(VecPortable a, VecPortable b) {
    for (int i = 0; i < kLanes; ++i) b.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return b;
  }
  static MC_INLINE VecPortable min(VecPortable a, VecPortable b) {
    for (int i = 0; i < kLanes; ++i) b.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return b;
  }
  MC_INLINE float sum() const {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
  }
  MC_INLINE float max_lane() const {
    float best = lane[0];
    for (int i = 1; i < kLanes; ++i) best = lane[i] > best ? lane[i] : best;
    return best;
  }
  MC_INLINE VecPortable exp() const {
    VecPortable out;
    for (int i = 0; i < kLanes; ++i) {
      float x = lane[i] < kExpHigh ? lane[i] : kExpHigh;
      const bool tiny = x < kExpLow;
      x = tiny ? kExpLow : x;
      const float scaled = x * 1.44269504088896341f;
      int n = static_cast<int>(scaled + (scaled < 0.f ? -0.5f : 0.5f));
      n = n > 127 ? 127 : n;
      const float r = x - static_cast<float>(n) * kLn2High - static_cast<float>(n) * kLn2Low;
      float p = kExpCoefficients[0];
      for (int c = 1; c < 6; ++c) p = p * r + kExpCoefficients[c];
      p = p * r * r + r + 1.f;
      const float power = p * bits_float(static_cast<uint32_t>(n + 127) << 23);
      out.lane[i] = tiny ? 0.f : lane[i] != lane[i] ? lane[i] : power;
    }
    return out;
  }
};

MC_BEGIN_AVX2
struct VecAvx2 {
  static constexpr int kLanes = 8;
  __m256 v;

  static MC_INLINE VecAvx2 zero() { return {_mm256_setzero_ps()}; }
  static MC_INLINE VecAvx2 set(float x) { return {_mm256_set1_ps(x)}; }
  static MC_INLINE VecAvx2 load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static MC_INLINE VecAvx2 load(const bf16* from) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  static MC_INLINE VecAvx2 load(const f16* from) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
  }
  static MC_INLINE VecAvx2 load(const int8_t* from) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
  }
  static MC_INLINE VecAvx2 load(const fp8* from) {  // see to_float(fp8)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    const __m128i wide = _mm_cvtepu8_epi16(bytes);
    const __m128i magnitude = _mm_and_si128(wide, _mm_set1_epi16(0x7f));
    const __m128i sign = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x80)), 8);
    const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
    const __m128i half = _mm_or_si128(sign, _mm_slli_epi16(magnitude, 7));
    const __m128i kept = _mm_blendv_epi8(half, _mm_set1_epi16(0x7e00), nan);
    return {_mm256_mul_ps(_mm256_cvtph_ps(kept), _mm256_set1_ps(256.f))};
  }
  template <class T>
  static MC_INLINE VecAvx2 load_first(const T* from, int count) {
    T padded[kLanes] = {};
    for (int i = 0; i < count; ++i) padded[i] = from[i];
    return load(padded);
  }
  MC_INLINE void store(float* to) const { _mm256_storeu_ps(to, v); }
  MC_INLINE void store(bf16* to) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    __m256i top = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    top = _mm256_blendv_epi8(top, _mm256_set1_epi32(0x7fc0), nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(top, top), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
  }
  MC_INLINE void store(f16* to) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  template <class T>
  MC_INLINE void store_first(T* to, int count) const {
    T padded[kLanes];
    store(padded);
    for (int i = 0; i < count; ++i) to[i] = padded[i];
  }
  MC_INLINE VecAvx2 operator+(VecAvx2 b) const { return {_mm256_add_ps(v, b.v)}; }
  MC_INLINE VecAvx2 operator-(VecAvx2 b) const { return {_mm256_sub_ps(v, b.v)}; }
  MC_INLINE VecAvx2 operator*(VecAvx2 b) const { return {_mm256_mul_ps(v, b.v)}; }
  static MC_INLINE VecAvx2 fma(VecAvx2 a, VecAvx2 b, VecAvx2 c) {
    return {_mm256_fmadd_ps(a.v, b.v, c.v)};
  }
  static MC_INLINE VecAvx2 max(VecAvx2 a, VecAvx2 b) { return {_mm256_max_ps(a.v, b.v)}; }
  static MC_INLINE VecAvx2 min(VecAvx2 a, VecAvx2 b) { return {_mm256_min_ps(a.v, b.v)}; }
  MC_INLINE float sum() const {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
  MC_INLINE float max_lane() const {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
  MC_INLINE VecAvx2 exp() const {
    // min and max give their second operand for NaN, so the clamps keep NaN.
    const __m256 low = _mm256_set1_ps(kExpLow);
    const __m256 clamped = _mm256_max_ps(low, _mm256_min_ps(_mm256_set1_ps(kExpHigh), v));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(clamped, _mm256_set1_ps(1.44269504088896341f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    n = _mm256_min_ps(_mm256_set1_ps(127.f), n);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kLn2High), clamped);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kLn2Low), r);
    __m256 p = _mm256_set1_ps(kExpCoefficients[0]);
    for (int c = 1; c < 6; ++c) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpCoefficients[c]));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.f));
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    return {_mm256_andnot_ps(_mm256_cmp_ps(v, low, _CMP_LT_OQ), p)};
  }
};
MC_END_LEVEL

MC_BEGIN_AVX512
struct VecAvx512 {
  static constexpr int kLanes = 16;
  __m512 v;

  static MC_INLINE __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }
  static MC_INLINE __m512 widen(__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static MC_INLINE VecAvx512 zero() { return {_mm512_setzero_ps()}; }
  static MC_INLINE VecAvx512 set(float x) { return {_mm512_set1_ps(x)}; }
  static MC_INLINE VecAvx512 load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static MC_INLINE VecAvx512 load(const bf16* from) {
    return {widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }
  static MC_INLINE VecAvx512 load(const f16* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }
  static MC_INLINE VecAvx512 widen_fp8(__m128i bytes) {  // see to_float(fp8)
    const __m256i wide = _mm256_cvtepu8_epi16(bytes);
    const __m256i magnitude = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
    const __mmask16 nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
    const __m256i half = _mm256_or_si256(sign, _mm256_slli_epi16(magnitude, 7));
    const __m256i kept = _mm256_mask_mov_epi16(half, nan, _mm256_set1_epi16(0x7e00));
    return {_mm512_mul_ps(_mm512_cvtph_ps(kept), _mm512_set1_ps(256.f))};
  }
  static MC_INLINE VecAvx512 load(const int8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
  }
  static MC_INLINE VecAvx512 load(const fp8* from) {
    return widen_fp8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static MC_INLINE VecAvx512 load_first(const int8_t* from, int count) {
    const __m128i bytes = _mm_maskz_loadu_epi8(first(count), from);
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
  }
  static MC_INLINE VecAvx512 load_first(const fp8* from, int count) {
    return widen_fp8(_mm_maskz_loadu_epi8(first(count), from));
  }
  static MC_INLINE VecAvx512 load_first(const float* from, int count) {
    return {_mm512_maskz_loadu_ps(first(count), from)};
  }
  static MC_INLINE VecAvx512 load_first(const bf16* from, int count) {
    return {widen(_mm256_maskz_loadu_epi16(first(count), from))};
  }
  static MC_INLINE VecAvx512 load_first(const f16* from, int count) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), from))};
  }
  MC_INLINE __m256i to_bf16() const {
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));  // flushes subnormal numbers to 0
  }
  MC_INLINE __m256i to_f16() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
  MC_INLINE void store(float* to) const { _mm512_storeu_ps(to, v); }
  MC_INLINE void store(bf16* to) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bf16());
  }
  MC_INLINE void store(f16* to) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_f16());
  }
  MC_INLINE void store_first(float* to, int count) const {
    _mm512_mask_storeu_ps(to, first(count), v);
  }
  MC_INLINE void store_first(bf16* to, int count) const {
    _mm256_mask_storeu_epi16(to, first(count), to_bf16());
  }
  MC_INLINE void store_first(f16* to, int count) const {
    _mm256_mask_storeu_epi16(to, first(count), to_f16());
  }
  MC_INLINE VecAvx512 operator+(VecAvx512 b) const { return {_mm512_add_ps(v, b.v)}; }
  MC_INLINE VecAvx512 operator-(VecAvx512 b) const { return {_mm512_sub_ps(v, b.v)}; }
  MC_INLINE VecAvx512 operator*(VecAvx512 b) const { return {_mm512_mul_ps(v, b.v)}; }
  static MC_INLINE VecAvx512 fma(VecAvx512 a, VecAvx512 b, VecAvx512 c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
  }
  static MC_INLINE VecAvx512 max(VecAvx512 a, VecAvx512 b) { return {_mm512_max_ps(a.v, b.v)}; }
  static MC_INLINE VecAvx512 min(VecAvx512 a, VecAvx512 b) { return {_mm512_min_ps(a.v, b.v)}; }
  MC_INLINE float sum() const { return _mm512_reduce_add_ps(v); }
  MC_INLINE float max_lane() const { return _mm512_reduce_max_ps(v); }
  MC_INLINE VecAvx512 exp() const {
    const __m512 low = _mm512_set1_ps(kExpLow);
    const __m512 clamped = _mm512_max_ps(low, _mm512_min_ps(_mm512_set1_ps(kExpHigh), v));
    const __m512 n = _mm512_roundscale_ps(
        _mm512_mul_ps(clamped, _mm512_set1_ps(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(kLn2High), clamped);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(kLn2Low), r);
    __m512 p = _mm512_set1_ps(kExpCoefficients[0]);
    for (int c = 1; c < 6; ++c) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpCoefficients[c]));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.f));
    const __mmask16 kept = _mm512_cmp_ps_mask(v, low, _CMP_NLT_UQ);
    return {_mm512_maskz_scalef_ps(kept, p, n)};
  }
};
MC_END_LEVEL

}  // namespace mc
