#include <algorithm>
#include <cstring>

#include "kernels/common/scalar.h"
#include "kernels/common/vec.h"
#include "kernels/page_gather/page_gather.h"

namespace mc {

namespace portable {
namespace {
using Vec = VecPortable;
#include "kernels/page_gather/page_gather_body.h"
}  // namespace
}  // namespace portable

MC_BEGIN_AVX2
namespace avx2 {
namespace {
using Vec = VecAvx2;
#include "kernels/page_gather/page_gather_body.h"
}  // namespace
}  // namespace avx2
MC_END_LEVEL

MC_BEGIN_AVX512
namespace avx512 {
namespace {
using Vec = VecAvx512;
#include "kernels/page_gather/page_gather_body.h"
}  // namespace
}  // namespace avx512
MC_END_LEVEL

namespace {

constexpr int64_t kGrainBytes = 256 * 1024;
constexpr int64_t kCacheLine = 64;
// The hardware prefetcher takes a few lines to notice a new page; these are asked for ahead.
constexpr int64_t kLinesAhead = 16;
constexpr int64_t kPagesAhead = 2;

int64_t page_grain(int64_t page_bytes) {
  return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, page_bytes));
}

void prefetch_page(const char* page, int64_t page_bytes) {
  const int64_t bytes = std::min(page_bytes, kLinesAhead * kCacheLine);
  for (int64_t at = 0; at < bytes; at += kCacheLine) __builtin_prefetch(page + at);
}

void copy_pages_out(const PageMoveArgs& args, int64_t page_bytes, int64_t begin, int64_t end) {
  const int64_t* index = args.index.as<int64_t>();
  const char* pool = args.pool.as<char>();
  for (int64_t n = begin; n < end; ++n) {
    const int64_t ahead = n + kPagesAhead;
    if (ahead < end && index[ahead] >= 0) {
      prefetch_page(pool + index[ahead] * page_bytes, page_bytes);
    }
    char* to = args.rows.as<char>() + n * page_bytes;
    if (index[n] >= 0) {
      std::memcpy(to, pool + index[n] * page_bytes, page_bytes);
    } else {
      std::memset(to, 0, page_bytes);
    }
  }
}

void copy_pages_in(const PageMoveArgs& args, int64_t page_bytes, int64_t begin, int64_t end) {
  const int64_t* index = args.index.as<int64_t>();
  for (int64_t n = begin; n < end; ++n) {
    if (index[n] < 0) continue;
    std::memcpy(args.pool.as<char>() + index[n] * page_bytes, args.rows.as<char>() + n * page_bytes,
                page_bytes);
  }
}

template <class Code, class T>
void decode_pages(const PageMoveArgs& args, int64_t begin, int64_t end) {
  const int64_t *index = args.index.as<int64_t>(), page_rows = args.pool.shape[1];
  const int64_t width = args.pool.shape[2];
  for (int64_t n = begin; n < end; ++n) {
    T* to = args.rows.as<T>() + n * page_rows * width;
    if (index[n] < 0) {
      std::memset(static_cast<void*>(to), 0, page_rows * width * sizeof(T));
      continue;
    }
    for (int64_t row = 0; row < page_rows; ++row) {
      const int64_t from = index[n] * page_rows + row;
      const Code* codes = args.pool.as<Code>() + from * width;
      const float scale = args.scales.as<float>()[from];
      MC_FOR_CPU_LEVEL(decode_row(codes, scale, to + row * width, width))
    }
  }
}

template <class Code, class T>
void encode_pages(const PageMoveArgs& args, float largest, int64_t begin, int64_t end) {
  const int64_t *index = args.index.as<int64_t>(), page_rows = args.pool.shape[1];
  const int64_t width = args.pool.shape[2];
  for (int64_t n = begin; n < end; ++n) {
    if (index[n] < 0) continue;
    for (int64_t row = 0; row < page_rows; ++row) {
      const int64_t to = index[n] * page_rows + row;
      const T* from = args.rows.as<T>() + (n * page_rows + row) * width;
      float* scale = args.scales.as<float>() + to;
      Code* codes = args.pool.as<Code>() + to * width;
      MC_FOR_CPU_LEVEL(encode_row(from, largest, codes, width, scale))
    }
  }
}

}  // namespace

void page_gather_cpu(const Exec& exec, const PageMoveArgs& args) {
  const int64_t values = args.pool.shape[1] * args.pool.shape[2];
  const int64_t page_bytes = values * dtype_bytes(args.rows.dtype);
  exec.for_range(0, args.index.shape[0], page_grain(page_bytes), [&](int64_t begin, int64_t end) {
    if (!args.scales.defined()) return copy_pages_out(args, page_bytes, begin, end);
    with_float_type(args.rows.dtype, [&](auto zero) {
      using T = decltype(zero);
      if (args.pool.dtype == DType::kI8) return decode_pages<int8_t, T>(args, begin, end);
      decode_pages<fp8, T>(args, begin, end);
    });
  });
}

void page_scatter_cpu(const Exec& exec, const PageMoveArgs& args) {
  const int64_t values = args.pool.shape[1] * args.pool.shape[2];
  const int64_t page_bytes = values * dtype_bytes(args.rows.dtype);
  exec.for_range(0, args.index.shape[0], page_grain(page_bytes), [&](int64_t begin, int64_t end) {
    if (!args.scales.defined()) return copy_pages_in(args, page_bytes, begin, end);
    with_float_type(args.rows.dtype, [&](auto zero) {
      using T = decltype(zero);
      if (args.pool.dtype == DType::kI8) return encode_pages<int8_t, T>(args, 127.f, begin, end);
      encode_pages<fp8, T>(args, kFp8Largest, begin, end);
    });
  });
}

}  // namespace mc
